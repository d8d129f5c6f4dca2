package scratch

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Remove removes a file, or a directory with all that is in it, however deep, and whatever the modes of its
// directories are. Symbolic links are removed, never followed; other file systems mounted in it are not
// entered. No error if it is gone.
func Remove(path string) error {
	err := os.Remove(path)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := removeTree(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, kindOf(err))
	}
	return nil
}

// Discard takes path away at once, by moving it into the directory trash on the same file system, and
// returns what removes it. trash is made where it is not there. No error if path is gone.
func Discard(path, trash string) (remove func() error, err error) {
	to := filepath.Join(trash, rand.Text())
	err = rename(path, to)
	if errors.Is(err, fs.ErrNotExist) { // one of the two
		if err := os.Mkdir(trash, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("discard %s: %w", path, kindOf(err))
		}
		err = rename(path, to)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return func() error { return nil }, nil
	}
	if err != nil {
		return nil, fmt.Errorf("discard %s: %w", path, kindOf(err))
	}
	return func() error { return Remove(to) }, nil
}

// rename is os.Rename without its look at what is there under the new name, which is a random one.
func rename(from, to string) error {
	for {
		switch err := unix.Rename(from, to); {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EINTR):
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
	}
}

// Sweep removes what Discard left in trash: what an earlier process did not come to remove.
func Sweep(ctx context.Context, trash string) error {
	entries, err := os.ReadDir(trash)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("sweep %s: %w", trash, kindOf(err))
	}
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		errs = append(errs, Remove(filepath.Join(trash, e.Name())))
	}
	return errors.Join(errs...)
}

func removeTree(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	name := filepath.Base(path)
	openUp(parent, name)
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for range 3 {
		if err = emptyFD(fd); err != nil {
			return err
		}
		// A directory may skip entries of a reader while others are removed.
		if err = unix.Unlinkat(parent, name, unix.AT_REMOVEDIR); !errors.Is(err, unix.ENOTEMPTY) {
			return err
		}
	}
	return err
}

// emptyDir removes what is in dir, as far as that goes.
func emptyDir(dir string) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	_ = emptyFD(fd)
}

func emptyFD(fd int) error {
	var left error
	keep := func(err error) {
		if err != nil && !errors.Is(err, unix.ENOENT) && left == nil {
			left = err
		}
	}
	err := walk(fd, visitor{
		file: func(dir int, e dirent) error {
			keep(unix.Unlinkat(dir, e.name, 0))
			return nil
		},
		enter: func(dir int, name string) bool {
			if unix.Unlinkat(dir, name, unix.AT_REMOVEDIR) == nil { // many are empty
				return true
			}
			openUp(dir, name)
			return false
		},
		leave: func(dir int, name string) error {
			if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); !errors.Is(err, unix.ENOTEMPTY) {
				keep(err)
			}
			return nil
		},
	})
	return errors.Join(err, left)
}

// openUp makes a directory one that its owner may empty. Root needs no such thing.
func openUp(parent int, name string) {
	if os.Geteuid() == 0 {
		return
	}
	fd, err := unix.Openat(parent, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// By way of /proc: fchmod does not take a path descriptor, and a name might have become a link.
	_ = os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), 0o700)
}
