package docker

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// The cgroups beneath which tasks had theirs made are kept, so that Sweep finds what a daemon that was killed has left there: the
// sandbox, which knew, is gone then.

func (e *Engine) parentsDir() string { return filepath.Join(e.cfg.Dir, "cgroup-parents") }

// keepParent notes a parent before a cgroup is made beneath it.
func (e *Engine) keepParent(parent string) error {
	if err := os.MkdirAll(e.parentsDir(), 0o700); err != nil {
		return err
	}
	sum := sha256.Sum256([]byte(parent))
	return os.WriteFile(filepath.Join(e.parentsDir(), hex.EncodeToString(sum[:8])), []byte(parent), 0o600)
}

// parents are those that were noted, by their files.
func (e *Engine) parents() map[string]string {
	noted := map[string]string{}
	entries, _ := os.ReadDir(e.parentsDir())
	for _, d := range entries {
		file := filepath.Join(e.parentsDir(), d.Name())
		if raw, err := os.ReadFile(file); err == nil && path.IsAbs(string(raw)) {
			noted[file] = string(raw)
		}
	}
	return noted
}

// sweepCgroups removes what is left of the cgroups of steps whose sandboxes are gone: Podman's conmon stays in them for
// five minutes after an exec, and a daemon that is killed leaves those of what it starts. Those of another data directory, of
// this owner for another daemon, have another name: an empty one may be that of a container which is being started.
func (e *Engine) sweepCgroups() error {
	noted := e.parents()
	left := map[string][]string{defaultParent: e.cgroupsIn(defaultParent)}
	for _, parent := range noted {
		left[parent] = e.cgroupsIn(parent)
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
	for file, parent := range noted {
		// One that was noted just now may be of a sandbox that is not there yet.
		if st, err := os.Stat(file); err == nil && time.Since(st.ModTime()) > halfAge && len(e.cgroupsIn(parent)) == 0 && !e.parentInUse(sandboxes, parent) {
			_ = os.Remove(file)
		}
	}
	return nil
}

// parentInUse reports whether a sandbox has its cgroups made beneath a parent.
func (e *Engine) parentInUse(sandboxes []os.DirEntry, parent string) bool {
	return slices.ContainsFunc(sandboxes, func(d os.DirEntry) bool {
		spec, err := e.readSandbox(d.Name())
		return err == nil && spec.CgroupParent == parent
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
