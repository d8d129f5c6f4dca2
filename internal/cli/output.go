package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-project/berth/staging"
)

// stdStream as the name of a file is berth's own input or output.
const stdStream = "-"

// writeWhole writes a file that a user named, which appears whole or not at all. A pipe or a device is written
// to as it is.
func (a *app) writeWhole(name string, data []byte) error {
	path := a.abs(name)
	if st, err := os.Stat(path); err == nil && (!st.Mode().IsRegular() || isOpen(path)) {
		return appendTo(path, data)
	}
	path, err := staging.Target(path)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*.tmp")
	if err != nil {
		return fmt.Errorf("%w: %w", fileKind(err), err)
	}
	_, err = tmp.Write(data)
	if err == nil {
		err = tmp.Chmod(0o644)
	}
	if bad := tmp.Close(); err == nil {
		err = bad
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		_ = os.Remove(tmp.Name())
		return fmt.Errorf("%w: %w", fileKind(err), err)
	}
	return nil
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
	if err := a.writeWhole(name, data); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}
