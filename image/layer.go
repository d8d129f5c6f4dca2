package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
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
// Reading and hashing the blob, inflating it, hashing the archive and writing files are a goroutine each, so
// that what takes longest, the inflating, has a processor to itself. Nothing is published.
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
	blobHash, tarHash := sha256.New(), sha256.New()
	raw, flat, hashed := newPipe(), newPipe(), newPipe()
	rawReader, flatReader, hashedReader := raw.reader(), flat.reader(), hashed.reader()
	stages := make(chan error, 2)
	fetched := make(chan error, 1)
	go func() { fetched <- raw.fill(source{blob}, blobHash) }()
	go func() { defer rawReader.close(); stages <- inflate(ctx, rawReader, flat, want.digest != "") }()
	go func() { defer flatReader.close(); stages <- hashed.fill(flatReader, tarHash) }()

	end := &tailReader{r: hashedReader}
	rec, err := untar(ctx, end, root, s.opts.Rootless)
	if err == nil {
		// What follows the archive's end belongs to the digests as well.
		_, err = io.Copy(io.Discard, end)
	}
	if err == nil && want.diffID == "" && end.zeros < tarBlock {
		err = badArchive(io.ErrUnexpectedEOF) // without a digest, only its end tells that an archive is whole
	}
	hashedReader.close()
	if err != nil && !errors.Is(err, berth.ErrInvalid) {
		cancel() // so that no stage waits for bytes that nobody needs
	}
	for range 2 {
		err = moreTelling(err, <-stages)
	}
	ferr := <-fetched
	if got := "sha256:" + hex.EncodeToString(blobHash.Sum(nil)); ferr == nil && want.digest != "" && got != want.digest {
		// Whatever else went wrong comes from this.
		return layerRecord{}, fmt.Errorf("%w: layer digest mismatch: it should be %s and what came is %s", berth.ErrInvalid, want.digest, got)
	}
	if err = moreTelling(err, ferr); err != nil {
		return layerRecord{}, err
	}
	rec.DiffID = "sha256:" + hex.EncodeToString(tarHash.Sum(nil))
	if want.diffID != "" && rec.DiffID != want.diffID {
		return layerRecord{}, fmt.Errorf("%w: layer digest mismatch: unpacked it should be %s and is %s", berth.ErrInvalid, want.diffID, rec.DiffID)
	}
	return rec, s.seal(dir, &rec)
}

// inflate is the stage between the blob and the archive. With whole it reads the blob to its end even where
// the archive turns out to be bad: its digest then says whether it came as it was made.
func inflate(ctx context.Context, blob io.Reader, to *pipe, whole bool) error {
	r, err := decompress(ctx, blob)
	if err == nil {
		err = to.fill(inflated{r}, nil)
		r.Close()
	} else {
		err = badArchive(err)
		_ = to.fill(failing{err}, nil)
	}
	if whole || err == nil {
		_, derr := io.Copy(io.Discard, blob)
		err = moreTelling(err, derr)
	}
	return err
}

// source gives the errors of a blob's reader a kind, so that they are told from those of its content.
type source struct{ io.Reader }

func (s source) Read(b []byte) (int, error) {
	n, err := s.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) && !hasKind(err) && !isContext(err) {
		err = fmt.Errorf("%w: %w", kindOf(err), err)
	}
	return n, err
}

// inflated gives the errors of a decompressor their kind.
type inflated struct{ io.Reader }

func (i inflated) Read(b []byte) (int, error) {
	n, err := i.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		err = badArchive(err)
	}
	return n, err
}

// tarBlock is the size of an archive's blocks; an empty one ends it.
const tarBlock = 512

// tailReader counts the zero bytes with which a stream ends.
type tailReader struct {
	r     io.Reader
	zeros int
}

func (t *tailReader) Read(b []byte) (int, error) {
	n, err := t.r.Read(b)
	i := n
	for i > 0 && b[i-1] == 0 && n-i < tarBlock {
		i--
	}
	if i > 0 {
		t.zeros = 0
	}
	t.zeros = min(t.zeros+n-i, tarBlock)
	return n, err
}

// failing is a reader that has only an error.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

// moreTelling chooses between the errors of two stages: the cause over its consequences.
func moreTelling(a, b error) error {
	switch {
	case b == nil || errors.Is(b, errPipeClosed):
		return a
	case a == nil || errors.Is(a, errPipeClosed):
		return b
	case !hasKind(a) && hasKind(b) && !isContext(a):
		return b
	}
	return a
}

// seal writes the record of an unpacked layer, with what it takes to find it whole after a power cut.
func (s *Store) seal(dir string, rec *layerRecord) error {
	var err error
	if rec.Entries, rec.Bytes, err = census(filepath.Join(dir, "fs")); err != nil {
		return err
	}
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
		return removeAll(dir)
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
	if err != nil {
		return err
	}
	err = ignoreMissing(os.Rename(s.layerDir(key), filepath.Join(work.path, key)))
	return errors.Join(err, work.remove())
}
