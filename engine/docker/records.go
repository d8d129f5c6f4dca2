package docker

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-project/berth"
)

// Records are files of JSON. Other processes see one whole or not at all; a crash of the machine may leave an empty one,
// which counts as none.

// readJSON reads a record. ErrNotFound where there is none.
func readJSON(file string, v any) error {
	raw, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && len(raw) == 0 {
		return berth.ErrNotFound
	} else if err != nil {
		return fmt.Errorf("%w: %w", kindOf(err), err)
	}
	return json.Unmarshal(raw, v)
}

// written reports whether there is a record.
func written(file string) bool {
	st, err := os.Lstat(file)
	return err == nil && st.Size() > 0
}

func exists(file string) bool {
	_, err := os.Lstat(file)
	return err == nil
}

// writeJSON writes a record. When it returns that is on the disk; a crash before leaves what was there.
func writeJSON(file string, v any) error {
	f, err := newJSON(file, v)
	if err != nil {
		return err
	}
	if err = errors.Join(f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), file)
	}
	if err != nil {
		_ = os.Remove(f.Name())
	}
	return err
}

// newJSON writes what is to be a record to a file beside it.
func newJSON(file string, v any) (*os.File, error) {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(filepath.Dir(file), ".new-*")
	if err != nil {
		return nil, err
	}
	if _, err := f.Write(raw); err != nil {
		_ = f.Close()
		_ = os.Remove(f.Name())
		return nil, err
	}
	return f, nil
}

// putJSON writes a record where none is that is needed: the system may still have to bring it to the disk, and a crash
// leaves an empty one.
func putJSON(file string, v any) (*os.File, error) {
	f, err := newJSON(file, v)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(f.Name(), file); err != nil {
		_ = f.Close()
		_ = os.Remove(f.Name())
		return nil, err
	}
	return f, nil
}

// flush is a record's way to the disk.
type flush struct {
	done chan struct{}
	err  error // when done is closed
}

// wait waits until the record is on the disk.
func (f *flush) wait() error {
	if f == nil {
		return nil
	}
	<-f.done
	return f.err
}

// writeSoon writes a new record that need not be on the disk yet: a daemon has much to do before a container starts.
func (e *Engine) writeSoon(file string, v any) (*flush, error) {
	f, err := putJSON(file, v)
	if err != nil {
		return nil, err
	}
	soon := &flush{done: make(chan struct{})}
	e.wg.Go(func() {
		defer close(soon.done)
		soon.err = errors.Join(f.Sync(), f.Close())
	})
	return soon, nil
}

// claimJSON writes a record if there is none yet, and answers whether it did: of several at once, one does.
func claimJSON(file string, v any) (bool, error) {
	if exists(file) {
		return false, nil
	}
	mine := file + "." + rand.Text()
	if err := writeJSON(mine, v); err != nil {
		return false, err
	}
	err := os.Link(mine, file)
	_ = os.Remove(mine)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return err == nil, err
}
