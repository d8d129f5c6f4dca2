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
func (h *Host) findV2(ctx context.Context, found *hierarchy, opts Options) {
	if h.version == Hybrid {
		h.v2 = writable(found, opts.Base)
	} else {
		h.findUnified(ctx, found, opts)
	}
	if h.v2 == nil {
		return
	}
	dir := h.v2.mount + h.v2.base
	h.killer = exists(dir + "/cgroup.kill")
	h.counts = exists(dir + "/cpu.stat")
}

// findUnified looks for a place below the root, then below our own cgroup, then asks the user's systemd,
// until one has all controllers. The best that was found is kept.
func (h *Host) findUnified(ctx context.Context, found *hierarchy, opts Options) {
	if h.consider(found, "/", opts) {
		return
	}
	own := strings.TrimSuffix(found.own, "/"+leaf)
	if own != "/" && h.consider(found, own, opts) {
		return
	}
	bus := userBus()
	if bus == "" || os.Geteuid() == 0 && ownsHost() {
		return
	}
	if !opts.Adopt {
		h.promised = userDelegated(&tree{hierarchy: *found})
		return
	}
	scope, err := enterScope(ctx, bus, opts.Scope)
	if err != nil {
		h.lacks = append(h.lacks, berth.Lack{What: "a cgroup of the user's systemd", Why: err.Error(), Remedy: remedyDelegate})
		return
	}
	h.consider(found, scope, opts)
}

// consider takes the place below at into use if it is better than what was found, and reports whether it has
// all that is needed for limits.
func (h *Host) consider(found *hierarchy, at string, opts Options) (complete bool) {
	t := &tree{hierarchy: *found, base: path.Join(at, opts.Base)}
	if err := os.Mkdir(t.mount+t.base, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return false
	}
	if unix.Access(t.mount+t.base, unix.W_OK|unix.X_OK) != nil {
		return false
	}
	has, back := give(t, at, opts.Adopt)
	if h.v2 != nil && count(has) <= count(h.v2has) {
		back()
		_ = os.Remove(t.mount + t.base)
		return false
	}
	if h.v2 != nil {
		h.release()
		_ = os.Remove(h.v2.mount + h.v2.base)
	}
	h.v2, h.v2has, h.release = t, has, back
	return has[cpu] && has[memory] && has[pids]
}

// give enables the controllers for what is made below t.base, which lies in at, and answers which are, and
// how to take back a move of this process.
func give(t *tree, at string, adopt bool) (has [controllers]bool, back func()) {
	back = func() {}
	dir := t.mount + at
	if err := enable(dir); errors.Is(err, unix.EBUSY) && adopt && intoLeaf(dir) == nil {
		if err := enable(dir); err != nil {
			_ = outOfLeaf(dir)
		} else {
			back = func() { _ = outOfLeaf(dir) }
		}
	}
	_ = enable(t.mount + t.base) // what could not be enabled is not in the list below
	on := fields(t.mount + t.base + "/cgroup.subtree_control")
	for c, name := range v2Names {
		has[c] = name != "" && contains(on, name)
	}
	return has, back
}

// enable gives the controllers that dir has to its children. It answers the last error of those that it
// could not give.
func enable(dir string) (last error) {
	have, on := fields(dir+"/cgroup.controllers"), fields(dir+"/cgroup.subtree_control")
	for _, name := range v2Names {
		if name == "" || !contains(have, name) || contains(on, name) {
			continue
		}
		// With processes in it a cgroup would give cpu and pids, and become a threaded one: its children could
		// then have no processes. Only the host's root, which has no type, may have both.
		if len(fields(dir+"/cgroup.procs")) > 0 && exists(dir+"/cgroup.type") {
			return fmt.Errorf("enable %s in %s: %w", name, dir, unix.EBUSY)
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

// outOfLeaf is the reverse of intoLeaf; it needs a dir that no other cgroup is below.
func outOfLeaf(dir string) error {
	for _, name := range fields(dir + "/cgroup.subtree_control") {
		if err := write(dir+"/cgroup.subtree_control", "-"+name); err != nil {
			return err
		}
	}
	if err := write(dir+"/cgroup.procs", "0"); err != nil {
		return err
	}
	return os.Remove(dir + "/" + leaf)
}

// enableAll makes sure that what is made in dir has every controller that the host promises.
func (h *Host) enableAll(t *tree, dir string) error {
	err := enable(dir)
	on := fields(dir + "/cgroup.subtree_control")
	for c, name := range v2Names {
		if !h.v2has[c] || contains(on, name) {
			continue
		}
		if dir == t.mount || contains(fields(dir+"/cgroup.controllers"), name) {
			return fmt.Errorf("%w: %s does not give the %s controller to its children: %w", berth.ErrDenied, dir, name, err)
		}
		// What lies above does not give it.
		if err := h.enableAll(t, path.Dir(dir)); err != nil {
			return err
		}
		err = enable(dir)
		on = fields(dir + "/cgroup.subtree_control")
		if !contains(on, name) {
			return fmt.Errorf("%w: %s does not give the %s controller to its children: %w", berth.ErrDenied, dir, name, err)
		}
	}
	return nil
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
