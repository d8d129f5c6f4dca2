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
	"slices"
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

// Images are the daemon's images, with the methods of image.Store. Of those that others have put there none is pruned.
type Images struct{ e *Engine }

// Images are the images of the engine's daemon.
func (e *Engine) Images() *Images { return &Images{e} }

// Image finds or pulls an image.
func (im *Images) Image(ctx context.Context, req berth.ImageRequest) (berth.Image, error) {
	return im.e.Image(ctx, req)
}

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
		img, err := im.e.inspectImage(ctx, ref)
		if err != nil {
			return nil, err
		}
		if found := (platform{img.Config.OS, img.Config.Architecture, img.Config.Variant}); opts.Platform != "" && (found.os != want.os || found.arch != want.arch) {
			return nil, fmt.Errorf("load %s: %w for %s: the daemon loaded %s, for %s", what, berth.ErrNotFound, want, ref, found)
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
	res, err := e.api.ImageLoad(ctx, moving{r, func() { stalled.Reset(e.cfg.Stall) }}, client.ImageLoadWithQuiet(false))
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
		img, err := im.e.inspectImage(ctx, ref)
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
	if _, err := im.e.api.ImageTag(cctx, client.ImageTagOptions{Source: refs[0], Target: named.String()}); err != nil {
		return nil, wrap(cctx, "name "+to, err)
	}
	for _, ref := range refs {
		if old, err := parseRef(ref); err == nil && old.String() != named.String() && !strings.HasPrefix(ref, "sha256:") {
			if _, err := im.e.api.ImageRemove(cctx, ref, client.ImageRemoveOptions{}); err != nil && !is(err, berth.ErrNotFound) {
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
	r, err := image.Decompress(ctx, archive)
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
	img, err := im.e.inspectImage(ctx, refs[0])
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

// List returns the daemon's images, the latest to come first.
func (im *Images) List(ctx context.Context) ([]image.Info, error) {
	cctx, cancel := im.e.call(ctx)
	defer cancel()
	res, err := im.e.api.ImageList(cctx, client.ImageListOptions{})
	if err != nil {
		return nil, wrap(cctx, "list images", err)
	}
	var all []image.Info
	for _, s := range res.Items {
		i, err := im.info(ctx, s.ID)
		if errors.Is(err, berth.ErrNotFound) {
			continue // it was removed meanwhile
		} else if err != nil {
			return nil, err
		}
		all = append(all, i)
	}
	slices.SortStableFunc(all, func(a, b image.Info) int { return b.Used.Compare(a.Used) })
	return all, nil
}

// Inspect says what is known of an image, by a reference to it, its ID, or the beginning of that.
func (im *Images) Inspect(ctx context.Context, ref string) (image.Info, error) {
	return im.info(ctx, imageName(ref))
}

// imageName is a reference with its tag, or what else names an image as it is: an ID or its beginning.
func imageName(s string) string {
	if _, err := reference.ParseAnyReference(s); err == nil && !strings.Contains(s, "/") && isHex(s) {
		return s
	}
	if named, err := parseRef(s); err == nil {
		return named.String()
	}
	return s
}

func isHex(s string) bool {
	s = strings.TrimPrefix(s, "sha256:")
	return len(s) >= 4 && strings.Trim(s, "0123456789abcdef") == ""
}

func (im *Images) info(ctx context.Context, ref string) (image.Info, error) {
	cctx, cancel := im.e.call(ctx)
	defer cancel()
	res, err := im.e.api.ImageInspect(cctx, ref)
	if err != nil {
		return image.Info{}, wrap(cctx, "image "+ref, err)
	}
	i := image.Info{Image: imageOf(ref, res), Size: res.Size, Added: res.Metadata.LastTagTime, Used: res.Metadata.LastTagTime, Layers: []image.Layer{}}
	if i.Created, err = time.Parse(time.RFC3339Nano, res.Created); err != nil {
		i.Created = time.Time{}
	}
	for _, t := range res.RepoTags {
		if named, err := parseRef(t); err == nil {
			i.Refs = append(i.Refs, named.String())
		}
	}
	slices.Sort(i.Refs)
	if i.Ref = ""; len(i.Refs) > 0 {
		i.Ref = i.Refs[0]
	}
	for _, d := range res.RootFS.Layers {
		i.Layers = append(i.Layers, image.Layer{DiffID: d})
	}
	i.Pulled = len(res.RepoDigests) > 0
	if _, used, pulled := im.e.claimed(i); !used.IsZero() {
		i.Used, i.Pulled = used, pulled
	}
	return i, nil
}

// Remove removes an image, or of several references the one. ErrConflict where a container uses it.
func (im *Images) Remove(ctx context.Context, ref string) (image.Removed, error) {
	ctx, cancel := im.e.call(ctx)
	defer cancel()
	r := image.Removed{Refs: []string{}, Images: []string{}}
	res, err := im.e.api.ImageRemove(ctx, imageName(ref), client.ImageRemoveOptions{PruneChildren: true})
	if err != nil {
		return r, wrap(ctx, "remove image "+ref, err)
	}
	first := ""
	for _, d := range res.Items {
		if named, err := parseRef(d.Untagged); err == nil && d.Untagged != "" && !strings.Contains(d.Untagged, "@") {
			r.Refs = append(r.Refs, named.String())
			_ = os.Remove(im.e.claimFile(named.String()))
		}
		switch {
		case d.Deleted == "":
		case first == "": // the image; then its layers
			first = d.Deleted
			r.Images = append(r.Images, first)
			_ = os.Remove(im.e.claimFile(first))
		default:
			r.Layers++
		}
	}
	slices.Sort(r.Refs)
	return r, nil
}

// Prune removes images that this data directory has brought to the daemon and no container uses. Those of others
// stay, and, unless All, those that were loaded or imported and have a name.
func (im *Images) Prune(ctx context.Context, opts image.PruneOptions) (image.Removed, error) {
	all := image.Removed{Refs: []string{}, Images: []string{}}
	list, err := im.List(ctx)
	if err != nil {
		return all, err
	}
	before := time.Now().Add(-opts.Unused)
	for _, i := range list {
		names, last, _ := im.e.claimed(i)
		if len(names) == 0 || last.After(before) {
			continue
		}
		used, err := im.used(ctx, i.ID)
		if err != nil {
			return all, err
		}
		if used {
			continue
		}
		if opts.Spares(i) {
			all.Kept = append(all.Kept, names...)
			continue
		}
		if opts.DryRun {
			all.Refs = append(all.Refs, names...)
			if len(names) >= len(i.Refs) {
				all.Images, all.Layers, all.Bytes = append(all.Images, i.ID), all.Layers+len(i.Layers), all.Bytes+i.Size
			}
			continue
		}
		for _, n := range names {
			r, err := im.Remove(ctx, n)
			if errors.Is(err, berth.ErrConflict) || errors.Is(err, berth.ErrNotFound) {
				continue // somebody has begun to use it, or was faster
			} else if err != nil {
				return all, err
			}
			all.Refs, all.Images, all.Layers = append(all.Refs, r.Refs...), append(all.Images, r.Images...), all.Layers+r.Layers
			if len(r.Images) > 0 {
				all.Bytes += i.Size
			}
		}
	}
	slices.Sort(all.Refs)
	slices.Sort(all.Images)
	slices.Sort(all.Kept)
	return all, nil
}

// used reports whether a container is of the image.
func (im *Images) used(ctx context.Context, id string) (bool, error) {
	ctx, cancel := im.e.call(ctx)
	defer cancel()
	res, err := im.e.api.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("ancestor", id)})
	if err != nil {
		return false, wrap(ctx, "list containers", err)
	}
	return len(res.Items) > 0, nil
}

// A claim is a file that says that this data directory has brought an image to the daemon under a name: it holds the
// image's ID, and a further line for one that was pulled; its time is that of the last use. An image without a name has
// its ID for one.
const pulledMark = "\npulled"

func (e *Engine) claimFile(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(e.cfg.Dir, "images", hex.EncodeToString(sum[:16]))
}

// claimImage notes that an image is this data directory's, to prune.
func (e *Engine) claimImage(img berth.Image, pulled bool) {
	file := e.claimFile(cmp.Or(img.Ref, img.ID))
	err := os.MkdirAll(filepath.Dir(file), 0o700)
	if err == nil {
		text := img.ID
		if pulled {
			text += pulledMark
		}
		err = os.WriteFile(file, []byte(text), 0o600)
	}
	if err != nil {
		e.cfg.Logger.Warn("image not noted: it will not be pruned", "image", img.Ref, "error", err)
	}
}

// useImage notes the use of an image, where it is this data directory's.
func (e *Engine) useImage(img berth.Image) {
	now := time.Now()
	_ = os.Chtimes(e.claimFile(cmp.Or(img.Ref, img.ID)), now, now) // most are not
}

// claimed are the names under which this data directory has brought an image to the daemon, its last use, and whether it
// was pulled under one of them.
func (e *Engine) claimed(i image.Info) (names []string, used time.Time, pulled bool) {
	for _, n := range append(slices.Clone(i.Refs), i.ID) {
		raw, err := os.ReadFile(e.claimFile(n))
		id, marked := strings.CutSuffix(string(raw), pulledMark)
		if err != nil || id != i.ID {
			continue
		}
		names, pulled = append(names, n), pulled || marked
		if st, err := os.Stat(e.claimFile(n)); err == nil && st.ModTime().After(used) {
			used = st.ModTime()
		}
	}
	return names, used, pulled
}
