package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

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
	for range baseTries {
		before := exists(dir + "/cgroup.procs")
		h.killer, h.counts = exists(dir+"/cgroup.kill"), exists(dir+"/cpu.stat")
		if h.killer && h.counts || before && exists(dir+"/cgroup.procs") || !makeBase(dir) {
			return
		}
	}
}

// findUnified looks for a place that has all controllers: at the root; in what the user's systemd gives; in our
// own cgroup, which was delegated to this user or to the container that we are in; and above it, where a shell
// lies in a part of what was delegated. The best that was found is kept.
func (h *Host) findUnified(ctx context.Context, found *hierarchy, opts Options) {
	if h.consider(found, "/", opts) {
		return
	}
	own := strings.TrimSuffix(found.own, "/"+leaf)
	bus := ""
	if os.Geteuid() != 0 || !ownsHost() {
		bus = userBus()
	}
	// In a unit that is not marked as delegated, systemd enables and disables controllers as it sees fit.
	var refused error
	asked := bus == "" || marked(found.mount+own)
	if !asked {
		if refused = h.ask(ctx, bus, found, opts); refused == nil {
			return
		}
	}
	for at := own; at != "/"; at = path.Dir(at) {
		if (at == own || !managed(at)) && h.consider(found, at, opts) {
			return
		}
	}
	if asked && bus != "" {
		if refused = h.ask(ctx, bus, found, opts); refused == nil {
			return
		}
	}
	if refused != nil {
		h.lacks = append(h.lacks, berth.Lack{What: "a cgroup of the user's systemd", Why: refused.Error(), Remedy: remedyDelegate})
	}
}

// ask has the user's systemd give us a scope, which we are then in. Without Options.Adopt it only looks what there
// is to give.
func (h *Host) ask(ctx context.Context, bus string, found *hierarchy, opts Options) error {
	if !opts.Adopt {
		h.promise(userDelegated(&tree{hierarchy: *found}))
		return nil
	}
	scope, err := enterScope(ctx, bus, opts.Scope)
	if err == nil {
		h.consider(found, scope, opts)
	}
	return err
}

// marked reports whether systemd marked a cgroup as delegated.
func marked(dir string) bool {
	var value [1]byte
	n, err := unix.Getxattr(dir, "user.delegate", value[:])
	return err == nil && n == 1 && value[0] == '1'
}

// managed reports whether the systemd of the host or of a user makes and removes the cgroups in this one.
func managed(at string) bool {
	name := path.Base(at)
	return strings.HasSuffix(name, ".slice") || strings.HasPrefix(name, "user@") && strings.HasSuffix(name, ".service")
}

// consider takes the place below at into use if it is better than what was found, and reports whether it has
// all that is needed for limits.
func (h *Host) consider(found *hierarchy, at string, opts Options) (complete bool) {
	t := &tree{hierarchy: *found, base: path.Join(at, opts.Base)}
	if !makeBase(t.mount + t.base) {
		return false
	}
	dir := t.mount + at
	if !opts.Adopt {
		return h.look(t, dir)
	}
	has, back := h.give(t, dir)
	if h.v2 != nil && count(has) <= count(h.v2has) {
		back()
		_ = os.Remove(t.mount + t.base)
		return false
	}
	if h.v2 != nil {
		h.release()
		_ = os.Remove(h.v2.mount + h.v2.base)
	}
	h.v2, h.v2has, h.release, h.shelters = t, has, back, dir
	return enough(has)
}

// enough reports whether there is all that is needed for limits.
func enough(has [controllers]bool) bool { return has[cpu] && has[memory] && has[pids] }

// look finds out what give would have to give, and changes nothing that stays.
func (h *Host) look(t *tree, dir string) (complete bool) {
	var has [controllers]bool
	if h.usable(dir) {
		has = named(dir + "/cgroup.controllers")
	} else {
		has = named(dir + "/cgroup.subtree_control") // what it gives already
	}
	if h.v2 != nil && count(has) <= count(h.promised) {
		_ = os.Remove(t.mount + t.base)
		return false
	}
	if h.v2 != nil {
		_ = os.Remove(h.v2.mount + h.v2.base)
	}
	h.v2 = t
	h.promise(has)
	return enough(has)
}

func (h *Host) promise(has [controllers]bool) {
	if count(has) > count(h.promised) {
		h.promised = has
	}
}

// give enables the controllers for what is made below t.base, which lies in dir, and answers which are, and
// how to take back a move of processes.
func (h *Host) give(t *tree, dir string) (has [controllers]bool, back func()) {
	back = func() {}
	if h.usable(dir) {
		if err := enable(dir); errors.Is(err, unix.EBUSY) && intoLeaf(dir) == nil {
			back = func() { _ = outOfLeaf(dir) }
			if err := enable(dir); err != nil {
				back()
			}
		}
	}
	base := t.mount + t.base
	for range baseTries {
		err := enable(base) // what could not be enabled is not in the list below
		has = named(base + "/cgroup.subtree_control")
		if err != nil && !vanished(err) || has == named(dir+"/cgroup.subtree_control") || !makeBase(base) {
			break
		}
	}
	return has, back
}

// usable reports whether dir can be made to give the controllers that it has. What keeps it from that is
// remembered: of several places the first, which is the nearest.
func (h *Host) usable(dir string) bool {
	if !exists(dir + "/cgroup.type") { // the host's own root
		return unix.Access(dir+"/cgroup.subtree_control", unix.W_OK) == nil
	}
	b := obstacle{dir: dir}
	for _, f := range []string{"cgroup.procs", "cgroup.subtree_control"} {
		if unix.Access(dir+"/"+f, unix.W_OK) != nil {
			b.locked = append(b.locked, dir+"/"+f)
		}
	}
	if len(b.locked) == 0 {
		if on := named(dir + "/cgroup.subtree_control"); !enough(on) {
			b.strangers = strangers(dir)
		}
	}
	if h.obstacle.dir == "" && len(b.locked)+len(b.strangers) > 0 {
		h.obstacle = b
	}
	return len(b.locked)+len(b.strangers) == 0
}

// obstacle is what keeps a cgroup that this process may make others in from giving them its controllers.
type obstacle struct {
	dir       string
	locked    []string // files that cannot be written
	strangers []string // processes in it that are not ours to move
}

// named is a list of controllers in a file.
func named(file string) (has [controllers]bool) {
	list := fields(file)
	for c, name := range v2Names {
		has[c] = name != "" && contains(list, name)
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

// enableAll makes sure that what is made in dir has every controller that the host promises.
func (h *Host) enableAll(t *tree, dir string) error {
	err := enable(dir)
	if errors.Is(err, unix.EBUSY) && dir == h.shelters && intoLeaf(dir) == nil { // another berth that ended moved us back
		err = enable(dir)
	}
	on := fields(dir + "/cgroup.subtree_control")
	for c, name := range v2Names {
		if !h.v2has[c] || contains(on, name) {
			continue
		}
		if dir == t.mount || contains(fields(dir+"/cgroup.controllers"), name) {
			return withheld(dir, name, err)
		}
		// What lies above does not give it.
		if err := h.enableAll(t, path.Dir(dir)); err != nil {
			return err
		}
		err = enable(dir)
		on = fields(dir + "/cgroup.subtree_control")
		if !contains(on, name) {
			return withheld(dir, name, err)
		}
	}
	return nil
}

// withheld is the error of a directory that lacks a controller for its children, after enable has answered err.
func withheld(dir, name string, err error) error {
	if err == nil { // others have removed it, and made it anew, since
		err = fs.ErrNotExist
	}
	return fmt.Errorf("%w: %s does not give the %s controller to its children: %w", berth.ErrDenied, dir, name, err)
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
