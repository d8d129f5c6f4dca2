package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// leaf is the cgroup that Adopt moves this process into: one that has processes cannot give controllers to
// its children, but for the root of the whole host.
const leaf = "_self"

// findV2 takes the v2 hierarchy into use. On a hybrid host it holds no controllers that we need.
func (h *Host) findV2(ctx context.Context, found *hierarchy, opts Options) error {
	if h.version == Hybrid {
		h.v2 = writable(found, opts.Base)
	} else if err := h.findUnified(ctx, found, opts); err != nil {
		return err
	}
	if h.v2 == nil {
		return nil
	}
	dir := h.v2.mount + h.v2.base
	h.killer = exists(dir + "/cgroup.kill")
	h.counts = exists(dir + "/cpu.stat")
	return nil
}

// findUnified looks for a place below the root, then below our own cgroup, then asks the user's systemd,
// until one has all controllers. The best that was found is kept.
func (h *Host) findUnified(ctx context.Context, found *hierarchy, opts Options) error {
	type place struct {
		t   *tree
		has [controllers]bool
	}
	var best *place
	consider := func(at string) bool {
		t := &tree{hierarchy: *found, base: path.Join(at, opts.Base)}
		if err := os.Mkdir(t.mount+t.base, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return false
		}
		if unix.Access(t.mount+t.base, unix.W_OK|unix.X_OK) != nil {
			return false
		}
		p := &place{t: t, has: give(t, at, opts.Adopt)}
		if best == nil || count(p.has) > count(best.has) {
			if best != nil {
				_ = os.Remove(best.t.mount + best.t.base)
			}
			best = p
		} else {
			_ = os.Remove(t.mount + t.base)
		}
		return p.has[cpu] && p.has[memory] && p.has[pids]
	}
	done := consider("/")
	if !done && found.own != "/" {
		done = consider(strings.TrimSuffix(found.own, "/"+leaf))
	}
	if !done && h.userSystemd() {
		if opts.Adopt {
			scope, leave, err := enterScope(ctx, opts.Scope)
			if err == nil {
				h.release = leave
				consider(scope)
			} else {
				h.lacks = append(h.lacks, berth.Lack{What: "limits", Why: fmt.Sprintf("the user's systemd gives no cgroup: %v", err), Remedy: remedyDelegate})
			}
		}
	}
	if best != nil {
		h.v2, h.v2has = best.t, best.has
	}
	return nil
}

// give enables the controllers for what is made below t.base, which lies in at, and answers which are.
func give(t *tree, at string, adopt bool) (has [controllers]bool) {
	err := enable(t.mount + at)
	if errors.Is(err, unix.EBUSY) && adopt && intoLeaf(t.mount+at) == nil {
		err = enable(t.mount + at)
	}
	_ = err // what could not be enabled is not in the list below
	_ = enable(t.mount + t.base)
	on := fields(t.mount + t.base + "/cgroup.subtree_control")
	for c, name := range v2Names {
		has[c] = name != "" && contains(on, name)
	}
	return has
}

// enable gives the controllers that dir has to its children. It answers the last error of those that it
// could not give.
func enable(dir string) (last error) {
	have, on := fields(dir+"/cgroup.controllers"), fields(dir+"/cgroup.subtree_control")
	for _, name := range v2Names {
		if name == "" || !contains(have, name) || contains(on, name) {
			continue
		}
		if err := write(dir+"/cgroup.subtree_control", "+"+name); err != nil {
			last = err
		}
	}
	return last
}

// intoLeaf moves this process out of dir into a child of it.
func intoLeaf(dir string) error {
	if err := os.Mkdir(dir+"/"+leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return write(dir+"/"+leaf+"/cgroup.procs", "0")
}

func fields(file string) []string {
	b, err := read(file)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}

func count(has [controllers]bool) (n int) {
	for _, b := range has {
		if b {
			n++
		}
	}
	return n
}
