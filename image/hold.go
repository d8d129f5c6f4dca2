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
	if err := s.makeHold(imageID, filepath.Clean(holder)); err != nil {
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
	shared, own := s.holdPath(imageID, holder)
	err := fs.ErrNotExist
	if shared != "" {
		err = os.Remove(shared)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = os.Remove(own)
	}
	return wrap("release image "+imageID, ignoreMissing(err))
}

// longestBase is the length of a holder's name that a hold's name has room for, in bytes.
const longestBase = 128

// holdPath names a hold: a hard link to the one symbolic link that leads to the holder's parent directory, with the
// holder's own name at its end. So a hold is no inode of its own: many short-lived ones would cost more than all else
// of it on some file systems. own is the other kind, a symbolic link to the holder, for where that cannot be.
func (s *Store) holdPath(id, holder string) (shared, own string) {
	holder = filepath.Clean(holder)
	own = filepath.Join(s.dir, "holds", hexOf(id)+"."+shortSum(holder))
	if base := filepath.Base(holder); len(base) <= longestBase {
		shared = own + "." + base
	}
	return shared, own
}

func shortSum(path string) string {
	sum := sha256.Sum256([]byte(path))
	return hex.EncodeToString(sum[:8])
}

// makeHold makes a hold, or finds it. The store's lock is held.
func (s *Store) makeHold(id, holder string) error {
	shared, own := s.holdPath(id, holder)
	err := error(unix.EPERM)
	if shared != "" {
		err = s.linkHold(filepath.Dir(holder), shared)
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) { // a file system without hard links
		err = os.Symlink(holder, own)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

func (s *Store) linkHold(parent, path string) error {
	link := filepath.Join(s.dir, "holders", shortSum(parent))
	err := os.Link(link, path)
	if errors.Is(err, unix.EMLINK) { // ext4 has 65000 at most
		if err := os.Remove(link); err != nil {
			return err
		}
		err = fs.ErrNotExist
	}
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.Symlink(parent, link); err != nil {
			return err
		}
		err = os.Link(link, path)
	}
	return err
}

// holderOf is whom the hold of that name in dir is for.
func holderOf(dir, name string) (string, error) {
	target, err := os.Readlink(filepath.Join(dir, name))
	if err != nil {
		return "", err
	}
	if parts := strings.SplitN(name, ".", 3); len(parts) == 3 {
		return filepath.Join(target, parts[2]), nil
	}
	return target, nil
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
		holder, err := holderOf(dir, e.Name())
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
		holder, err := holderOf(dir, e.Name())
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
