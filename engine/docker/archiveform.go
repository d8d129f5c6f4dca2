package docker

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
)

// form is what an archive of images is.
type form int

const (
	unknownForm form = iota // berth cannot read it to its end: the daemon says what is wrong with it, or can
	dockerForm              // as docker save writes it
	ociForm                 // OCI's alone, which older daemons cannot load
)

// formOf looks for what tells archives of images apart. One that is whole and none is refused: what daemons say of it is
// about files of their own.
func formOf(ctx context.Context, f *os.File) (form, error) {
	defer func() { _, _ = f.Seek(0, io.SeekStart) }()
	r, err := image.Decompress(ctx, f)
	if err != nil {
		return unknownForm, nil // the daemon may have what this lacks
	}
	defer func() { _ = r.Close() }()
	end := &lastBlock{Reader: r}
	oci, root := false, false
	for t := tar.NewReader(end); ; {
		h, err := t.Next()
		switch {
		case errors.Is(err, io.EOF) && oci:
			return ociForm, nil
		case errors.Is(err, io.EOF):
			return unknownForm, strange(end, root)
		case err != nil:
			return unknownForm, nil // the daemon says it
		}
		switch file := inArchive(h); file {
		case "manifest.json":
			return dockerForm, nil
		case "oci-layout", "index.json":
			oci = true
		default:
			top, _, _ := strings.Cut(file, "/")
			root = root || top == "etc" || top == "bin" || top == "usr"
		}
	}
}

// strange says why an archive that ended is none of images.
func strange(end *lastBlock, root bool) error {
	switch {
	case end.size == 0:
		return fmt.Errorf("%w: it is no image archive: it is empty", berth.ErrInvalid)
	case end.block != [len(end.block)]byte{}:
		return fmt.Errorf("%w: corrupt archive: %w", berth.ErrInvalid, io.ErrUnexpectedEOF)
	case root:
		return fmt.Errorf("%w: it is no image archive: it holds a root file system; make an image of it with `berth image import`", berth.ErrInvalid)
	}
	return fmt.Errorf("%w: it is no image archive: it holds neither manifest.json (docker save) nor index.json (OCI)", berth.ErrInvalid)
}

// lastBlock keeps the last block that was read, which is empty where an archive ends as it should.
type lastBlock struct {
	io.Reader
	block [512]byte
	size  int64
}

func (l *lastBlock) Read(p []byte) (int, error) {
	n, err := l.Reader.Read(p)
	last := p[max(0, n-len(l.block)):n]
	copy(l.block[:], l.block[len(last):])
	copy(l.block[len(l.block)-len(last):], last)
	l.size += int64(n)
	return n, err
}
