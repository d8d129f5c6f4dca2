// Package untar unpacks what was read out of a container's root.
package untar

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/berth-project/berth"
)

// Into unpacks files, directories and links of an archive into root, with the permissions and times, but not the
// owners, that they have there; its owner may read all, and write in directories. Nothing is written outside root,
// whatever the archive says. What is neither wraps berth.ErrUnsupported.
func Into(r io.Reader, root *os.Root) error {
	return Each(r, root, func(h *tar.Header) (bool, error) {
		if Special(h) {
			return false, fmt.Errorf("unpack %s: %w: it is neither a file nor a directory", h.Name, berth.ErrUnsupported)
		}
		return true, nil
	})
}

// Special reports whether an entry is neither a file, a directory nor a link.
func Special(h *tar.Header) bool {
	return h.Typeflag == tar.TypeFifo || h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock
}

// Each is Into where take is asked about each entry, which it may name otherwise. What it does not take is left out, and
// so is what is Special; its error ends the unpacking.
func Each(r io.Reader, root *os.Root, take func(*tar.Header) (bool, error)) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read archive: %w: %w", berth.ErrUnavailable, err)
		}
		if taken, err := take(h); err != nil {
			return err
		} else if !taken {
			continue
		}
		name := path.Clean(strings.TrimLeft(h.Name, "/"))
		if name == "." {
			continue
		}
		if err := one(tr, h, name, root); err != nil {
			return fmt.Errorf("unpack %s: %w", h.Name, err)
		}
	}
}

// holeBlock is what is looked at for zeros at once, in bytes.
const holeBlock = 64 << 10

// copyHoles writes size bytes of r to a new file. Blocks of zeros become holes: an archive has none, and a file that
// takes nothing of the disk in a container, whatever its size, is to take none here.
func copyHoles(f *os.File, r io.Reader, size int64) error {
	buf := make([]byte, min(size, holeBlock))
	for at := int64(0); at < size; {
		block := buf[:min(size-at, int64(len(buf)))]
		if _, err := io.ReadFull(r, block); err != nil {
			return fmt.Errorf("read archive: %w: %w", berth.ErrUnavailable, err)
		}
		if len(bytes.TrimLeft(block, "\x00")) > 0 {
			if _, err := f.WriteAt(block, at); err != nil {
				return err
			}
		}
		at += int64(len(block))
	}
	return f.Truncate(size)
}

func one(r io.Reader, h *tar.Header, name string, root *os.Root) error {
	if dir := path.Dir(name); dir != "." {
		if err := root.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	mode := fs.FileMode(h.Mode) & 0o777
	switch h.Typeflag {
	case tar.TypeDir:
		err := root.Mkdir(name, 0o700)
		if errors.Is(err, fs.ErrExist) {
			return nil
		} else if err != nil {
			return err
		}
		return root.Chmod(name, mode|0o700)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		err = copyHoles(f, r, h.Size)
		err = errors.Join(err, f.Chmod(mode|0o400), f.Close())
		if err != nil || h.ModTime.Unix() <= 0 {
			return err
		}
		return root.Chtimes(name, h.ModTime, h.ModTime)
	case tar.TypeSymlink:
		return root.Symlink(h.Linkname, name)
	case tar.TypeLink:
		return root.Link(path.Clean(strings.TrimLeft(h.Linkname, "/")), name)
	}
	return nil
}
