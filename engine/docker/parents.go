package docker

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The cgroups beneath which tasks had theirs made are kept, so that Sweep finds what a daemon that was killed has left there: the
// sandbox, which knew, is gone then. What was not there before is noted with them, and goes with the last sandbox beneath it.

func (e *Engine) parentsDir() string { return filepath.Join(e.cfg.Dir, "cgroup-parents") }

// parentNote is a parent that was noted.
type parentNote struct {
	Parent string `json:"parent"`
	// Made are the cgroups, the parent and those above it, that were not there before a task had them made: by hierarchy, from above.
	Made map[string][]string `json:"made,omitempty"`
}

func (e *Engine) parentFile(parent string) string {
	sum := sha256.Sum256([]byte(parent))
	return filepath.Join(e.parentsDir(), hex.EncodeToString(sum[:8]))
}

// keepParent notes a parent before a cgroup is made beneath it.
func (e *Engine) keepParent(parent string) error {
	if err := os.MkdirAll(e.parentsDir(), 0o700); err != nil {
		return err
	}
	lock, err := lockDir(e.parentsDir())
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	file := e.parentFile(parent)
	note, ok := readParent(file)
	if !ok {
		note = parentNote{Parent: parent}
	}
	if note.Made == nil {
		note.Made = map[string][]string{}
	}
	for _, root := range hierarchies() {
		for _, cgroup := range upTo(parent) {
			if !slices.Contains(note.Made[root], cgroup) && !exists(root+cgroup) {
				note.Made[root] = append(note.Made[root], cgroup)
			}
		}
	}
	return writeJSON(file, note)
}

// upTo are a cgroup and those above it, from above.
func upTo(cgroup string) (all []string) {
	for c := path.Clean(cgroup); c != "/" && c != "."; c = path.Dir(c) {
		all = append(all, c)
	}
	slices.Reverse(all)
	return all
}

// readParent reads a note; that of an older berth is the parent alone.
func readParent(file string) (parentNote, bool) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return parentNote{}, false
	}
	if path.IsAbs(string(raw)) {
		return parentNote{Parent: string(raw)}, true
	}
	var note parentNote
	err = json.Unmarshal(raw, &note)
	return note, err == nil && path.IsAbs(note.Parent)
}

// parents are those that were noted, by their files.
func (e *Engine) parents() map[string]parentNote {
	noted := map[string]parentNote{}
	entries, _ := os.ReadDir(e.parentsDir())
	for _, d := range entries {
		file := filepath.Join(e.parentsDir(), d.Name())
		if note, ok := readParent(file); ok && !strings.HasPrefix(d.Name(), ".") {
			noted[file] = note
		}
	}
	return noted
}

// removeParents removes the cgroups that are noted as made for tasks, where no sandbox has its own made beneath them and they are
// empty. What is gone is noted no more: whoever makes it next does so for himself.
func (e *Engine) removeParents() error {
	if !exists(e.parentsDir()) {
		return nil
	}
	lock, err := lockDir(e.parentsDir()) // so that none is removed that is just being noted
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	sandboxes, err := os.ReadDir(filepath.Join(e.cfg.Dir, "sandboxes"))
	if err != nil {
		return err
	}
	var errs []error
	for file, note := range e.parents() {
		left := map[string][]string{}
		changed := false
		for root, made := range note.Made {
			for _, cgroup := range slices.Backward(made) {
				if !e.parentInUse(sandboxes, cgroup) && rmdirCgroup(root+cgroup) {
					changed = true
					continue
				}
				left[root] = append(left[root], cgroup)
			}
			slices.Reverse(left[root])
		}
		if changed {
			note.Made = left
			errs = append(errs, writeJSON(file, note))
		}
	}
	return errors.Join(errs...)
}

// rmdirCgroup reports whether a cgroup is not there any more.
func rmdirCgroup(dir string) bool {
	err := unix.Rmdir(dir)
	return err == nil || errors.Is(err, unix.ENOENT)
}

// sweepCgroups removes what is left of the cgroups of steps whose sandboxes are gone: Podman's conmon stays in them for
// five minutes after an exec, and a daemon that is killed leaves those of what it starts. Those of another data directory, of
// this owner for another daemon, have another name: an empty one may be that of a container which is being started.
func (e *Engine) sweepCgroups() error {
	noted := e.parents()
	left := map[string][]string{defaultParent: e.cgroupsIn(defaultParent)}
	for _, note := range noted {
		left[note.Parent] = e.cgroupsIn(note.Parent)
	}
	// In this order: a cgroup's sandbox is there before it.
	sandboxes, err := os.ReadDir(filepath.Join(e.cfg.Dir, "sandboxes"))
	if err != nil {
		return err
	}
	for parent, names := range left {
		for _, name := range names {
			of := func(s os.DirEntry) bool { return strings.HasPrefix(name, e.group+"-"+s.Name()+"-") }
			if !slices.ContainsFunc(sandboxes, of) {
				cgroup := path.Join(parent, name)
				removeBeneath(cgroup)
				removeCgroup(cgroup)
			}
		}
	}
	if err := e.removeParents(); err != nil {
		return err
	}
	for file, note := range e.parents() {
		// One that was noted just now may be of a sandbox that is not there yet.
		st, err := os.Stat(file)
		if err == nil && time.Since(st.ModTime()) > halfAge && note.empty() && len(e.cgroupsIn(note.Parent)) == 0 && !e.parentInUse(sandboxes, note.Parent) {
			_ = os.Remove(file)
		}
	}
	return nil
}

// empty reports whether nothing is there that was made for tasks.
func (n parentNote) empty() bool {
	for _, made := range n.Made {
		if len(made) > 0 {
			return false
		}
	}
	return true
}

// parentInUse reports whether a sandbox has its cgroups made in a cgroup or beneath it, or may have: one without a record is just
// being opened.
func (e *Engine) parentInUse(sandboxes []os.DirEntry, cgroup string) bool {
	return slices.ContainsFunc(sandboxes, func(d os.DirEntry) bool {
		spec, err := e.readSandbox(d.Name())
		if err != nil {
			return exists(e.sandboxDir(d.Name()))
		}
		return spec.CgroupParent != "" && slices.Contains(upTo(spec.CgroupParent), cgroup)
	})
}

// cgroupsIn names the cgroups of this data directory's steps beneath a parent, in whichever hierarchy.
func (e *Engine) cgroupsIn(parent string) (names []string) {
	for _, root := range hierarchies() {
		entries, _ := os.ReadDir(root + parent)
		for _, d := range entries {
			if d.IsDir() && strings.HasPrefix(d.Name(), e.group+"-") && !slices.Contains(names, d.Name()) {
				names = append(names, d.Name())
			}
		}
	}
	return names
}
