package image

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-project/berth"
)

// imageRecord says what an image is. It is written after all its layers are in place; the time of its file
// is when the image was last used.
type imageRecord struct {
	ID      string            `json:"id"`               // digest of the configuration
	Digest  string            `json:"digest,omitempty"` // of the manifest with which it came first
	Config  berth.ImageConfig `json:"config"`
	Layers  []layerRef        `json:"layers"` // lowest first
	Created time.Time         `json:"created,omitzero"`
	Added   time.Time         `json:"added"`
	// Pulled: a registry had it, and it can be fetched again.
	Pulled bool `json:"pulled,omitempty"`
}

// layerRef names a layer of an image.
type layerRef struct {
	Key    string `json:"key"`              // hexadecimal digest that names its directory
	Digest string `json:"digest,omitempty"` // of the blob it came as
	Size   int64  `json:"size,omitempty"`   // bytes of that blob
	Made   bool   `json:"made,omitempty"`   // made here, to join the layer below it to those beneath
}

// refRecord says which image a reference names on a platform.
type refRecord struct {
	Ref      string    `json:"ref"`
	Platform string    `json:"platform"`
	ID       string    `json:"id"`
	Digest   string    `json:"digest,omitempty"` // of the manifest
	Index    string    `json:"index,omitempty"`  // of the index that led to the manifest
	Pulled   time.Time `json:"pulled"`
	// Local: the image came under this name from an archive, by Load or Import. Of an image that no registry had, every
	// name is local.
	Local bool `json:"local,omitempty"`
}

// layerRecord says what an unpacked layer holds. It lies in the layer's directory and is published with it.
type layerRecord struct {
	DiffID  string `json:"diff_id"`
	Entries int64  `json:"entries"` // files, directories and all else, without the layer's root
	Bytes   int64  `json:"bytes"`   // of regular files
	// Boot is the boot in which the layer was written, "" once it is known to be on the disk: nothing is
	// synced when a layer is published, so after another boot the layer is counted before it is trusted.
	Boot string `json:"boot,omitempty"`
	// Opaque: the layer hides everything below it.
	Opaque bool `json:"opaque,omitempty"`
	// Implied are directories that the archive does not name, only what lies in them.
	Implied []string `json:"implied,omitempty"`
	// Links are hard links to files that the layer does not hold: they lie in a layer below.
	Links []link `json:"links,omitempty"`
}

// link is a hard link by two paths within the root.
type link struct {
	Name   string `json:"name"`
	Target string `json:"target"`
}

// hexOf is the hexadecimal part of "sha256:<hex>".
func hexOf(digest string) string { return strings.TrimPrefix(digest, "sha256:") }

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// refKey names the record of a reference on a platform.
func refKey(ref, platform string) string {
	sum := sha256.Sum256([]byte(ref + "\n" + platform))
	return hex.EncodeToString(sum[:16])
}

func (s *Store) refPath(key string) string   { return filepath.Join(s.dir, "refs", key+".json") }
func (s *Store) imagePath(id string) string  { return filepath.Join(s.dir, "images", hexOf(id)+".json") }
func (s *Store) layerDir(key string) string  { return filepath.Join(s.dir, "layers", key) }
func (s *Store) layerRoot(key string) string { return filepath.Join(s.dir, "layers", key, "fs") }

// writeRecord puts a record in place whole or not at all.
func (s *Store) writeRecord(path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := s.newTmpFile()
	if err != nil {
		return err
	}
	defer f.Close() // what has its lock is in use
	if _, err = f.Write(append(b, '\n')); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, ignoreMissing(os.Remove(f.Name())))
	}
	return nil
}

// newTmpFile makes a file under tmp whose lock says that its maker lives.
func (s *Store) newTmpFile() (*os.File, error) {
	for {
		f, err := tryLock(filepath.Join(s.dir, "tmp", strings.ToLower(rand.Text()[:16])+".json"), os.O_RDWR|os.O_CREATE|os.O_EXCL)
		if f != nil || err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
			return f, err
		}
		// Taken for a leftover before it was locked.
	}
}

// readRecord reads a record. A record that a power cut has spoilt is as good as none.
func readRecord(path string, v any) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return errors.Join(fs.ErrNotExist, err)
	}
	return nil
}

// readRef reads the record of a reference; fs.ErrNotExist if there is none.
func (s *Store) readRef(key string) (refRecord, error) {
	var r refRecord
	err := readRecord(s.refPath(key), &r)
	return r, err
}

// readImage reads the record of an image and makes sure that its layers are there; fs.ErrNotExist if the
// image is not, or no longer, whole.
func (s *Store) readImage(id string) (imageRecord, error) {
	var r imageRecord
	if err := readRecord(s.imagePath(id), &r); err != nil {
		return imageRecord{}, err
	}
	if r.ID != id {
		return imageRecord{}, fs.ErrNotExist
	}
	for _, l := range r.Layers {
		if ok, err := s.haveLayer(l.Key); err != nil {
			return imageRecord{}, err
		} else if !ok {
			return imageRecord{}, fs.ErrNotExist
		}
	}
	return r, nil
}

// all reads the records of one kind: every *.json in dir that can be read.
func all[T any](dir string) ([]T, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var records []T
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		var r T
		if err := readRecord(filepath.Join(dir, e.Name()), &r); errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		records = append(records, r)
	}
	return records, nil
}

func (s *Store) allImages() ([]imageRecord, error) {
	return all[imageRecord](filepath.Join(s.dir, "images"))
}

func (s *Store) allRefs() ([]refRecord, error) { return all[refRecord](filepath.Join(s.dir, "refs")) }
