// Package fds keeps descriptors that stay open apart from those that come and go with a start.
package fds

import "golang.org/x/sys/unix"

// First is the lowest of the descriptors that stay open.
const First = 512

// Aside gives a descriptor that is to stay open a number from First on, with close-on-exec. A child that is made copies all
// descriptors up to the last one that it needs, and closes the others one by one; a monitor keeps some two hundred. Where
// there is no such number, as by a limit, it stays what it is.
func Aside(fd int) int {
	to, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, First)
	if err != nil {
		return fd
	}
	_ = unix.Close(fd)
	return to
}
