package ociruntime

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// maxSpec bounds what is read of a bundle's configuration, in bytes.
const maxSpec = 32 << 20

// bundle is the configuration of a bundle, as it was before berth edited it.
type bundle struct {
	path string // of the file
	spec []byte
	// edited is that the file is an edited one, of which spec is the original.
	edited bool
}

// original is the name under which the original of an edited configuration is kept, beside it: a bundle of which
// a second container is made would else have the devices of the first. The name tells of which edited file it is
// the original, so that a file that was written anew is taken for what it is.
func original(path string, edited []byte) string {
	sum := sha256.Sum256(edited)
	return filepath.Join(filepath.Dir(path), originalPrefix+hex.EncodeToString(sum[:8]))
}

const originalPrefix = ".berth-original-"

// readBundle reads a configuration; of one that berth has edited, the original.
func readBundle(path string) (*bundle, error) {
	spec, err := readFile(path)
	if err != nil {
		return nil, err
	}
	b := &bundle{path: path, spec: spec}
	before, err := readFile(original(path, spec))
	switch {
	case errors.Is(err, berth.ErrNotFound):
	case err != nil:
		return nil, err
	default:
		b.spec, b.edited = before, true
	}
	return b, nil
}

func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("bundle: %w: %w", berth.ErrNotFound, err)
	} else if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return nil, fmt.Errorf("bundle: %w", err)
	}
	if len(data) > maxSpec {
		return nil, fmt.Errorf("bundle: %w: %s is larger than %d bytes", berth.ErrInvalid, path, maxSpec)
	}
	return data, nil
}

// write puts an edited configuration in the file's place, with the file's owner, mode and attributes: all of it or,
// on an error, nothing. The original is kept beside it.
func (b *bundle) write(spec []byte) error {
	if bytes.Equal(spec, b.spec) && !b.edited {
		return nil
	}
	keep := original(b.path, spec)
	if err := replace(keep, b.path, b.spec); err != nil {
		return err
	}
	if err := replace(b.path, b.path, spec); err != nil {
		_ = os.Remove(keep)
		return err
	}
	b.sweep(keep)
	return nil
}

// restore puts the original back.
func (b *bundle) restore() error {
	if err := replace(b.path, b.path, b.spec); err != nil {
		return err
	}
	b.sweep("")
	return nil
}

// sweep removes the originals of files that are no more.
func (b *bundle) sweep(but string) {
	entries, err := os.ReadDir(filepath.Dir(b.path))
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(filepath.Dir(b.path), e.Name())
		if strings.HasPrefix(e.Name(), originalPrefix) && path != but {
			_ = os.Remove(path)
		}
	}
}

// replace puts data in place of the file at path by rename, with what like has beside its data.
func replace(path, like string, data []byte) error {
	fail := func(err error) error { return fmt.Errorf("write %s: %w", path, err) }
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real // a link stays one
	}
	var st unix.Stat_t
	if err := unix.Stat(like, &st); err != nil {
		return fail(err)
	}
	tmp := filepath.Join(filepath.Dir(path), ".berth-"+rand.Text())
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fail(err)
	}
	_, err = f.Write(data)
	if err == nil {
		err = unix.Fchown(int(f.Fd()), int(st.Uid), int(st.Gid))
	}
	if err == nil {
		err = unix.Fchmod(int(f.Fd()), st.Mode&0o7777)
	}
	if err == nil {
		err = copyAttributes(like, int(f.Fd()))
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
		return fail(err)
	}
	return nil
}

// copyAttributes copies extended attributes: labels of SELinux, access lists.
func copyAttributes(from string, to int) error {
	names := make([]byte, 64<<10)
	n, err := unix.Listxattr(from, names)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	} else if err != nil {
		return err
	}
	for name := range strings.SplitSeq(strings.TrimSuffix(string(names[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Getxattr(from, name, value)
		if err == nil {
			err = unix.Fsetxattr(to, name, value[:n], 0)
		}
		if err != nil {
			return fmt.Errorf("attribute %s: %w", name, err)
		}
	}
	return nil
}
