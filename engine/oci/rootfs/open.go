package rootfs

import (
	"errors"

	"golang.org/x/sys/unix"
)

// openTries bounds how often a file is opened again: EAGAIN may have other reasons.
const openTries = 1000

// Open is openat2(2), tried again where the kernel could not be sure of a ".." on the way, as something was mounted or
// renamed anywhere on the host meanwhile.
func Open(dir int, name string, how *unix.OpenHow) (fd int, err error) {
	for range openTries {
		fd, err = unix.Openat2(dir, name, how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	return fd, err
}
