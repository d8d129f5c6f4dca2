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
// What the daemon says of an archive that it cannot read is in the error. Where the image is given a name, those that the
// archive has are not looked at: what the daemon has under them stays.
func (im *Images) Load(ctx context.Context, path string, opts image.LoadOptions) ([]berth.Image, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("load: %w: %w", kindOfFile(err), err)
	}
	defer func() { _ = f.Close() }()
	st, err := f.Stat()
	what := "load " + path
	switch {
	case err != nil:
		return nil, fmt.Errorf("%s: %w: %w", what, kindOfFile(err), err)
	case st.IsDir():
		return im.loadLayout(ctx, what, path, opts)
	case !st.Mode().IsRegular(): // a pipe, such as a shell's <(…)
		return im.spool(ctx, what, f, opts)
	}
	return im.loadFile(ctx, what, f, opts)
}

// LoadReader is Load of a stream.
func (im *Images) LoadReader(ctx context.Context, r io.Reader, opts image.LoadOptions) ([]berth.Image, error) {
	return im.spool(ctx, "load", r, opts)
}

// spool loads what can be read only once.
func (im *Images) spool(ctx context.Context, what string, r io.Reader, opts image.LoadOptions) ([]berth.Image, error) {
	f, err := os.CreateTemp(filepath.Join(im.e.cfg.Dir, runDir), "load-*")
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, kindOf(err), err)
	}
	defer func() { _ = os.Remove(f.Name()); _ = f.Close() }()
	if _, err = io.Copy(f, r); err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, kindOf(err), err)
	}
	return im.loadFile(ctx, what, f, opts)
}

// loadFile loads the images of an archive.
func (im *Images) loadFile(ctx context.Context, what string, f *os.File, opts image.LoadOptions) ([]berth.Image, error) {
	switch form, err := formOf(ctx, f); {
	case err != nil:
		return nil, fmt.Errorf("%s: %w", what, err)
	case form == ociForm:
		return im.loadOCIArchive(ctx, what, f, opts)
	case opts.Name != "":
		return im.load(ctx, what, opts, func() ([]string, error) { return im.e.loadNameless(ctx, f, opts.Name) })
	}
	return im.load(ctx, what, opts, func() ([]string, error) { return im.e.loadArchive(ctx, f) })
}

func kindOfFile(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return berth.ErrNotFound
	}
	return kindOf(err)
}

// loadOCIArchive unpacks an OCI archive, and loads it as a layout.
func (im *Images) loadOCIArchive(ctx context.Context, what string, f *os.File, opts image.LoadOptions) ([]berth.Image, error) {
	dir, err := os.MkdirTemp(filepath.Join(im.e.cfg.Dir, runDir), "oci-*")
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, kindOf(err), err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	r, err := image.Decompress(ctx, f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, berth.ErrInvalid, err)
	}
	defer func() { _ = r.Close() }()
	if err := untar.Into(r, root); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, kindOfArchive(err), err)
	}
	return im.loadLayout(ctx, what, dir, opts)
}

// refAnnotation names an image of a layout.
const refAnnotation = "org.opencontainers.image.ref.name"

// noName stands for the name of an image that has none.
const noName = "localhost/image@"

// loadLayout loads a directory in OCI layout, as the archive of docker save that it amounts to.
func (im *Images) loadLayout(ctx context.Context, what, dir string, opts image.LoadOptions) ([]berth.Image, error) {
	want, err := im.platform(ctx, opts.Platform)
	if err != nil {
		return nil, err
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: it is no OCI layout: %w", what, berth.ErrInvalid, err)
	}
	images := map[name.Reference]v1.Image{}
	if err := pick(index, want, "", images); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", what, berth.ErrInvalid, err)
	}
	if len(images) == 0 {
		return nil, fmt.Errorf("%s: %w: it holds no image for %s", what, berth.ErrNotFound, want)
	}
	if opts.Name != "" {
		if images, err = byDigest(images); err != nil {
			return nil, fmt.Errorf("%s: %w: %w", what, berth.ErrInvalid, err)
		}
		if len(images) > 1 {
			return nil, fmt.Errorf("%s: %w", what, severalError(opts.Name, len(images)))
		}
	}
	r, w := io.Pipe()
	go func() { _ = w.CloseWithError(tarball.MultiRefWrite(images, w)) }() // ends with the reader
	defer func() { _ = r.Close() }()
	return im.load(ctx, what, opts, func() ([]string, error) { return im.e.loadArchive(ctx, r) })
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
				if tag, err = name.NewDigest(noName + d.Digest.String()); err != nil {
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

// load has give give an archive to the daemon. An image that is to have a name is given it when all else is right, lest it be
// taken from another in vain.
func (im *Images) load(ctx context.Context, what string, opts image.LoadOptions, give func() ([]string, error)) ([]berth.Image, error) {
	want, err := im.platform(ctx, opts.Platform)
	if err != nil {
		return nil, err
	}
	var named reference.Named
	if opts.Name != "" {
		if named, err = parseTag(opts.Name); err != nil {
			return nil, err
		}
	}
	refs, err := give()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if len(refs) == 0 {
		return nil, fmt.Errorf("%s: %w: it holds no image", what, berth.ErrInvalid)
	}
	var all []berth.Image
	for _, ref := range refs {
		img, there, err := im.e.imageFor(ctx, ref, want)
		if err != nil {
			return nil, err
		}
		if found := platformOf(img); opts.Platform != "" && (found.os != want.os || found.arch != want.arch) {
			return nil, fmt.Errorf("%s: %w for %s: the daemon loaded %s, for %s", what, berth.ErrNotFound, want, ref, there)
		}
		if strings.HasPrefix(ref, "sha256:") {
			img.Ref = ""
		}
		all = append(all, img)
	}
	if named != nil {
		img, err := im.name(ctx, all, named, want)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		all = []berth.Image{img}
	}
	for _, img := range all {
		im.e.claimImage(img, false)
	}
	return all, nil
}

// name names the one image that was loaded.
func (im *Images) name(ctx context.Context, all []berth.Image, named reference.Named, want platform) (berth.Image, error) {
	ids := map[string]bool{}
	for _, img := range all {
		ids[img.ID] = true
	}
	if len(ids) > 1 {
		return berth.Image{}, severalError(named.String(), len(ids))
	}
	cctx, cancel := im.e.call(ctx)
	defer cancel()
	if _, err := im.e.api().ImageTag(cctx, client.ImageTagOptions{Source: all[0].ID, Target: named.String()}); err != nil {
		return berth.Image{}, wrap(cctx, "name "+named.String(), err)
	}
	img, _, err := im.e.imageFor(ctx, named.String(), want)
	return img, err
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
				continue
			}
			many, ok := strings.CutPrefix(line, "Loaded image: ")
			if !ok {
				many, ok = strings.CutPrefix(line, "Loaded image(s): ") // Podman's, of some versions
			}
			if ok {
				for ref := range strings.SplitSeq(many, ",") { // Podman's are all in one line
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

// Import makes an image of one layer from an archive of a root file system. The daemon's own import takes neither a
// stop signal nor all compressions; so it is given the archive of the image.
func (im *Images) Import(ctx context.Context, archive io.Reader, as string, opts image.ImportOptions) (berth.Image, error) {
	want, err := im.platform(ctx, opts.Platform)
	if err != nil {
		return berth.Image{}, err
	}
	tag := ""
	if as != "" {
		named, err := parseTag(as)
		if err != nil {
			return berth.Image{}, err
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

// parseTag reads a name that an image is to be given.
func parseTag(s string) (reference.Named, error) {
	named, err := parseRef(s)
	if err != nil {
		return nil, err
	}
	if _, ok := named.(reference.Digested); ok {
		return nil, fmt.Errorf("image %q: %w: an image cannot be given a digest as its name", s, berth.ErrInvalid)
	}
	return named, nil
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
