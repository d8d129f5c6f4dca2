package image

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-project/berth"
)

// ImportOptions say what the image made of an archive is like.
type ImportOptions struct {
	Platform string            // "" is this machine's
	Config   berth.ImageConfig // how it wants to be run; its Architecture, OS and Variant are Platform's
	Created  time.Time         // zero is none, so that the same archive is the same image
	// Progress, if not nil, hears how much of the archive was read. Of one that is no file, nobody knows how much there is.
	Progress func(berth.Progress)
}

// Watch is the archive, of which Progress is told as it is read.
func (o ImportOptions) Watch(archive io.Reader) io.ReadCloser {
	rest := io.NopCloser(archive)
	if o.Progress == nil {
		return rest
	}
	var size int64
	if f, ok := archive.(*os.File); ok {
		if st, err := f.Stat(); err == nil && st.Mode().IsRegular() {
			size = st.Size()
		}
	}
	return &countingReader{ReadCloser: rest, size: size, progress: newMeter(o.Progress, "archive", size).update}
}

// Import makes an image of one layer from an archive of a root file system: tar, plain or compressed with
// gzip, zstd, bzip2 or xz. An image that had the name before loses it. name may be "": the image then has its
// ID only. Errors: ErrInvalid (name, corrupt archive), ErrExhausted (disk full), ErrUnsupported.
func (s *Store) Import(ctx context.Context, archive io.Reader, name string, opts ImportOptions) (berth.Image, error) {
	want, err := parsePlatform(opts.Platform)
	if err != nil {
		return berth.Image{}, err
	}
	var refs []refRecord
	if name != "" {
		ref, err := ParseRef(name)
		if err != nil {
			return berth.Image{}, err
		}
		if ref.Digest != "" {
			return berth.Image{}, badRef(name, "an image cannot be given a digest as its name")
		}
		refs = append(refs, refRecord{Ref: ref.String(), Platform: want.String()})
	}
	img, err := s.importLayer(ctx, opts.Watch(archive), refs, configFor(want, opts))
	if name == "" {
		name = "archive"
	}
	return img, wrap("import "+name, s.full(err))
}

// configFor is the configuration of an imported image.
func configFor(p platform, opts ImportOptions) *v1.ConfigFile {
	c := opts.Config
	f := &v1.ConfigFile{
		Architecture: p.arch, OS: p.os, Variant: p.variant,
		Created: v1.Time{Time: opts.Created.UTC()},
		Config: v1.Config{
			User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd,
			WorkingDir: c.WorkingDir, StopSignal: c.StopSignal, Labels: c.Labels,
		},
	}
	for _, v := range c.Volumes {
		if f.Config.Volumes == nil {
			f.Config.Volumes = map[string]struct{}{}
		}
		f.Config.Volumes[v] = struct{}{}
	}
	return f
}

func (s *Store) importLayer(ctx context.Context, archive io.ReadCloser, refs []refRecord, config *v1.ConfigFile) (berth.Image, error) {
	work, err := s.newWorkDir()
	if err != nil {
		return berth.Image{}, err
	}
	defer work.remove() //nolint:errcheck // the next process removes what stays
	dir := filepath.Join(work.path, "0")
	rec, err := s.unpackLayer(ctx, func(context.Context) (io.ReadCloser, error) {
		return archive, nil
	}, dir, layerWant{})
	if err != nil {
		return berth.Image{}, err
	}
	diffID, err := v1.NewHash(rec.DiffID)
	if err != nil {
		return berth.Image{}, err
	}
	config.RootFS = v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diffID}}
	body, err := json.Marshal(config)
	if err != nil {
		return berth.Image{}, err
	}
	key := diffID.Hex
	if err := s.claim(ctx, work, []string{key}); err != nil {
		return berth.Image{}, err
	}
	if ok, err := s.haveLayer(key); err != nil {
		return berth.Image{}, err
	} else if !ok {
		if err := s.publish(dir, key); err != nil {
			return berth.Image{}, fmt.Errorf("publish the layer: %w", err)
		}
	}
	r := resolved{id: digestOf(body), config: config, layers: []v1.Descriptor{{}}}
	return s.record(ctx, work, r, []string{key}, refs)
}
