package logfile

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// teePipe doubles what is in a pipe.
type teePipe struct {
	r, w   int
	broken bool
}

func newTeePipe() (*teePipe, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, chunk)
	return &teePipe{r: p[0], w: p[1]}, nil
}

func (t *teePipe) close() {
	_ = unix.Close(t.r)
	_ = unix.Close(t.w)
}

// fill copies what lies in fd, and leaves it there.
func (t *teePipe) fill(fd int) (int64, error) {
	if t.broken {
		return chunk, nil
	}
	for {
		n, err := unix.Tee(fd, t.w, chunk, unix.SPLICE_F_NONBLOCK)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n, err
	}
}

// drain moves n bytes into the file, at its own offset.
func (t *teePipe) drain(f *os.File, n int64) error {
	if t.broken {
		return nil
	}
	for n > 0 {
		m, err := unix.Splice(t.r, nil, int(f.Fd()), nil, int(n), unix.SPLICE_F_MOVE)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if m == 0 {
			return io.ErrUnexpectedEOF
		}
		n -= m
	}
	return nil
}
