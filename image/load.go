package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/berth-project/berth"
)

// The names by which a layout's index calls its images: containerd's, and the specification's.
const (
	annotationName = "io.containerd.image.name"
	annotationRef  = "org.opencontainers.image.ref.name"
)

// LoadOptions say how an archive is loaded.
type LoadOptions struct {
	Name     string // for the archive's image, instead of the names that the archive has; only where it holds one
	Platform string // which of an image's platforms; "" is this machine's, or the only one
	Progress func(berth.Progress)
}

// Load loads the images of an archive as `docker save` and `podman save` write it, of an OCI archive, both
// plain or compressed, or of a directory in OCI layout. A compressed archive is first inflated into the
// store's directory, for as long as the loading takes. An image without a name has its ID only.
// Errors: ErrNotFound (no such file, not for the platform), ErrInvalid (corrupt, cut off, another format),
// ErrExhausted (disk full).
func (s *Store) Load(ctx context.Context, path string, opts LoadOptions) ([]berth.Image, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, wrap("load", err)
	}
	if st.IsDir() {
		root, err := os.OpenRoot(path)
		if err != nil {
			return nil, wrap("load "+path, err)
		}
		defer root.Close()
		images, err := s.loadFrom(ctx, layoutDir{root}, opts)
		return images, wrap("load "+path, s.full(err))
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, wrap("load", err)
	}
	defer f.Close()
	load := s.loadFile
	if !st.Mode().IsRegular() { // a pipe, such as a shell's <(…)
		load = func(ctx context.Context, f *os.File, opts LoadOptions) ([]berth.Image, error) {
			return s.spool(ctx, f, opts)
		}
	}
	images, err := load(ctx, f, opts)
	return images, wrap("load "+path, s.full(err))
}

// LoadReader is Load for an archive that can be read only once, such as a pipe; it is first copied into the
// store's directory.
func (s *Store) LoadReader(ctx context.Context, r io.Reader, opts LoadOptions) ([]berth.Image, error) {
	images, err := s.spool(ctx, r, opts)
	return images, wrap("load", s.full(err))
}

// spool inflates an archive into a file and loads that.
func (s *Store) spool(ctx context.Context, r io.Reader, opts LoadOptions) ([]berth.Image, error) {
	work, err := s.newWorkDir()
	if err != nil {
		return nil, err
	}
	defer work.remove() //nolint:errcheck // the next process removes what stays
	plain, err := decompress(ctx, r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	f, err := os.OpenFile(filepath.Join(work.path, "archive"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := copyContext(ctx, f, plain); err != nil {
		return nil, err
	}
	return s.loadTar(ctx, f, opts)
}

// copyContext copies until r or ctx ends. What cannot be read is the archive's fault.
func copyContext(ctx context.Context, w io.Writer, r io.Reader) error {
	buf := make([]byte, pipeSize)
	for ctx.Err() == nil {
		n, err := fillBuffer(r, buf)
		if _, werr := w.Write(buf[:n]); werr != nil {
			return werr
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return badArchive(err)
		}
	}
	return context.Cause(ctx)
}

// loadFile loads an archive in place, unless it is compressed.
func (s *Store) loadFile(ctx context.Context, f *os.File, opts LoadOptions) ([]berth.Image, error) {
	var head [6]byte
	n, err := f.ReadAt(head[:], 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if compression(head[:n]) != "" {
		return s.spool(ctx, f, opts)
	}
	return s.loadTar(ctx, f, opts)
}

func (s *Store) loadTar(ctx context.Context, f *os.File, opts LoadOptions) ([]berth.Image, error) {
	t, err := indexTar(ctx, f)
	if err != nil {
		return nil, err
	}
	return s.loadFrom(ctx, t, opts)
}

// loadFrom loads all images of a container. docker's manifest is preferred where both are: it has names.
func (s *Store) loadFrom(ctx context.Context, c container, opts LoadOptions) ([]berth.Image, error) {
	want, err := parsePlatform(opts.Platform)
	if err != nil {
		return nil, err
	}
	l := &loader{store: s, from: c, opts: opts, want: want}
	if l.opts.Progress == nil {
		l.opts.Progress = func(berth.Progress) {}
	}
	if body, err := readSmall(c, "manifest.json", manifestMax); err == nil {
		return l.docker(ctx, body)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	body, err := readSmall(c, "index.json", manifestMax)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, c.strange()
	}
	if err != nil {
		return nil, err
	}
	return l.layout(ctx, body)
}

// loader loads the images of one container.
type loader struct {
	store *Store
	from  container
	opts  LoadOptions
	want  platform
}

// docker loads what docker's manifest.json lists.
func (l *loader) docker(ctx context.Context, body []byte) ([]berth.Image, error) {
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return nil, fmt.Errorf("%w: manifest.json: %w", berth.ErrInvalid, err)
	}
	var images []berth.Image
	for _, m := range list {
		r := resolved{layers: make([]v1.Descriptor, len(m.Layers))}
		for i, name := range m.Layers {
			r.layers[i] = l.describe(name)
		}
		config, err := readSmall(l.from, m.Config, configMax)
		if err != nil {
			return nil, l.lacks(m.Config, err)
		}
		if err := r.setConfig(config, l.wanted()); err != nil {
			return nil, err
		}
		names, err := l.names(m.RepoTags, len(list))
		if err != nil {
			return nil, err
		}
		img, err := l.install(ctx, r, names, m.Layers)
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	return images, nil
}

// wanted is the platform that was asked for; any, where none was.
func (l *loader) wanted() platform {
	if l.opts.Platform == "" {
		return platform{}
	}
	return l.want
}

// describe says what is known of a layer's file. Newer archives name it by its digest.
func (l *loader) describe(name string) v1.Descriptor {
	var d v1.Descriptor
	if hexID, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && digestForm.MatchString("sha256:"+hexID) {
		d.Digest = v1.Hash{Algorithm: "sha256", Hex: hexID}
	}
	if r, size, err := l.from.open(name); err == nil {
		d.Size = size
		r.Close()
	}
	return d
}

// lacks says that a file which the archive names is not in it.
func (l *loader) lacks(name string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: corrupt archive: it names %.200q, which it does not hold", berth.ErrInvalid, name)
	}
	return err
}

// names are the names for an image: the caller's, else the archive's.
func (l *loader) names(own []string, images int) ([]string, error) {
	if l.opts.Name != "" {
		if images != 1 {
			return nil, fmt.Errorf("%w: it holds %d images, which cannot all be named %s", berth.ErrInvalid, images, l.opts.Name)
		}
		own = []string{l.opts.Name}
	}
	var names []string
	for _, n := range own {
		ref, err := ParseRef(n)
		if err != nil {
			return nil, err
		}
		names = append(names, ref.String())
	}
	return names, nil
}

// install installs an image whose layers lie in the container under the given paths.
func (l *loader) install(ctx context.Context, r resolved, names, paths []string) (berth.Image, error) {
	p := platformOf(r.config)
	if l.want.rank(p) > 0 || r.config.Architecture == "" {
		p = l.want
	}
	var refs []refRecord
	for _, n := range names {
		refs = append(refs, refRecord{Ref: n, Platform: p.String()})
	}
	open := func(_ context.Context, i int, progress func(done, total int64)) (io.ReadCloser, error) {
		f, size, err := l.from.open(paths[i])
		if err != nil {
			return nil, l.lacks(paths[i], err)
		}
		return &countingReader{ReadCloser: f, size: size, progress: progress}, nil
	}
	return l.store.install(ctx, r, refs, open, l.opts.Progress)
}

// countingReader reports how far it was read.
type countingReader struct {
	io.ReadCloser
	done, size int64
	progress   func(done, total int64)
}

func (c *countingReader) Read(b []byte) (int, error) {
	n, err := c.ReadCloser.Read(b)
	c.done += int64(n)
	c.progress(c.done, c.size)
	return n, err
}

// layout loads what an OCI layout's index.json lists.
func (l *loader) layout(ctx context.Context, body []byte) ([]berth.Image, error) {
	var index v1.IndexManifest
	if err := json.Unmarshal(body, &index); err != nil {
		return nil, fmt.Errorf("%w: index.json: %w", berth.ErrInvalid, err)
	}
	if len(index.Manifests) == 0 {
		return nil, fmt.Errorf("%w: its index.json lists no image", berth.ErrInvalid)
	}
	groups, order := map[string][]v1.Descriptor{}, []string{}
	for _, d := range index.Manifests {
		n := nameOf(d)
		if groups[n] == nil {
			order = append(order, n)
		}
		groups[n] = append(groups[n], d)
	}
	var images []berth.Image
	for _, n := range order {
		r, err := l.resolveGroup(ctx, groups[n])
		if err != nil {
			return nil, err
		}
		own := []string{n}
		if n == "" {
			own = nil
		}
		names, err := l.names(own, len(order))
		if err != nil {
			return nil, err
		}
		paths := make([]string, len(r.layers))
		for i, d := range r.layers {
			paths[i] = blobPath(d.Digest.String())
		}
		img, err := l.install(ctx, r, names, paths)
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	return images, nil
}

// nameOf is the reference that a layout gives to an image; "" where it gives none or a bare tag.
func nameOf(d v1.Descriptor) string {
	for _, key := range []string{annotationName, annotationRef} {
		if n := d.Annotations[key]; strings.ContainsAny(n, "/:") {
			if _, err := ParseRef(n); err == nil {
				return n
			}
		}
	}
	return ""
}

// resolveGroup chooses among the descriptors of one name. A single one is taken whatever it is made for,
// unless a platform was asked for.
func (l *loader) resolveGroup(ctx context.Context, group []v1.Descriptor) (resolved, error) {
	body, err := json.Marshal(v1.IndexManifest{SchemaVersion: 2, Manifests: group})
	if err != nil {
		return resolved{}, err
	}
	r, err := resolve(ctx, l, "", body, l.want)
	if errors.Is(err, berth.ErrNotFound) && l.opts.Platform == "" {
		if any, anyErr := resolve(ctx, l, "", body, platform{}); anyErr == nil {
			return any, nil
		}
	}
	return r, err
}

func blobPath(digest string) string { return path.Join("blobs", "sha256", hexOf(digest)) }

func (l *loader) manifest(_ context.Context, digest string) ([]byte, error) {
	return l.small(digest, manifestMax)
}

func (l *loader) config(_ context.Context, digest string, _ int64) ([]byte, error) {
	return l.small(digest, configMax)
}

// small reads a blob whole. Only digests of the known form become paths.
func (l *loader) small(digest string, limit int64) ([]byte, error) {
	if !digestForm.MatchString(digest) {
		return nil, fmt.Errorf("%w: %.100q is no sha256 digest", berth.ErrInvalid, digest)
	}
	b, err := readSmall(l.from, blobPath(digest), limit)
	if err != nil {
		return nil, l.lacks(blobPath(digest), err)
	}
	return b, nil
}
