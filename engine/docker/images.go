package docker

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
	"github.com/distribution/reference"
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

// List returns the daemon's images, the latest to come first.
func (im *Images) List(ctx context.Context) ([]image.Info, error) {
	cctx, cancel := im.e.call(ctx)
	defer cancel()
	res, err := im.e.api().ImageList(cctx, client.ImageListOptions{})
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
	host, err := im.e.daemon(ctx)
	if err != nil {
		return image.Info{}, err
	}
	res, _, err := im.e.inspectFor(ctx, ref, host.platform)
	if err != nil {
		return image.Info{}, err
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
	if _, local, pulled, used := im.e.claimed(i); !used.IsZero() {
		i.Used, i.Local, i.Pulled = used, local, pulled
	}
	return i, nil
}

// Remove removes an image, or of several references the one. ErrConflict where a container uses it.
func (im *Images) Remove(ctx context.Context, ref string) (image.Removed, error) {
	ctx, cancel := im.e.call(ctx)
	defer cancel()
	r := image.Removed{Refs: []string{}, Images: []string{}}
	res, err := im.e.api().ImageRemove(ctx, imageName(ref), client.ImageRemoveOptions{PruneChildren: true})
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
		names, _, _, last := im.e.claimed(i)
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
	res, err := im.e.listContainers(ctx, client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("ancestor", id)})
	if err != nil {
		return false, wrap(ctx, "list containers", err)
	}
	return len(res.Items) > 0, nil
}
