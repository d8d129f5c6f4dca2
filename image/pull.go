package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Image implements berth.Puller: it finds an image, and pulls it where the policy says so. With PullMissing
// an image that is there costs no network and no lock. req.Ref may also be the ID of an image that is here.
func (s *Store) Image(ctx context.Context, req berth.ImageRequest) (berth.Image, error) {
	want, err := parsePlatform(req.Platform)
	if err != nil {
		return berth.Image{}, err
	}
	if img, ok, err := s.byID(req.Ref); ok || err != nil {
		return img, err
	}
	ref, err := ParseRef(req.Ref)
	if err != nil {
		return berth.Image{}, err
	}
	if req.Policy != berth.PullAlways {
		img, err := s.present(ref, want)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return img, wrap("image "+ref.String(), err)
		}
	}
	switch req.Policy {
	case "", berth.PullMissing, berth.PullAlways:
	case berth.PullNever:
		return berth.Image{}, fmt.Errorf("image %s: %w: it is not here for %s, and pulling is off", ref, berth.ErrNotFound, want)
	default:
		return berth.Image{}, fmt.Errorf("pull policy %q: %w: it is missing, always or never", req.Policy, berth.ErrInvalid)
	}
	key := fmt.Sprintf("%s %s %t %s", ref, want, req.Insecure, req.Policy)
	img, err := s.share(ctx, key, req.Progress, func(ctx context.Context, progress func(berth.Progress)) (berth.Image, error) {
		return s.pull(ctx, ref, want, req, progress)
	})
	return img, wrap("pull "+ref.String(), s.full(err))
}

// full says of a full disk which one it is, and what to do.
func (s *Store) full(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return fmt.Errorf("%w: the disk of %s is full; free some of it (`berth image prune` removes what is not in use), or choose another data directory: %w", berth.ErrExhausted, s.dir, err)
}

// wrap says what was being done, and gives an error without kind the one that it has by nature.
func wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case isContext(err), hasKind(err):
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, kindOf(err), err)
}

// present finds an image by reference without looking further; fs.ErrNotExist if it is not here.
func (s *Store) present(ref Ref, want platform) (berth.Image, error) {
	rec, err := s.readRef(refKey(ref.String(), want.String()))
	if err != nil {
		return berth.Image{}, err
	}
	img, err := s.readImage(rec.ID)
	if err != nil {
		return berth.Image{}, err
	}
	s.touch(rec.ID)
	return berth.Image{Ref: ref.String(), ID: rec.ID, Digest: rec.Digest, Config: img.Config}, nil
}

// touch notes that an image is used now.
func (s *Store) touch(id string) {
	now := s.now()
	if err := os.Chtimes(s.imagePath(id), now, now); err != nil {
		s.log.Debug("cannot note the use of an image", "image", id, "error", err)
	}
}

// pull fetches an image. Processes that want the same one wait for each other, and then find it here.
func (s *Store) pull(ctx context.Context, ref Ref, want platform, req berth.ImageRequest, progress func(berth.Progress)) (berth.Image, error) {
	key := refKey(ref.String(), want.String())
	lock, err := lockFile(ctx, filepath.Join(s.dir, "locks", "pull-"+key))
	if err != nil {
		return berth.Image{}, err
	}
	defer lock.Close()
	if req.Policy != berth.PullAlways {
		if img, err := s.present(ref, want); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return img, err
		}
	}
	progress(berth.Progress{Phase: "resolve"})
	reg, err := s.connect(ctx, ref, req.Insecure, progress)
	if err != nil {
		return berth.Image{}, err
	}
	digest, body, err := reg.head(ctx)
	if err != nil {
		return berth.Image{}, err
	}
	r, err := resolve(ctx, reg, digest, body, want)
	if err != nil {
		return berth.Image{}, err
	}
	r.pulled = true
	open := func(ctx context.Context, i int, progress func(done, total int64)) (io.ReadCloser, error) {
		return reg.blob(ctx, r.layers[i], progress), nil
	}
	return s.install(ctx, r, []refRecord{{Ref: ref.String(), Platform: want.String()}}, open, progress)
}

// opener opens the blob of the i-th layer.
type opener func(ctx context.Context, i int, progress func(done, total int64)) (io.ReadCloser, error)

// install unpacks the layers of an image that are not here yet, then records the image under its names.
func (s *Store) install(ctx context.Context, r resolved, refs []refRecord, open opener, progress func(berth.Progress)) (berth.Image, error) {
	work, err := s.newWorkDir()
	if err != nil {
		return berth.Image{}, err
	}
	defer work.remove() //nolint:errcheck // the next process removes what stays
	keys := make([]string, len(r.layers))
	for i := range r.layers {
		keys[i] = r.config.RootFS.DiffIDs[i].Hex
	}
	if err := s.claim(ctx, work, keys); err != nil {
		return berth.Image{}, err
	}
	// The largest first: it takes longest, and the others fit beside it.
	order := make([]int, len(keys))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return int(min(max(r.layers[b].Size-r.layers[a].Size, -1), 1)) })
	group, gctx := errgroup.WithContext(ctx)
	group.SetLimit(s.opts.Parallel)
	for _, i := range order {
		group.Go(func() error {
			return s.installLayer(gctx, keys[i], r.layers[i], filepath.Join(work.path, strconv.Itoa(i)), func(ctx context.Context, progress func(done, total int64)) (io.ReadCloser, error) {
				return open(ctx, i, progress)
			}, progress)
		})
	}
	if err := group.Wait(); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return berth.Image{}, cause
		}
		return berth.Image{}, err
	}
	img, err := s.record(ctx, work, r, keys, refs)
	if err == nil {
		progress(berth.Progress{Phase: "done"})
	}
	return img, err
}

// claim protects layers from being collected while the image that they belong to is not recorded yet.
func (s *Store) claim(ctx context.Context, work *workDir, keys []string) error {
	lock, err := s.lock(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	return s.writeRecord(filepath.Join(work.path, "claim.json"), keys)
}

// installLayer makes sure that a layer is here. Who else wants the same layer waits.
func (s *Store) installLayer(ctx context.Context, key string, d v1.Descriptor, dir string, open func(context.Context, func(done, total int64)) (io.ReadCloser, error), progress func(berth.Progress)) error {
	digest := digestString(d)
	if ok, err := s.haveLayer(key); ok || err != nil {
		return err
	}
	lock, err := lockFile(ctx, filepath.Join(s.dir, "locks", "layer-"+key))
	if err != nil {
		return err
	}
	defer lock.Close()
	if ok, err := s.haveLayer(key); ok || err != nil {
		return err
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	meter := newMeter(progress, digest, d.Size)
	_, err = s.unpackLayer(ctx, func(ctx context.Context) (io.ReadCloser, error) {
		return open(ctx, meter.update)
	}, dir, layerWant{digest: digest, diffID: "sha256:" + key})
	if err != nil {
		return fmt.Errorf("layer %s: %w", cmp.Or(digest, "sha256:"+key), err)
	}
	meter.finish()
	return s.publish(dir, key)
}

// record publishes an image under its names, after its layers.
func (s *Store) record(ctx context.Context, work *workDir, r resolved, keys []string, refs []refRecord) (berth.Image, error) {
	lock, err := s.lock(ctx)
	if err != nil {
		return berth.Image{}, err
	}
	defer lock.Close()
	layers := make([]layerRef, len(keys))
	for i, key := range keys {
		layers[i] = layerRef{Key: key, Digest: digestString(r.layers[i]), Size: r.layers[i].Size}
	}
	if layers, err = s.joinLayers(ctx, work, layers); err != nil {
		return berth.Image{}, err
	}
	if err := s.linkLayers(layers); err != nil {
		return berth.Image{}, err
	}
	rec := imageRecord{
		ID: r.id, Digest: r.digest, Config: configOf(r.config), Layers: layers,
		Added: s.now().UTC(), Created: r.config.Created.UTC(), Pulled: r.pulled,
	}
	var before imageRecord
	err = readRecord(s.imagePath(r.id), &before)
	fresh := errors.Is(err, fs.ErrNotExist)
	rec.Pulled = rec.Pulled || before.Pulled
	if rec.Pulled && !fresh && !before.Pulled {
		if err := s.markLocal(r.id); err != nil {
			return berth.Image{}, err
		}
	}
	if err := s.writeRecord(s.imagePath(r.id), rec); err != nil {
		return berth.Image{}, err
	}
	s.touch(r.id)
	img := berth.Image{Ref: r.id, ID: r.id, Digest: r.digest, Config: rec.Config}
	for i, ref := range refs {
		ref.ID, ref.Digest, ref.Index, ref.Pulled = r.id, r.digest, r.index, s.now().UTC()
		ref.Local = !r.pulled
		if err := s.writeRecord(s.refPath(refKey(ref.Ref, ref.Platform)), ref); err != nil {
			if fresh && i == 0 { // nothing names it, and nobody was told of it
				err = errors.Join(err, os.Remove(s.imagePath(r.id)))
			}
			return berth.Image{}, err
		}
		if i == 0 {
			img.Ref = ref.Ref
		}
	}
	return img, nil
}

// markLocal notes that every name an image has until now is local, before a registry is known to have the image.
func (s *Store) markLocal(id string) error {
	refs, err := s.allRefs()
	for _, ref := range refs {
		if ref.ID == id && !ref.Local && err == nil {
			ref.Local = true
			err = s.writeRecord(s.refPath(refKey(ref.Ref, ref.Platform)), ref)
		}
	}
	return err
}

// digestString is the digest of a blob; "" where it is not known.
func digestString(d v1.Descriptor) string {
	if d.Digest.Hex == "" {
		return ""
	}
	return d.Digest.String()
}

// configOf takes from an image's configuration what concerns running it.
func configOf(c *v1.ConfigFile) berth.ImageConfig {
	volumes := make([]string, 0, len(c.Config.Volumes))
	for v := range c.Config.Volumes {
		volumes = append(volumes, v)
	}
	slices.Sort(volumes)
	if len(volumes) == 0 {
		volumes = nil
	}
	return berth.ImageConfig{
		User: c.Config.User, Env: c.Config.Env, Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd,
		Volumes: volumes, WorkingDir: c.Config.WorkingDir, StopSignal: c.Config.StopSignal,
		Labels: c.Config.Labels, Architecture: c.Architecture, OS: c.OS, Variant: c.Variant,
	}
}

// meter turns a layer's bytes into reports, not more than ten a second.
type meter struct {
	report func(berth.Progress)
	layer  string
	total  int64
	last   time.Time
}

const meterPause = 100 * time.Millisecond

func newMeter(report func(berth.Progress), layer string, total int64) *meter {
	m := &meter{report: report, layer: layer, total: max(total, 0)}
	report(berth.Progress{Phase: "download", Layer: layer, Total: m.total})
	return m
}

// update is called by one goroutine only.
func (m *meter) update(done, total int64) {
	now := time.Now()
	if (done < total || total == 0) && now.Sub(m.last) < meterPause {
		return
	}
	m.last = now
	phase := "download"
	if total > 0 && done >= total {
		phase = "unpack"
	}
	m.report(berth.Progress{Phase: phase, Layer: m.layer, Done: done, Total: total})
}

func (m *meter) finish() {
	m.report(berth.Progress{Phase: "done", Layer: m.layer, Done: m.total, Total: m.total})
}
