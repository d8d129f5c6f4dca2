package cgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// write writes a value into a cgroup file. The memory controller of v1 answers EINTR when a signal arrives
// while it reclaims, and Go's runtime sends itself signals, so the write is repeated.
func write(path, value string) error {
	fd, err := open(path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err = retry(func() (int, error) { return unix.Write(fd, []byte(value)) }); err != nil {
		return &fs.PathError{Op: "write " + value + " to", Path: path, Err: err}
	}
	return nil
}

// read reads a cgroup file whole.
func read(path string) ([]byte, error) {
	fd, err := open(path, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	return readAll(fd, path)
}

// readAll reads an open file from its beginning to its end, and closes it. The kernel makes such a file in one piece,
// or in lines of some bytes of which it puts as many into an answer as fit into one of its pages: so an answer that
// leaves room in less than half a page is the last.
func readAll(fd int, path string) ([]byte, error) {
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 0, 1024)
	for first := true; ; first = false {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := retry(func() (int, error) { return unix.Read(fd, buf[len(buf):cap(buf)]) })
		if err != nil {
			return nil, &fs.PathError{Op: "read", Path: path, Err: err}
		}
		buf = buf[:len(buf)+n]
		if n == 0 || first && len(buf) < cap(buf) {
			return buf, nil
		}
	}
}

// retry calls f until no signal has interrupted it.
func retry(f func() (int, error)) (n int, err error) {
	for {
		if n, err = f(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

func open(path string, flags int) (int, error) {
	fd, err := retry(func() (int, error) { return unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0) })
	if err != nil {
		return -1, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	return fd, nil
}

// readInt reads a file that holds one number; "max" is math.MaxInt64.
func readInt(path string) (int64, error) {
	b, err := read(path)
	if err != nil {
		return 0, err
	}
	return parseInt(b)
}

func parseInt(b []byte) (int64, error) {
	s := string(bytes.TrimSpace(b))
	if s == "max" {
		return math.MaxInt64, nil
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("cgroup file: %w", err)
	}
	return int64(min(n, math.MaxInt64)), nil
}

// readKey reads one value of a file of lines "key value"; 0 where there is no such key.
func readKey(path, key string) (int64, error) {
	b, err := read(path)
	if err != nil {
		return 0, err
	}
	n, _, err := parseKey(b, key)
	return n, err
}

// parseKey finds one value in lines "key value"; ok is false where there is no such key.
func parseKey(b []byte, key string) (value int64, ok bool, err error) {
	for line := range strings.Lines(string(b)) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), " ")
		if k == key {
			value, err = parseInt([]byte(v))
			return value, err == nil, err
		}
	}
	return 0, false, nil
}

// kind adds the kind of berth's errors to one that the kernel answered.
func kind(op string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return fmt.Errorf("%s: %w: %w", op, berth.ErrDenied, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%s: %w: %w", op, berth.ErrNotFound, err)
	case errors.Is(err, unix.EBUSY), errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s: %w: %w", op, berth.ErrConflict, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.ENOMEM):
		return fmt.Errorf("%s: %w: %w", op, berth.ErrExhausted, err)
	}
	return fmt.Errorf("%s: %w", op, err)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
