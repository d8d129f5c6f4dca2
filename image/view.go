package image

import (
	"encoding/base32"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/berth-project/berth"
)

const (
	linkMin    = 10       // characters of a layer's short name
	lookupMax  = 1 << 20  // bytes of a file that Lookup reads
	cachedMax  = 64 << 10 // bytes of a file that is kept in memory
	cachedMost = 64       // files kept in memory for each image
)

// loaded is an image in memory.
type loaded struct {
	inode uint64 // of its record, which is replaced, never rewritten
	rec   imageRecord
	paths []string // short, topmost first
	roots []string // the same in full
	files map[string][]byte
}

// Layers returns the directories of an image's layers, topmost first, as overlay wants them. The paths are
// short symbolic links, since mount options must fit into one page; an image without layers has one empty
// directory. The list is the caller's to read only.
// The directories stay while the image is held (see Hold). ErrNotFound if there is no such image.
func (s *Store) Layers(imageID string) ([]string, error) {
	l, err := s.load(imageID)
	if err != nil {
		return nil, err
	}
	return l.paths, nil
}

// load finds an image in memory, or reads it. One system call says whether what is in memory still holds.
func (s *Store) load(id string) (*loaded, error) {
	if !digestForm.MatchString(id) {
		return nil, fmt.Errorf("image %q: %w: it is no image ID", id, berth.ErrInvalid)
	}
	var st syscall.Stat_t
	if err := syscall.Stat(s.imagePath(id), &st); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("image %s: %w: it is not here", id, berth.ErrNotFound)
		}
		return nil, wrap("image "+id, err)
	}
	s.mu.Lock()
	l := s.loaded[id]
	s.mu.Unlock()
	if l != nil && l.inode == st.Ino {
		return l, nil
	}
	rec, err := s.readImage(id)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("image %s: %w: it is not here, or not whole; pull it again", id, berth.ErrNotFound)
	}
	if err != nil {
		return nil, wrap("image "+id, err)
	}
	if l, err = s.makeLoaded(rec, st.Ino); err != nil {
		return nil, wrap("image "+id, err)
	}
	s.mu.Lock()
	s.loaded[id] = l
	s.mu.Unlock()
	return l, nil
}

// makeLoaded works out the paths of an image's layers, down to one that hides all below it.
func (s *Store) makeLoaded(rec imageRecord, inode uint64) (*loaded, error) {
	l := &loaded{inode: inode, rec: rec, files: map[string][]byte{}}
	seen := map[string]bool{}
	for _, ref := range slices.Backward(rec.Layers) {
		key := ref.Key
		if seen[key] {
			continue // overlay takes no directory twice, and what lies higher shows all that it has
		}
		seen[key] = true
		short, err := s.shortLink(key)
		if err != nil {
			return nil, err
		}
		l.paths = append(l.paths, short)
		l.roots = append(l.roots, s.layerRoot(key))
		var layer layerRecord
		if err := readRecord(filepath.Join(s.layerDir(key), "layer.json"), &layer); err != nil {
			return nil, err
		}
		if layer.Opaque {
			break
		}
	}
	if len(l.paths) == 0 { // overlay takes no empty list, either
		l.paths = append(l.paths, filepath.Join(s.dir, emptyDir))
	}
	return l, nil
}

// linkLayers makes the short names of layers.
func (s *Store) linkLayers(layers []layerRef) error {
	for _, l := range layers {
		if _, err := s.shortLink(l.Key); err != nil {
			return err
		}
	}
	return nil
}

// shortLink returns the short name of a layer's directory, made where it is not there. Where the first
// characters are another layer's already, which only ill will brings about, the name is longer.
func (s *Store) shortLink(key string) (string, error) {
	sum, err := hex.DecodeString(key)
	if err != nil {
		return "", err
	}
	name := strings.TrimRight(base32.StdEncoding.EncodeToString(sum), "=")
	target := filepath.Join("..", "layers", key, "fs")
	for n := linkMin; n <= len(name); n++ {
		path := filepath.Join(s.dir, "l", name[:n])
		err := os.Symlink(target, path)
		if err == nil {
			return path, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return "", err
		}
		if have, err := os.Readlink(path); err == nil && have == target {
			return path, nil
		}
	}
	return "", fmt.Errorf("layer %s: %w: no short name is free", key, berth.ErrConflict)
}
