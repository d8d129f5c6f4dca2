package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth"
)

// Info is an image in the store.
type Info struct {
	berth.Image
	Refs    []string  `json:"refs"`              // every reference that names it, sorted
	Size    int64     `json:"size"`              // bytes of all its layers, unpacked, shared ones too
	Created time.Time `json:"created,omitzero"`  // as the image says
	Added   time.Time `json:"added"`             // to this store
	Used    time.Time `json:"used"`              // last
	Pulled  bool      `json:"pulled"`            // from a registry, which may have it still
	Local   []string  `json:"local,omitempty"`   // those of Refs under which it was loaded or imported, sorted
	Holders []string  `json:"holders,omitempty"` // see Hold
	Layers  []Layer   `json:"layers"`            // lowest first
}

// Layer is a layer in the store.
type Layer struct {
	DiffID     string `json:"diff_id"`              // of its archive; for one made here, what names it
	Digest     string `json:"digest,omitempty"`     // of the blob it came as
	Size       int64  `json:"size"`                 // bytes, unpacked
	Compressed int64  `json:"compressed,omitempty"` // bytes of the blob; 0 is unknown
	Dir        string `json:"dir"`
}

// List returns the images of the store, the most recently used first.
func (s *Store) List(ctx context.Context) ([]Info, error) {
	lock, err := s.lock(ctx)
	if err != nil {
		return nil, wrap("list images", err)
	}
	defer lock.Close()
	infos, err := s.list()
	return infos, wrap("list images", err)
}

// list is List under the store's lock.
func (s *Store) list() ([]Info, error) {
	images, err := s.allImages()
	if err != nil {
		return nil, err
	}
	refs, err := s.allRefs()
	if err != nil {
		return nil, err
	}
	held, err := s.holders()
	if err != nil {
		return nil, err
	}
	infos := make([]Info, 0, len(images))
	for _, rec := range images {
		info, err := s.info(rec, refs)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a layer is missing: as good as not there
		}
		if err != nil {
			return nil, err
		}
		info.Holders = held[rec.ID]
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b Info) int { return cmp.Or(b.Used.Compare(a.Used), cmp.Compare(a.ID, b.ID)) })
	return infos, nil
}

// info puts together what is known of an image.
func (s *Store) info(rec imageRecord, refs []refRecord) (Info, error) {
	st, err := os.Stat(s.imagePath(rec.ID))
	if err != nil {
		return Info{}, err
	}
	i := Info{
		Image: berth.Image{Ref: rec.ID, ID: rec.ID, Digest: rec.Digest, Config: rec.Config},
		Refs:  []string{}, Created: rec.Created, Added: rec.Added, Used: st.ModTime().UTC(), Pulled: rec.Pulled,
	}
	for _, r := range refs {
		if r.ID == rec.ID {
			i.Refs = append(i.Refs, r.Ref)
			if r.Local || !rec.Pulled {
				i.Local = append(i.Local, r.Ref)
			}
		}
	}
	slices.Sort(i.Local)
	i.Local = slices.Compact(i.Local)
	slices.Sort(i.Refs)
	if i.Refs = slices.Compact(i.Refs); len(i.Refs) > 0 {
		i.Ref = i.Refs[0]
	}
	for _, l := range rec.Layers {
		var layer layerRecord
		if err := readRecord(filepath.Join(s.layerDir(l.Key), "layer.json"), &layer); err != nil {
			return Info{}, err
		}
		i.Size += layer.Bytes
		i.Layers = append(i.Layers, Layer{
			DiffID: "sha256:" + l.Key, Digest: l.Digest, Size: layer.Bytes, Compressed: l.Size, Dir: s.layerRoot(l.Key),
		})
	}
	return i, nil
}

// Inspect finds an image by reference, by ID (12 digits at least) or by "sha256:…" of its manifest.
// ErrNotFound if it is not here, ErrInvalid if the name can mean several.
func (s *Store) Inspect(ctx context.Context, name string) (Info, error) {
	infos, err := s.List(ctx)
	if err != nil {
		return Info{}, err
	}
	found, err := match(infos, name)
	if err != nil {
		return Info{}, err
	}
	if len(found) > 1 {
		return Info{}, fmt.Errorf("image %s: %w: %d images have that name, for several platforms; use an ID: %s", name, berth.ErrInvalid, len(found), ids(found))
	}
	return found[0], nil
}

func ids(infos []Info) string {
	var s []string
	for _, i := range infos {
		s = append(s, hexOf(i.ID)[:12])
	}
	return strings.Join(s, ", ")
}

// match finds the images that a name means; at least one, or an error.
func match(infos []Info, name string) ([]Info, error) {
	var found []Info
	hexID := hexOf(name)
	byID := idForm.MatchString(hexID)
	ref, refErr := ParseRef(name)
	for _, i := range infos {
		if refErr == nil && slices.Contains(i.Refs, ref.String()) {
			found = append(found, i)
		}
	}
	for _, i := range infos {
		if byID && len(found) == 0 && (strings.HasPrefix(hexOf(i.ID), hexID) || i.Digest == "sha256:"+hexID) {
			found = append(found, i)
		}
	}
	switch {
	case len(found) > 0:
		return found, nil
	case refErr != nil && !byID:
		return nil, refErr
	}
	return nil, fmt.Errorf("image %s: %w: it is not here", name, berth.ErrNotFound)
}

// byID finds an image that is asked for by its ID; false if name is no ID, or may be a name as well.
func (s *Store) byID(name string) (berth.Image, bool, error) {
	digits, prefixed := strings.CutPrefix(name, "sha256:")
	if !idForm.MatchString(digits) {
		return berth.Image{}, false, nil
	}
	matches, err := filepath.Glob(filepath.Join(s.dir, "images", digits+"*.json"))
	if err != nil {
		return berth.Image{}, false, err
	}
	switch {
	case len(matches) > 1:
		return berth.Image{}, false, fmt.Errorf("image %s: %w: several IDs begin so", name, berth.ErrInvalid)
	case len(matches) == 1:
		id := "sha256:" + strings.TrimSuffix(filepath.Base(matches[0]), ".json")
		rec, err := s.readImage(id)
		if err == nil {
			s.touch(id)
			return berth.Image{Ref: id, ID: id, Digest: rec.Digest, Config: rec.Config}, true, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return berth.Image{}, false, wrap("image "+name, err)
		}
	}
	if prefixed {
		return berth.Image{}, false, fmt.Errorf("image %s: %w: no image with this ID is here", name, berth.ErrNotFound)
	}
	return berth.Image{}, false, nil
}
