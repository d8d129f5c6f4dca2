package docker

import (
	"archive/tar"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
	"github.com/berth-project/berth/runner/untar"
	"github.com/distribution/reference"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/moby/moby/client"
)

// Load loads the images of an archive as docker save writes it, of an OCI archive, or of a directory in OCI layout.
// What the daemon says of an archive that it cannot read is in the error.
func (im *Images) Load(ctx context.Context, path string, opts image.LoadOptions) ([]berth.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load: %w: %w", kindOfFile(err), err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("load %s: %w: %w", path, kindOfFile(err), err)
	case st.IsDir():
		return im.loadLayout(ctx, path, path, opts)
	case st.Mode().IsRegular() && isOCIArchive(ctx, f):
		return im.loadOCIArchive(ctx, path, f, opts)
	}
	return im.load(ctx, path, f, opts)
}

// LoadReader is Load of a stream.
func (im *Images) LoadReader(ctx context.Context, r io.Reader, opts image.LoadOptions) ([]berth.Image, error) {
	f, err := os.CreateTemp(filepath.Join(im.e.cfg.Dir, runDir), "load-*")
	if err != nil {
		return nil, fmt.Errorf("load: %w: %w", kindOf(err), err)
	}
	defer func() { _ = os.Remove(f.Name()); _ = f.Close() }()
	if _, err := io.Copy(f, r); err != nil {
		return nil, fmt.Errorf("load: %w: %w", kindOf(err), err)
	}
	return im.Load(ctx, f.Name(), opts)
}

func kindOfFile(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return berth.ErrNotFound
	}
	return kindOf(err)
}

// isOCIArchive looks for what tells an OCI archive, which older daemons cannot load, from one of docker save.
func isOCIArchive(ctx context.Context, f *os.File) bool {
	defer func() { _, _ = f.Seek(0, io.SeekStart) }()
	r, err := image.Decompress(ctx, f)
	if err != nil {
		return false
	}
	defer func() { _ = r.Close() }()
	oci := false
	for t := tar.NewReader(r); ; {
		h, err := t.Next()
		if err != nil {
			return oci && errors.Is(err, io.EOF)
		}
		switch filepath.Clean(h.Name) {
		case "manifest.json":
			return false
		case "oci-layout":
			oci = true
		}
	}
}

// loadOCIArchive unpacks an OCI archive, and loads it as a layout.
func (im *Images) loadOCIArchive(ctx context.Context, path string, f *os.File, opts image.LoadOptions) ([]berth.Image, error) {
	dir, err := os.MkdirTemp(filepath.Join(im.e.cfg.Dir, runDir), "oci-*")
	if err != nil {
		return nil, fmt.Errorf("load %s: %w: %w", path, kindOf(err), err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	r, err := image.Decompress(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w: %w", path, berth.ErrInvalid, err)
	}
	defer func() { _ = r.Close() }()
	if err := untar.Into(r, root); err != nil {
		return nil, fmt.Errorf("load %s: %w: %w", path, kindOfArchive(err), err)
	}
	return im.loadLayout(ctx, path, dir, opts)
}

// refAnnotation names an image of a layout.
const refAnnotation = "org.opencontainers.image.ref.name"

// loadLayout loads a directory in OCI layout, as the archive of docker save that it amounts to.
func (im *Images) loadLayout(ctx context.Context, path, dir string, opts image.LoadOptions) ([]berth.Image, error) {
	want, err := im.platform(ctx, opts.Platform)
	if err != nil {
		return nil, err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w: it is no OCI layout: %w", path, berth.ErrInvalid, err)
	}
	images := map[name.Reference]v1.Image{}
	if err := pick(index, want, "", images); err != nil {
		return nil, fmt.Errorf("load %s: %w: %w", path, berth.ErrInvalid, err)
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("load %s: %w: it holds no image for %s", path, berth.ErrNotFound, want)
	}
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(tarball.MultiRefWrite(images, w)) }() // ends with the reader
	defer func() { _ = r.Close() }()
	return im.load(ctx, path, r, opts)
}

// pick finds the images of an index, and of those in it, that are for a platform.
func pick(index v1.ImageIndex, want platform, named string, to map[name.Reference]v1.Image) error {
	m, err := index.IndexManifest()
	if err != nil {
		return err
	}
	for _, d := range m.Manifests {
		ref := cmp.Or(d.Annotations[refAnnotation], named)
		switch {
		case d.MediaType.IsIndex():
			inner, err := index.ImageIndex(d.Digest)
			if err == nil {
				err = pick(inner, want, ref, to)
			}
			if err != nil {
				return err
			}
		case d.MediaType.IsImage():
			img, err := index.Image(d.Digest)
			if err != nil {
				return err
			}
			cfg, err := img.ConfigFile()
			if err != nil {
				return err
			}
			if cfg.OS != want.os || cfg.Architecture != want.arch {
				continue
			}
			tag, err := name.ParseReference(ref)
			if err != nil || !strings.ContainsAny(ref, "/:") { // a bare tag, or none
				if tag, err = name.NewDigest("localhost/image@" + d.Digest.String()); err != nil {
					return err
				}
			}
			to[tag] = img
		}
	}
	return nil
}

func (im *Images) platform(ctx context.Context, asked string) (platform, error) {
	if asked != "" {
		return parsePlatform(asked), nil
	}
	host, err := im.e.daemon(ctx)
	if err != nil {
		return platform{}, err
	}
	return host.platform, nil
}

// load gives an archive of docker save to the daemon.
func (im *Images) load(ctx context.Context, what string, r io.Reader, opts image.LoadOptions) ([]berth.Image, error) {
	want, err := im.platform(ctx, opts.Platform)
	if err != nil {
		return nil, err
	}
	refs, err := im.e.loadArchive(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", what, err)
	}
	if len(refs) == 0 {
		return nil, fmt.Errorf("load %s: %w: it holds no image", what, berth.ErrInvalid)
	}
	if opts.Name != "" {
		if refs, err = im.rename(ctx, refs, opts.Name); err != nil {
			return nil, fmt.Errorf("load %s: %w", what, err)
		}
	}
	var all []berth.Image
	for _, ref := range refs {
		img, there, err := im.e.imageFor(ctx, ref, want)
		if err != nil {
			return nil, err
		}
		if found := platformOf(img); opts.Platform != "" && (found.os != want.os || found.arch != want.arch) {
			return nil, fmt.Errorf("load %s: %w for %s: the daemon loaded %s, for %s", what, berth.ErrNotFound, want, ref, there)
		}
		if strings.HasPrefix(ref, "sha256:") {
			img.Ref = ""
		}
		im.e.claimImage(img, false)
		all = append(all, img)
	}
	return all, nil
}

// loadArchive answers the names of what the daemon has loaded, or the IDs of what has none. The daemon's stream is
// read to its end: what went wrong may come last.
func (e *Engine) loadArchive(ctx context.Context, r io.Reader) ([]string, error) {
	// Neither taking the archive nor telling of it may stand still: a deadline of the whole would depend on its size.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stalled := time.AfterFunc(e.cfg.Stall, func() {
		cancel(fmt.Errorf("%w: the daemon has neither taken nor told anything for %v", berth.ErrUnavailable, e.cfg.Stall))
	})
	defer stalled.Stop()
	res, err := e.api().ImageLoad(ctx, moving{r, func() { stalled.Reset(e.cfg.Stall) }}, client.ImageLoadWithQuiet(false))
	if err != nil {
		return nil, wrap(ctx, "daemon", err)
	}
	defer func() { _ = res.Close() }()
	var refs []string
	for dec := json.NewDecoder(moving{res, func() { stalled.Reset(e.cfg.Stall) }}); ; {
		var m struct {
			Stream string `json:"stream"`
			Error  string `json:"error"`
		}
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF):
			return refs, nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("daemon: %w", context.Cause(ctx))
		case err != nil:
			return nil, fmt.Errorf("daemon: %w: its answer makes no sense: %w", berth.ErrUnavailable, err)
		case m.Error != "":
			return nil, wrapAs(ctx, berth.ErrInvalid, "daemon", errors.New(m.Error))
		}
		for line := range strings.Lines(m.Stream) {
			line = strings.TrimSpace(line)
			if id, ok := strings.CutPrefix(line, "Loaded image ID: "); ok {
				refs = append(refs, id)
			} else if ref, ok := strings.CutPrefix(line, "Loaded image: "); ok {
				refs = append(refs, wholeRef(ref))
			} else if many, ok := strings.CutPrefix(line, "Loaded image(s): "); ok { // Podman's
				for ref := range strings.SplitSeq(many, ",") {
					refs = append(refs, wholeRef(ref))
				}
			}
		}
	}
}

// moving calls moved with each read that brings something.
type moving struct {
	io.Reader
	moved func()
}

func (m moving) Read(p []byte) (int, error) {
	n, err := m.Reader.Read(p)
	if n > 0 {
		m.moved()
	}
	return n, err
}

// wholeRef is a reference with all that goes without saying.
func wholeRef(s string) string {
	if named, err := parseRef(s); err == nil && !strings.HasPrefix(s, "sha256:") {
		return named.String()
	}
	return s
}

// rename gives the one image that was loaded a name in place of those it came with.
func (im *Images) rename(ctx context.Context, refs []string, to string) ([]string, error) {
	named, err := parseRef(to)
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, ref := range refs {
		img, _, err := im.e.imageFor(ctx, ref, platform{})
		if err != nil {
			return nil, err
		}
		ids[img.ID] = true
	}
	if len(ids) > 1 {
		return nil, fmt.Errorf("name %s: %w: the archive holds %d images", to, berth.ErrInvalid, len(ids))
	}
	cctx, cancel := im.e.call(ctx)
	defer cancel()
	if _, err := im.e.api().ImageTag(cctx, client.ImageTagOptions{Source: refs[0], Target: named.String()}); err != nil {
		return nil, wrap(cctx, "name "+to, err)
	}
	for _, ref := range refs {
		if old, err := parseRef(ref); err == nil && old.String() != named.String() && !strings.HasPrefix(ref, "sha256:") {
			if _, err := im.e.api().ImageRemove(cctx, ref, client.ImageRemoveOptions{}); err != nil && !is(err, berth.ErrNotFound) {
				return nil, wrap(cctx, "name "+to, err)
			}
		}
	}
	return []string{named.String()}, nil
}

// Import makes an image of one layer from an archive of a root file system. The daemon's own import takes neither a
// stop signal nor all compressions; so it is given the archive of the image.
func (im *Images) Import(ctx context.Context, archive io.Reader, as string, opts image.ImportOptions) (berth.Image, error) {
	want, err := im.platform(ctx, opts.Platform)
	if err != nil {
		return berth.Image{}, err
	}
	tag := ""
	if as != "" {
		named, err := parseRef(as)
		if err != nil {
			return berth.Image{}, err
		}
		if _, ok := named.(reference.Digested); ok {
			return berth.Image{}, fmt.Errorf("image %q: %w: an image cannot be given a digest as its name", as, berth.ErrInvalid)
		}
		tag = named.String()
	}
	layer, err := os.CreateTemp(filepath.Join(im.e.cfg.Dir, runDir), "layer-*")
	if err != nil {
		return berth.Image{}, fmt.Errorf("import: %w: %w", kindOf(err), err)
	}
	defer func() { _ = os.Remove(layer.Name()); _ = layer.Close() }()
	r, err := image.Decompress(ctx, opts.Watch(archive))
	if err != nil {
		return berth.Image{}, fmt.Errorf("import: %w: %w", berth.ErrInvalid, err)
	}
	defer func() { _ = r.Close() }()
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(layer, sum), r)
	if err == nil {
		_, err = layer.Seek(0, io.SeekStart)
	}
	if err == nil {
		err = checkTar(layer)
	}
	if err != nil {
		return berth.Image{}, fmt.Errorf("import: %w: %w", kindOfArchive(err), err)
	}
	diff, err := v1.NewHash("sha256:" + hex.EncodeToString(sum.Sum(nil)))
	if err != nil {
		return berth.Image{}, err
	}
	c := opts.Config
	config := v1.ConfigFile{
		Architecture: want.arch, OS: want.os, Variant: want.variant, RootFS: v1.RootFS{Type: "layers", DiffIDs: []v1.Hash{diff}},
		Created: v1.Time{Time: opts.Created},
		Config: v1.Config{
			User: c.User, Env: c.Env, Entrypoint: c.Entrypoint, Cmd: c.Cmd, WorkingDir: c.WorkingDir, StopSignal: c.StopSignal, Labels: c.Labels,
		},
	}
	pr, pw := io.Pipe()
	go func() { _ = pw.CloseWithError(writeArchive(pw, config, tag, layer, size)) }() // ends with the reader
	defer func() { _ = pr.Close() }()
	refs, err := im.e.loadArchive(ctx, pr)
	if err != nil {
		return berth.Image{}, fmt.Errorf("import: %w", err)
	}
	if len(refs) == 0 {
		return berth.Image{}, fmt.Errorf("import: %w: the daemon does not say what it has loaded", berth.ErrUnavailable)
	}
	img, _, err := im.e.imageFor(ctx, refs[0], want)
	if err == nil {
		im.e.claimImage(img, false)
	}
	return img, err
}

func kindOfArchive(err error) error {
	if errors.Is(err, tar.ErrHeader) || errors.Is(err, io.ErrUnexpectedEOF) {
		return berth.ErrInvalid
	}
	return kindOf(err)
}

// checkTar reads an archive's headers, to its end, and goes back to its beginning.
func checkTar(f *os.File) error {
	for t := tar.NewReader(f); ; {
		if _, err := t.Next(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// writeArchive writes an image of one layer as docker save does.
func writeArchive(w io.Writer, config v1.ConfigFile, tag string, layer io.Reader, size int64) error {
	raw, err := json.Marshal(config)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(raw)
	id := hex.EncodeToString(sum[:])
	m := tarball.Manifest{{Config: id + ".json", Layers: []string{"layer.tar"}}}
	if tag != "" {
		m[0].RepoTags = []string{tag}
	}
	manifest, err := json.Marshal(m)
	if err != nil {
		return err
	}
	t := tar.NewWriter(w)
	for _, f := range []struct {
		name string
		body []byte
	}{{id + ".json", raw}, {"manifest.json", manifest}} {
		if err := t.WriteHeader(&tar.Header{Name: f.name, Mode: 0o644, Size: int64(len(f.body))}); err != nil {
			return err
		}
		if _, err := t.Write(f.body); err != nil {
			return err
		}
	}
	if err := t.WriteHeader(&tar.Header{Name: "layer.tar", Mode: 0o644, Size: size}); err != nil {
		return err
	}
	if _, err := io.Copy(t, layer); err != nil {
		return err
	}
	return t.Close()
}
