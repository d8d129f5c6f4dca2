package monitor

import (
	"errors"
	"io/fs"

	"golang.org/x/sys/unix"
)

// writeFile writes a file that is there or not, as os.WriteFile does; but it takes three system calls, not nine: that
// one tries whether the file can be polled. A start writes five files.
func writeFile(name string, data []byte, mode uint32) error {
	return writeFlags(name, data, unix.O_TRUNC, mode)
}

func writeFlags(name string, data []byte, flags int, mode uint32) error {
	fd, err := again(func() (int, error) {
		return unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC|flags, mode)
	})
	if err != nil {
		return &fs.PathError{Op: "open", Path: name, Err: err}
	}
	for len(data) > 0 {
		n, err := again(func() (int, error) { return unix.Write(fd, data) })
		if err != nil {
			_ = unix.Close(fd)
			return &fs.PathError{Op: "write", Path: name, Err: err}
		}
		data = data[n:]
	}
	if err := unix.Close(fd); err != nil && !errors.Is(err, unix.EINTR) { // close(2): it is closed all the same
		return &fs.PathError{Op: "close", Path: name, Err: err}
	}
	return nil
}

// again repeats a system call that a signal has broken off.
func again(call func() (int, error)) (int, error) {
	for {
		n, err := call()
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}
