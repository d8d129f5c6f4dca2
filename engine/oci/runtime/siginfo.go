package runtime

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// splitInfo reads exit code or signal from what waitid filled in. x/sys hides these fields; their places
// are the same on all 64-bit Linux.
func splitInfo(info *unix.Siginfo) (int, syscall.Signal) {
	c := (*siginfoChild)(unsafe.Pointer(info))
	if c.Code == cldExited {
		return int(c.Status), 0
	}
	return 0, syscall.Signal(c.Status)
}
