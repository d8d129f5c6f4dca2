package cli

import (
	"fmt"
	"os"
	"path/filepath"
)

// stdStream as the name of a file is berth's own input or output.
const stdStream = "-"

// writeWhole writes a file that a user named, which appears whole or not at all. A pipe or a device is written
// to as it is.
func (a *app) writeWhole(name string, data []byte) error {
	path := a.abs(name)
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return os.WriteFile(path, data, 0o644)
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
