package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/berth-project/berth"
)

// What bounds the memory that the index of an archive of images takes.
const (
	tarMost  = 1 << 20  // entries
	tarNames = 64 << 20 // bytes of their names
)

// tarFile is an uncompressed archive whose files are read in place.
type tarFile struct {
	f     *os.File
	files map[string]section
	links map[string]string // names that are links to others within the archive
	names int               // bytes of all names
	whole bool              // the archive ends as it should
	root  bool              // it looks like a root file system
}

// section is where a file lies in the archive.
type section struct{ off, size int64 }

// indexTar reads the headers of an archive, not its files.
func indexTar(ctx context.Context, f *os.File) (*tarFile, error) {
	t := &tarFile{f: f, files: map[string]section{}, links: map[string]string{}}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	r := tar.NewReader(f)
	for n := 0; ; n++ {
		hdr, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, badArchive(err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if n > tarMost {
			return nil, fmt.Errorf("%w: it has more than %d entries", berth.ErrInvalid, tarMost)
		}
		if err := t.add(hdr); err != nil {
			return nil, err
		}
	}
	t.whole = endsInZeros(f)
	return t, nil
}

func (t *tarFile) add(hdr *tar.Header) error {
	name := path.Clean("/" + hdr.Name)[1:]
	if t.names += len(hdr.Name) + len(hdr.Linkname); t.names > tarNames {
		return fmt.Errorf("%w: the names of its entries have more than %d bytes", berth.ErrInvalid, tarNames)
	}
	switch hdr.Typeflag {
	case tar.TypeReg:
		off, err := t.f.Seek(0, io.SeekCurrent)
		if err != nil {
			return err
		}
		if !isSparse(hdr) {
			t.files[name] = section{off, hdr.Size}
		}
	case tar.TypeLink:
		t.links[name] = path.Clean("/" + hdr.Linkname)[1:]
	case tar.TypeSymlink: // docker wrote equal layers as links to the first
		t.links[name] = path.Join("/", path.Dir(name), hdr.Linkname)[1:] //nolint:gosec // a key of the index, not a path on this host
	}
	t.root = t.root || name == "etc" || name == "bin" || name == "usr"
	return nil
}

// endsInZeros reports whether an archive ends with the empty block that ends archives.
func endsInZeros(f *os.File) bool {
	st, err := f.Stat()
	if err != nil || st.Size() < 512 {
		return false
	}
	var block [512]byte
	_, err = f.ReadAt(block[:], st.Size()-int64(len(block)))
	return err == nil && block == [512]byte{}
}

func (t *tarFile) open(name string) (io.ReadCloser, int64, error) {
	name = path.Clean("/" + name)[1:]
	for range linkDepth {
		if s, ok := t.files[name]; ok {
			return io.NopCloser(io.NewSectionReader(t.f, s.off, s.size)), s.size, nil
		}
		next, ok := t.links[name]
		if !ok {
			break
		}
		name = next
	}
	return nil, 0, fmt.Errorf("%.200s: %w", name, fs.ErrNotExist)
}

func (t *tarFile) strange() error {
	switch {
	case !t.whole:
		return fmt.Errorf("%w: corrupt archive: %w", berth.ErrInvalid, io.ErrUnexpectedEOF)
	case t.root:
		return fmt.Errorf("%w: it holds a root file system and no image; make one of it with `berth image import`", berth.ErrInvalid)
	}
	return fmt.Errorf("%w: it holds no image: neither manifest.json (docker save) nor index.json (OCI)", berth.ErrInvalid)
}
