package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// A layer is unpacked without looking at those below it, so that images can share it and layers can be
// unpacked at once. Two things need more: a hard link to a file of a lower layer, and a directory that the
// archive only implies, which must not lose the owner and mode that a lower layer gave it. Where a layer has
// one of these, a small layer made here is put right above it: it holds those links and directories. It is
// named by the digests of all layers below it.

// joinLayers returns the layers of an image, lowest first, with those that had to be made. The store's lock
// is held.
func (s *Store) joinLayers(ctx context.Context, work *workDir, layers []layerRef) ([]layerRef, error) {
	var joined []layerRef
	var below []string // the directories of the layers so far, topmost first
	chain := sha256.New()
	for _, l := range layers {
		fmt.Fprintf(chain, "%s\n", l.Key)
		var rec layerRecord
		if err := readRecord(filepath.Join(s.layerDir(l.Key), "layer.json"), &rec); err != nil {
			return nil, err
		}
		joined = append(joined, l)
		if rec.Opaque {
			below = nil
		}
		j := &joiner{store: s, layer: s.layerRoot(l.Key), below: s.view(below)}
		below = slices.Insert(below, 0, j.layer)
		j.with = s.view(below)
		key, err := j.join(ctx, work, rec, hex.EncodeToString(chain.Sum(nil)))
		if err != nil {
			return nil, fmt.Errorf("layer sha256:%s: %w", l.Key, err)
		}
		if key != "" {
			joined = append(joined, layerRef{Key: key, Made: true})
			below = slices.Insert(below, 0, s.layerRoot(key))
		}
	}
	return joined, nil
}

// joiner makes the layer that joins one layer to those below it.
type joiner struct {
	store *Store
	layer string
	below view
	with  view // the layer and those below it
	root  string
}

// join makes the layer where one is needed, and returns its key, or "".
func (j *joiner) join(ctx context.Context, work *workDir, rec layerRecord, chain string) (string, error) {
	dirs, err := j.lostAttributes(ctx, rec.Implied)
	if err != nil || len(dirs) == 0 && len(rec.Links) == 0 {
		return "", err
	}
	sum := sha256.Sum256([]byte("join " + chain))
	key := hex.EncodeToString(sum[:])
	if ok, err := j.store.haveLayer(key); ok || err != nil {
		return key, err
	}
	dir := filepath.Join(work.path, "join-"+key)
	j.root = filepath.Join(dir, "fs")
	if err := os.MkdirAll(j.root, 0o755); err != nil {
		return "", err
	}
	for _, l := range rec.Links {
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if err := j.link(l); err != nil {
			return "", err
		}
	}
	for _, d := range dirs {
		if err := j.dirs(d); err != nil {
			return "", err
		}
	}
	if err := j.attributes(ctx, dirs); err != nil {
		return "", err
	}
	made := layerRecord{DiffID: "sha256:" + key}
	if made.Entries, made.Bytes, err = census(j.root); err != nil {
		return "", err
	}
	if err := j.store.seal(dir, &made); err != nil {
		return "", err
	}
	return key, j.store.publish(dir, key)
}

// lostAttributes are the implied directories that are in a lower layer with an owner or mode of their own.
func (j *joiner) lostAttributes(ctx context.Context, implied []string) ([]string, error) {
	var lost []string
	for _, d := range implied {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		m, err := j.below.find(d, false)
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		case err != nil:
			return nil, fmt.Errorf("directory %.200q: %w", d, err)
		case m.isDir() && m.name == d && (m.stat.Mode&0o7777 != 0o755 || m.stat.Uid != 0 || m.stat.Gid != 0):
			lost = append(lost, d)
		}
	}
	return lost, nil
}

// link makes a hard link to a file of a lower layer; the two layers then share it.
func (j *joiner) link(l link) error {
	m, err := j.below.find(l.Target, false)
	if err != nil || m.isDir() {
		return errArchive("hard link %.200q: no layer has the file %.200q", l.Name, l.Target)
	}
	if err := j.dirs(path.Dir(l.Name)); err != nil {
		return err
	}
	return os.Link(m.paths[0], filepath.Join(j.root, l.Name))
}

// dirs makes the directories down to dir.
func (j *joiner) dirs(dir string) error {
	return os.MkdirAll(filepath.Join(j.root, dir), 0o755)
}

// attributes gives every directory what it has in the merged view: that of the lower layers for those that
// lost theirs.
func (j *joiner) attributes(ctx context.Context, lost []string) error {
	var dirs []string
	err := filepath.WalkDir(j.root, func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, strings.TrimPrefix(strings.TrimPrefix(p, j.root), "/"))
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Reverse(dirs) // what lies in a directory before it
	wasLost := map[string]bool{}
	for _, d := range lost {
		wasLost[d] = true
	}
	for _, d := range dirs {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		from := j.with
		if wasLost[d] {
			from = j.below
		}
		m, err := from.find(d, false)
		if err != nil || !m.isDir() {
			return fmt.Errorf("%w: %.200q is no directory below", berth.ErrInvalid, d)
		}
		if err := setAttributes(filepath.Join(j.root, d), &m.stat); err != nil {
			return err
		}
	}
	return nil
}

// setAttributes sets owner, mode and time of a directory made here.
func setAttributes(path string, st *unix.Stat_t) error {
	if err := unix.Lchown(path, int(st.Uid), int(st.Gid)); err != nil {
		return sysErr("chown", err)
	}
	if err := unix.Chmod(path, st.Mode&0o7777); err != nil {
		return sysErr("chmod", err)
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	return sysErr("set the time", unix.UtimesNanoAt(unix.AT_FDCWD, path, times, unix.AT_SYMLINK_NOFOLLOW))
}
