package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth"
)

// Removed says what Remove and Prune took away.
type Removed struct {
	Refs   []string `json:"refs"`   // sorted
	Images []string `json:"images"` // IDs, sorted
	Layers int      `json:"layers"`
	Bytes  int64    `json:"bytes"` // of those layers
	// Kept are the names of what Prune spared since no registry has it, sorted.
	Kept []string `json:"kept,omitempty"`
}

// InUseError is of kind ErrConflict: an image is held.
type InUseError struct {
	Holders []string // see Store.Hold
}

func (e *InUseError) Error() string {
	return fmt.Sprintf("%v: it is in use by %s", berth.ErrConflict, strings.Join(e.Holders, ", "))
}

// Unwrap returns ErrConflict.
func (e *InUseError) Unwrap() error { return berth.ErrConflict }

// Remove removes an image, named as for Inspect, and the layers that no other image has. By a reference
// that is not the image's last, only the reference goes. ErrNotFound if there is no such image, ErrConflict
// if it is held.
func (s *Store) Remove(ctx context.Context, name string) (Removed, error) {
	var unknown error // names the image by itself
	r, err := s.change(ctx, func(infos []Info) ([]Info, []string, error) {
		var found []Info
		if found, unknown = match(infos, name); unknown != nil {
			return nil, nil, unknown
		}
		ref, err := ParseRef(name)
		if err != nil || !slices.Contains(found[0].Refs, ref.String()) {
			return found, nil, notHeld(found)
		}
		last := slices.DeleteFunc(slices.Clone(found), func(i Info) bool { return len(i.Refs) > 1 })
		return last, []string{ref.String()}, notHeld(last)
	})
	if unknown != nil {
		return r, unknown
	}
	return r, wrap("remove image "+name, err)
}

// notHeld refuses to remove what is in use.
func notHeld(infos []Info) error {
	for _, i := range infos {
		if len(i.Holders) > 0 {
			return &InUseError{i.Holders}
		}
	}
	return nil
}

// PruneOptions say what to collect.
type PruneOptions struct {
	Unused time.Duration // images that were not used for so long; 0 is every image that is not held
	All    bool          // also those with a name under which they were imported or loaded: no registry has them by it
	DryRun bool          // say only what would go
}

// Spares reports whether an image stays that is not used: by one of its names nobody could fetch it again.
func (o PruneOptions) Spares(i Info) bool { return !o.All && len(i.Local) > 0 }

// Prune removes images that were not used for some time and are not held, layers that no image has, and what
// crashed processes left behind. What was imported or loaded stays as long as it has a name from then, unless All: it is
// told as kept.
func (s *Store) Prune(ctx context.Context, opts PruneOptions) (Removed, error) {
	if err := s.sweep(); err != nil {
		return Removed{}, wrap("prune images", err)
	}
	before := s.now().Add(-opts.Unused)
	var kept []string
	pick := func(infos []Info) ([]Info, []string, error) {
		unused := slices.DeleteFunc(infos, func(i Info) bool { return len(i.Holders) > 0 || i.Used.After(before) })
		for _, i := range unused {
			if opts.Spares(i) {
				kept = append(kept, i.Refs...)
			}
		}
		slices.Sort(kept)
		return slices.DeleteFunc(unused, opts.Spares), nil, nil
	}
	prune := s.change
	if opts.DryRun {
		prune = s.wouldRemove
	}
	r, err := prune(ctx, pick)
	r.Kept = kept
	return r, wrap("prune images", err)
}

// change removes the images and references that pick chooses, then every layer that is no longer needed. The
// order is such that a crash at any point leaves at most layers without an image, which the next prune takes.
func (s *Store) change(ctx context.Context, pick func([]Info) ([]Info, []string, error)) (Removed, error) {
	work, err := s.newWorkDir()
	if err != nil && !errors.Is(kindOf(err), berth.ErrExhausted) {
		return Removed{}, err
	}
	if work == nil {
		return s.changeLocked(ctx, s.removeLayer, pick)
	}
	aside := func(key string) error { return os.Rename(s.layerDir(key), filepath.Join(work.path, key)) }
	r, err := s.changeLocked(ctx, aside, pick)
	return r, errors.Join(err, work.remove()) // the slow part, without the lock
}

// removeLayer removes a layer where it lies: on a full disk there may be no room for a directory to move it to.
// Its record goes first, so that what a crash leaves is not taken for a layer.
func (s *Store) removeLayer(key string) error {
	err := ignoreMissing(os.Remove(filepath.Join(s.layerDir(key), "layer.json")))
	return errors.Join(err, os.RemoveAll(s.layerDir(key)))
}

func (s *Store) changeLocked(ctx context.Context, drop func(key string) error, pick func([]Info) ([]Info, []string, error)) (Removed, error) {
	lock, err := s.lock(ctx)
	if err != nil {
		return Removed{}, err
	}
	defer lock.Close()
	infos, err := s.list()
	if err != nil {
		return Removed{}, err
	}
	images, refs, err := pick(infos)
	if err != nil {
		return Removed{}, err
	}
	r, err := s.dropRecords(images, refs)
	if err != nil {
		return r, err
	}
	layers, err := s.garbage(nil)
	if err != nil {
		return r, err
	}
	for _, key := range layers {
		r.Bytes += s.layerBytes(key)
		if err := drop(key); err != nil {
			return r, err
		}
		r.Layers++
	}
	return r, errors.Join(s.dropLinks(), s.dropLocks())
}

// wouldRemove is change without changing anything.
func (s *Store) wouldRemove(ctx context.Context, pick func([]Info) ([]Info, []string, error)) (Removed, error) {
	lock, err := s.lock(ctx)
	if err != nil {
		return Removed{}, err
	}
	defer lock.Close()
	infos, err := s.list()
	if err != nil {
		return Removed{}, err
	}
	images, _, err := pick(infos)
	if err != nil {
		return Removed{}, err
	}
	r := Removed{Refs: []string{}, Images: []string{}}
	gone := map[string]bool{}
	for _, i := range images {
		gone[i.ID] = true
		r.Images = append(r.Images, i.ID)
		r.Refs = append(r.Refs, i.Refs...)
	}
	layers, err := s.garbage(gone)
	for _, key := range layers {
		r.Bytes += s.layerBytes(key)
	}
	r.Layers = len(layers)
	slices.Sort(r.Images)
	slices.Sort(r.Refs)
	return r, err
}

// dropRecords removes the records of references and images, references first.
func (s *Store) dropRecords(images []Info, refs []string) (Removed, error) {
	r := Removed{Refs: []string{}, Images: []string{}}
	gone := map[string]bool{}
	for _, i := range images {
		gone[i.ID] = true
	}
	records, err := s.allRefs()
	if err != nil {
		return r, err
	}
	for _, rec := range records {
		if !gone[rec.ID] && !slices.Contains(refs, rec.Ref) {
			continue
		}
		if err := ignoreMissing(os.Remove(s.refPath(refKey(rec.Ref, rec.Platform)))); err != nil {
			return r, err
		}
		r.Refs = append(r.Refs, rec.Ref)
	}
	for id := range gone {
		if err := ignoreMissing(os.Remove(s.imagePath(id))); err != nil {
			return r, err
		}
		s.mu.Lock()
		delete(s.loaded, id)
		s.mu.Unlock()
		r.Images = append(r.Images, id)
	}
	slices.Sort(r.Images)
	slices.Sort(r.Refs)
	r.Refs = slices.Compact(r.Refs)
	return r, nil
}

// garbage are the layers that no image but those in gone has, and no running pull has claimed.
func (s *Store) garbage(gone map[string]bool) ([]string, error) {
	needed, err := s.claims()
	if err != nil {
		return nil, err
	}
	images, err := s.allImages()
	if err != nil {
		return nil, err
	}
	for _, i := range images {
		for _, l := range i.Layers {
			if !gone[i.ID] {
				needed[l.Key] = true
			}
		}
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "layers"))
	if err != nil {
		return nil, err
	}
	var keys []string
	for _, e := range entries {
		if !needed[e.Name()] {
			keys = append(keys, e.Name())
		}
	}
	return keys, nil
}

// claims are the layers that pulls which still run will need.
func (s *Store) claims() (map[string]bool, error) {
	claimed := map[string]bool{}
	dirs, err := filepath.Glob(filepath.Join(s.dir, "tmp", "*", "claim.json"))
	if err != nil {
		return nil, err
	}
	for _, path := range dirs {
		lock, err := tryLock(filepath.Dir(path), os.O_RDONLY)
		if lock != nil {
			lock.Close() // its maker is gone
			continue
		}
		var keys []string
		if err != nil || readRecord(path, &keys) != nil {
			continue // it has just ended, and its image is recorded
		}
		for _, k := range keys {
			claimed[k] = true
		}
	}
	return claimed, nil
}

// layerBytes is what a layer takes; 0 where its record is not to be read.
func (s *Store) layerBytes(key string) int64 {
	var rec layerRecord
	_ = readRecord(filepath.Join(s.layerDir(key), "layer.json"), &rec)
	return rec.Bytes
}

// dropLinks removes the short names of layers that are gone.
func (s *Store) dropLinks() error {
	dir := filepath.Join(s.dir, "l")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := ignoreMissing(os.Remove(path)); err != nil {
			return err
		}
	}
	return nil
}

// dropLocks removes the lock files that nobody holds. Whoever opened one before sees, once it has the lock,
// that the file is gone, and makes a new one.
func (s *Store) dropLocks() error {
	dir := filepath.Join(s.dir, "locks")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "store" {
			continue
		}
		path := filepath.Join(dir, e.Name())
		lock, err := tryLock(path, os.O_RDWR)
		if err != nil || lock == nil {
			continue
		}
		if err := errors.Join(ignoreMissing(os.Remove(path)), lock.Close()); err != nil {
			return err
		}
	}
	return nil
}
