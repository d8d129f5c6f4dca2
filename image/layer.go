package image

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-project/berth"
)

// layerWant is what a layer must turn out to be; "" is not checked.
type layerWant struct {
	digest string // of the blob, as it comes
	diffID string // of the archive within
}

// unpackLayer unpacks a layer from its blob into dir/fs, beside its record, and verifies both its digests.
// Nothing is published.
func (s *Store) unpackLayer(ctx context.Context, open func(context.Context) (io.ReadCloser, error), dir string, want layerWant) (layerRecord, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := os.MkdirAll(filepath.Join(dir, "fs"), 0o700); err != nil {
		return layerRecord{}, err
	}
	root, err := os.Open(filepath.Join(dir, "fs"))
	if err != nil {
		return layerRecord{}, err
	}
	defer root.Close()
	blob, err := open(ctx)
	if err != nil {
		return layerRecord{}, err
	}
	defer blob.Close()
	stream := startStream(ctx, blob, want.digest != "")
	rec, err := untar(ctx, stream, root, s.opts.Rootless)
	if err == nil {
		// What follows the archive's end belongs to the digests as well.
		_, err = io.Copy(io.Discard, stream)
	}
	if err != nil && !errors.Is(err, berth.ErrInvalid) {
		cancel() // so that no stage waits for bytes that nobody needs
	}
	if err := stream.finish(want, err); err != nil {
		return layerRecord{}, err
	}
	rec.DiffID = digestSum(stream.tarHash)
	return rec, s.seal(dir, &rec)
}

// seal writes the record of an unpacked layer, with what it takes to find it whole after a power cut.
func (s *Store) seal(dir string, rec *layerRecord) error {
	rec.Boot = s.boot
	return s.writeRecord(filepath.Join(dir, "layer.json"), rec)
}

// census counts what a tree holds.
func census(root string) (entries, bytes int64, err error) {
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		entries++
		if d.Type().IsRegular() {
			info, err := d.Info()
			if err != nil {
				return err
			}
			bytes += info.Size()
		}
		return nil
	})
	return entries, bytes, err
}

// publish moves an unpacked layer to its place, whole or not at all. One that is there already stays.
func (s *Store) publish(dir, key string) error {
	err := os.Rename(dir, s.layerDir(key))
	if errors.Is(err, fs.ErrExist) {
		return os.RemoveAll(dir)
	}
	return err
}

// haveLayer reports whether a layer is there and whole. A layer that was written before the last boot and
// never found whole since is counted first; one that a power cut has spoilt is removed.
func (s *Store) haveLayer(key string) (bool, error) {
	var rec layerRecord
	path := filepath.Join(s.layerDir(key), "layer.json")
	err := readRecord(path, &rec)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		_, err := os.Lstat(s.layerDir(key))
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, errors.Join(err, s.discard(key))
	case err != nil:
		return false, err
	case rec.Boot == "" || rec.Boot == s.boot:
		return true, nil
	}
	entries, bytes, err := census(s.layerRoot(key))
	if err != nil || entries != rec.Entries || bytes != rec.Bytes {
		s.log.Warn("removing a layer that a crash of the machine has spoilt", "layer", key)
		return false, s.discard(key)
	}
	rec.Boot = ""
	return true, s.writeRecord(path, rec)
}

// discard takes a layer out of its place, then removes it.
func (s *Store) discard(key string) error {
	work, err := s.newWorkDir()
	if errors.Is(kindOf(err), berth.ErrExhausted) {
		return s.removeLayer(key)
	}
	if err != nil {
		return err
	}
	err = ignoreMissing(os.Rename(s.layerDir(key), filepath.Join(work.path, key)))
	return errors.Join(err, work.remove())
}
