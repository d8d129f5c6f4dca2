package cli

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/staging"
)

// stdStream as the name of a file is berth's own input or output.
const stdStream = "-"

// writeWhole writes a file that a user named, which appears whole or not at all. A pipe or a device is written
// to as it is; but what a task could write to, at the real paths writable, only ever holds files.
func (a *app) writeWhole(name string, data []byte, writable []string) error {
	path := a.abs(name)
	if there, err := isStream(path, writable); err != nil {
		return err
	} else if there {
		return appendTo(path, data)
	}
	path, err := staging.Target(path, writable)
	if err != nil {
		return err
	}
	dir, err := staging.OpenParent(path, writable)
	if err != nil {
		return fmt.Errorf("%w: %w", fileKind(err), err)
	}
	defer func() { _ = dir.Close() }()
	err = putFile(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()), filepath.Base(path), data)
	if errno, ok := errors.AsType[unix.Errno](err); ok { // not of the file's name below the descriptor
		err = &fs.PathError{Op: "write", Path: path, Err: errno}
	}
	if err != nil {
		return fmt.Errorf("%w: %w", fileKind(err), err)
	}
	return nil
}

// putFile gives a file of a directory new content. Nothing that is in its place is written to, and no link is followed.
func putFile(dir, name string, data []byte) error {
	temporary, name := filepath.Join(dir, "."+name+"."+rand.Text()[:10]+".tmp"), filepath.Join(dir, name)
	tmp, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if bad := tmp.Close(); err == nil {
		err = bad
	}
	if err == nil {
		err = os.Rename(temporary, name)
	}
	if err != nil {
		_ = os.Remove(temporary)
	}
	return err
}

// isStream reports whether what is at a path is written to as it is, after what was written to it before. No task could
// have put it there.
func isStream(path string, writable []string) (bool, error) {
	st, err := os.Stat(path)
	if err != nil || st.Mode().IsRegular() && !isOpen(path) {
		return false, nil //nolint:nilerr // it is to be made
	}
	tree, err := staging.Within(path, writable)
	return tree == "" && err == nil, err
}

// isOpen reports whether a path leads to berth's own standard output or error, as /dev/stdout does. What else it, or
// another process, has open is not the user's to name: a link of somebody else may lead there.
func isOpen(path string) bool {
	for range 40 { // as many links as Linux follows
		dir, err := filepath.EvalSymlinks(filepath.Dir(path))
		if err != nil {
			return false
		}
		text, err := os.Readlink(path)
		if err != nil {
			return false
		}
		if dir == fmt.Sprintf("/proc/%d/fd", os.Getpid()) {
			return filepath.Base(path) == "1" || filepath.Base(path) == "2"
		}
		if path = text; !filepath.IsAbs(text) {
			path = filepath.Join(dir, text)
		}
	}
	return false
}

// appendTo writes to what is no file of its own, a terminal or a pipe, and after what was written there before.
func appendTo(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", fileKind(err), err)
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Close())
}

// writeTo writes to a file, or to standard output for "-".
func (a *app) writeTo(name string, data []byte) error {
	if name == stdStream {
		_, err := a.out.Write(data)
		return err
	}
	if err := a.writeWhole(name, data, nil); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
