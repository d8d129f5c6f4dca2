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
func Into(r io.Reader, root *os.Root) error { return each(r, root, plain, false) }

// Whole is Into for what comes by a connection, which may break between two files: an archive that ends without the mark
// of its end wraps berth.ErrUnavailable.
func Whole(r io.Reader, root *os.Root) error { return each(r, root, plain, true) }

func plain(h *tar.Header) (bool, error) {
	if Special(h) {
		return false, fmt.Errorf("unpack %s: %w: it is neither a file nor a directory", h.Name, berth.ErrUnsupported)
	}
	return true, nil
}

// Special reports whether an entry is neither a file, a directory nor a link.
func Special(h *tar.Header) bool {
	return h.Typeflag == tar.TypeFifo || h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock
}

// Each is Whole where take is asked about each entry, which it may name otherwise. What it does not take is left out, and
// so is what is Special; its error ends the unpacking.
func Each(r io.Reader, root *os.Root, take func(*tar.Header) (bool, error)) error {
	return each(r, root, take, true)
}

func each(r io.Reader, root *os.Root, take func(*tar.Header) (bool, error), whole bool) error {
	end := &endMark{r: r}
	for tr := tar.NewReader(end); ; {
		h, err := next(tr, end)
		if errors.Is(err, io.EOF) && (!whole || end.zeros >= endMarkSize) {
			return nil
		} else if err != nil {
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
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

// endMarkSize is how many zeros end an archive, in bytes.
const endMarkSize = 2 * 512

// endMark counts the zeros at the end of what was read of an archive, without those of files.
type endMark struct {
	r     io.Reader
	files bool // what is read now may be a file
	zeros int
}

func (e *endMark) Read(p []byte) (int, error) {
	n, err := e.r.Read(p)
	if e.files {
		return n, err
	}
	rest := len(bytes.TrimRight(p[:n], "\x00"))
	if rest > 0 {
		e.zeros = 0
	}
	e.zeros += n - rest
	return n, err
}

// next goes on to the next file of an archive.
func next(tr *tar.Reader, end *endMark) (*tar.Header, error) {
	if end.files {
		if _, err := io.Copy(io.Discard, tr); err != nil { // what was not taken of it
			return nil, err
		}
	}
	end.files, end.zeros = false, 0
	h, err := tr.Next()
	end.files = true
	return h, err
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
