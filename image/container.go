package image

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// container is an archive or directory that holds images.
type container interface {
	// open opens a file by its path; fs.ErrNotExist if there is none.
	open(name string) (r io.ReadCloser, size int64, err error)
	// strange says why the container is not what was expected.
	strange() error
}

// layoutDir is a directory in OCI layout.
type layoutDir struct{ root *os.Root }

func (d layoutDir) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) // a named pipe would have it wait for ever
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = fmt.Errorf("%w: %s is no regular file", berth.ErrInvalid, name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}

func (d layoutDir) strange() error {
	return fmt.Errorf("%w: the directory is no OCI layout: it has no index.json", berth.ErrInvalid)
}

// readSmall reads a whole file of a container.
func readSmall(c container, name string, limit int64) ([]byte, error) {
	r, size, err := c.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, fmt.Errorf("%w: %s has %d bytes, more than %d", berth.ErrInvalid, name, size, limit)
	}
	b, err := io.ReadAll(r)
	if err != nil {
		return nil, badArchive(err)
	}
	return b, nil
}
