package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Hold keeps an image from being removed for as long as holder, an absolute path on this host, exists: the
// directory of a sandbox, for instance. A hold needs no process to live, and ends by itself when the holder
// is removed, or by Release. Holding again is no error. ErrNotFound if there is no such image.
func (s *Store) Hold(imageID, holder string) error {
	if !filepath.IsAbs(holder) {
		return fmt.Errorf("hold image %s: %w: %q is no absolute path", imageID, berth.ErrInvalid, holder)
	}
	if !digestForm.MatchString(imageID) {
		return fmt.Errorf("hold image %q: %w: it is no image ID", imageID, berth.ErrInvalid)
	}
	if _, err := os.Lstat(holder); err != nil {
		return wrap("hold image "+imageID, err)
	}
	lock, err := s.lock(context.Background())
	if err != nil {
		return wrap("hold image "+imageID, err)
	}
	defer lock.Close()
	if _, err := os.Lstat(s.imagePath(imageID)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("hold image %s: %w: it is not here", imageID, berth.ErrNotFound)
		}
		return wrap("hold image "+imageID, err)
	}
	err = os.Symlink(filepath.Clean(holder), s.holdPath(imageID, holder))
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return wrap("hold image "+imageID, err)
	}
	s.touch(imageID)
	return nil
}

// Release ends a hold. No error if there is none.
func (s *Store) Release(imageID, holder string) error {
	if !digestForm.MatchString(imageID) {
		return fmt.Errorf("release image %q: %w: it is no image ID", imageID, berth.ErrInvalid)
	}
	return wrap("release image "+imageID, ignoreMissing(os.Remove(s.holdPath(imageID, holder))))
}

// holdPath names a hold: a symbolic link to the holder, so that making one is one system call.
func (s *Store) holdPath(id, holder string) string {
	sum := sha256.Sum256([]byte(filepath.Clean(holder)))
	return filepath.Join(s.dir, "holds", hexOf(id)+"."+hex.EncodeToString(sum[:8]))
}

// holders returns, by image ID, who holds it, and removes the holds of holders that are gone. The store's
// lock is held.
func (s *Store) holders() (map[string][]string, error) {
	dir := filepath.Join(s.dir, "holds")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	held := map[string][]string{}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		holder, err := os.Readlink(path)
		if err != nil {
			continue // released meanwhile
		}
		if gone(holder) {
			if err := ignoreMissing(os.Remove(path)); err != nil {
				return nil, err
			}
			continue
		}
		hexID, _, _ := strings.Cut(e.Name(), ".")
		held["sha256:"+hexID] = append(held["sha256:"+hexID], holder)
	}
	return held, nil
}

func gone(holder string) bool {
	_, err := os.Lstat(holder)
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR)
}

// sweepHolds removes the holds of holders that are gone: whoever was killed released none. It takes the store's
// lock only where there are any.
func (s *Store) sweepHolds() error {
	dir := filepath.Join(s.dir, "holds")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		holder, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err != nil || !gone(holder) {
			continue
		}
		lock, err := s.lock(context.Background())
		if err != nil {
			return err
		}
		defer lock.Close()
		_, err = s.holders()
		return err
	}
	return nil
}
