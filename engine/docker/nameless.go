package docker

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// An archive whose image is to have another name is given to the daemon without the names that it has: the daemon would take
// these from the images that have them, and nothing that ends in between could give them back.

// listMax bounds a list of images in an archive, in bytes.
const listMax = 4 << 20

// severalError is that of an archive which one name is asked for.
func severalError(as string, n int) error {
	return fmt.Errorf("name %s: %w: the archive holds %d images", as, berth.ErrInvalid, n)
}

// loadNameless gives an archive of docker save to the daemon without its names, for an image that is to be named as.
func (e *Engine) loadNameless(ctx context.Context, archive io.Reader, as string) ([]string, error) {
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() { // ends with the reader
		err := nameless(ctx, pw, archive, as)
		_ = pw.CloseWithError(err)
		written <- err
	}()
	refs, err := e.loadArchive(ctx, pr)
	_ = pr.Close()
	// What is wrong with the archive is told rather than what the daemon makes of its sudden end.
	if werr := <-written; werr != nil && !errors.Is(werr, io.ErrClosedPipe) && ctx.Err() == nil {
		return nil, werr
	}
	return refs, err
}

// nameless copies an archive of docker save, plain, without the names of its image. One that holds several is not written to its end, and
// so not loaded.
func nameless(ctx context.Context, w io.Writer, archive io.Reader, as string) error {
	r, err := image.Decompress(ctx, archive)
	if err != nil {
		return badArchive(err)
	}
	defer func() { _ = r.Close() }()
	held := map[string]int{} // the images by the list that has them
	in, out := tar.NewReader(r), tar.NewWriter(w)
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return badArchive(err)
		}
		body := io.Reader(in)
		switch file := inArchive(h); file {
		case "repositories": // the names once more, for Docker before 1.10
			continue
		case "manifest.json", "index.json":
			raw, n, err := unnamed(file, h, in)
			if err != nil {
				return fmt.Errorf("%s: %w", file, badArchive(err))
			}
			held[file], h.Size, body = n, int64(len(raw)), bytes.NewReader(raw)
		}
		if err := copyEntry(out, h, body); err != nil {
			return err
		}
	}
	// Of an image for several platforms manifest.json may have each, and index.json the one.
	n, ok := held["index.json"]
	if !ok {
		n = held["manifest.json"]
	}
	if n > 1 {
		return severalError(as, n)
	}
	return out.Close()
}

// inArchive is where an entry lies in its archive.
func inArchive(h *tar.Header) string { return path.Clean("/" + h.Name)[1:] }

// copyEntry writes what of an entry daemons ask for.
func copyEntry(out *tar.Writer, h *tar.Header, body io.Reader) error {
	kind := h.Typeflag
	switch kind {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeGNUSparse: // it is read with its holes filled
		kind = tar.TypeReg
	}
	if err := out.WriteHeader(&tar.Header{Typeflag: kind, Name: h.Name, Linkname: h.Linkname, Size: h.Size, Mode: h.Mode, ModTime: h.ModTime}); err != nil {
		return err
	}
	if _, err := io.Copy(out, body); err != nil {
		return badArchive(err)
	}
	return nil
}

// badArchive gives an error of an archive, or of the pipe that it is written to, its kind: what is no fault of this machine's is the archive's.
func badArchive(err error) error {
	kind := kindOfArchive(err)
	if _, ofFile := errors.AsType[*fs.PathError](err); !ofFile && errors.Is(kind, berth.ErrUnavailable) {
		kind = berth.ErrInvalid
	}
	if errors.Is(err, kind) {
		return err
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// unnamed reads docker's or OCI's list of the images in an archive, and answers it without their names, and how many they are.
func unnamed(file string, h *tar.Header, r io.Reader) (list []byte, n int, err error) {
	if h.Typeflag != tar.TypeReg || h.Size > listMax {
		return nil, 0, fmt.Errorf("%w: it is no regular file of at most %d bytes", berth.ErrInvalid, listMax)
	}
	raw, err := io.ReadAll(r)
	if err != nil {
		return nil, 0, err
	}
	if file == "manifest.json" {
		var images []object
		if err := json.Unmarshal(raw, &images); err != nil {
			return nil, 0, err
		}
		for _, img := range images {
			img.remove("RepoTags")
		}
		list, err = json.Marshal(images)
		return list, different(images, "Config"), err
	}
	var index object
	var images []object
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, 0, err
	}
	if err := json.Unmarshal(index["manifests"], &images); err != nil {
		return nil, 0, fmt.Errorf("manifests: %w", err)
	}
	for _, img := range images {
		img.remove("annotations")
	}
	if index["manifests"], err = json.Marshal(images); err != nil {
		return nil, 0, err
	}
	list, err = json.Marshal(index)
	return list, different(images, "digest"), err
}

// object is one of JSON, of which most is copied as it is.
type object map[string]json.RawMessage

// remove removes a field, in whichever case it is written, as Go's reader takes it.
func (o object) remove(field string) {
	maps.DeleteFunc(o, func(name string, _ json.RawMessage) bool { return strings.EqualFold(name, field) })
}

// different is how many values a field has.
func different(all []object, field string) int {
	values := map[string]bool{}
	for _, o := range all {
		values[string(o[field])] = true
	}
	return len(values)
}

// byDigest are a layout's images without names.
func byDigest(images map[name.Reference]v1.Image) (map[name.Reference]v1.Image, error) {
	all := map[name.Reference]v1.Image{}
	for _, img := range images {
		digest, err := img.Digest()
		if err != nil {
			return nil, err
		}
		ref, err := name.NewDigest(noName + digest.String())
		if err != nil {
			return nil, err
		}
		all[ref] = img
	}
	return all, nil
}
