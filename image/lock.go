package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockPause bounds how often a lock that another process holds is asked for.
const (
	lockPauseMin = time.Millisecond
	lockPauseMax = 50 * time.Millisecond
)

// lockFile takes the exclusive lock on path, made where it is not there, and waits until it is free or ctx
// ends. Locks are flock(2)s: they end with the process that holds them, however it ends. Closing the file
// unlocks.
func lockFile(ctx context.Context, path string) (*os.File, error) {
	for pause := lockPauseMin; ; pause = min(2*pause, lockPauseMax) {
		f, err := tryLock(path, os.O_RDWR|os.O_CREATE)
		if err != nil || f != nil {
			return f, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// tryLock takes the lock on a file or directory without waiting; nil if someone holds it. What was removed
// or replaced between opening and locking is opened anew.
func tryLock(path string, flags int) (*os.File, error) {
	for {
		f, err := os.OpenFile(path, flags, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		}
		if err != nil {
			f.Close()
			if errors.Is(err, unix.EWOULDBLOCK) {
				return nil, nil
			}
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		held, err1 := f.Stat()
		there, err2 := os.Stat(path)
		if err1 == nil && err2 == nil && os.SameFile(held, there) {
			return f, nil
		}
		f.Close()
		if flags&os.O_CREATE == 0 && errors.Is(err2, fs.ErrNotExist) {
			return nil, err2
		}
	}
}

// workDir is a directory under tmp whose lock says that its maker lives. Others remove it once that is gone.
type workDir struct {
	path string
	lock *os.File
}

// newWorkDir makes a work directory.
func (s *Store) newWorkDir() (*workDir, error) {
	for {
		path := filepath.Join(s.dir, "tmp", strings.ToLower(rand.Text()[:16]))
		if err := os.Mkdir(path, 0o700); err != nil {
			return nil, err
		}
		lock, err := tryLock(path, os.O_RDONLY)
		switch {
		case errors.Is(err, fs.ErrNotExist): // taken for a leftover before it was locked
			continue
		case err != nil:
			return nil, err
		case lock != nil:
			spread(lock)
			return &workDir{path, lock}, nil
		}
	}
}

// topDir is ext4's flag for a directory whose subdirectories have nothing to do with each other (chattr +T).
const topDir = 0x00020000

// spread has the file system put each directory of dir, a layer, where there is room, and not all of them side
// by side. On ext4 that is worth much: the making of a file passes over every inode that was freed beside it
// within the last minutes, so that layers are slow to unpack where others were removed, and layers that are
// unpacked at once wait for each other. Other file systems refuse; it is a help only.
func spread(dir *os.File) {
	if flags, err := unix.IoctlGetInt(int(dir.Fd()), unix.FS_IOC_GETFLAGS); err == nil {
		_ = unix.IoctlSetPointerInt(int(dir.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
	}
}

// remove removes the directory and all in it, then ends its lock.
func (w *workDir) remove() error {
	return errors.Join(os.RemoveAll(w.path), w.lock.Close())
}

// sweep removes the work directories and half-written records whose makers are gone.
func (s *Store) sweep() error {
	tmp := filepath.Join(s.dir, "tmp")
	entries, err := os.ReadDir(tmp)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := filepath.Join(tmp, e.Name())
		lock, err := tryLock(path, os.O_RDONLY)
		if err != nil || lock == nil {
			continue // another has removed it, or it is in use
		}
		s.log.Debug("removing what a crash left", "path", path)
		errs = append(errs, os.RemoveAll(path), lock.Close())
	}
	return errors.Join(errs...)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
