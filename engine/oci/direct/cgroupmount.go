package direct

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// hierarchies remembers what findHierarchies found, for a second: hosts change theirs when they start.
type hierarchies struct {
	mu    sync.Mutex
	found []ownCgroup
	at    time.Time
}

// ownCgroup is this process's cgroup in a v1 hierarchy, as /proc/self/cgroup has both.
type ownCgroup struct{ controllers, path string }

func (h *hierarchies) get() ([]ownCgroup, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.at.IsZero() && time.Since(h.at) < time.Second {
		return h.found, nil
	}
	found, err := findHierarchies()
	if err != nil {
		return nil, err
	}
	h.found, h.at = found, time.Now()
	return found, nil
}

// findHierarchies finds the v1 cgroup hierarchies of this host; none where only v2 is.
func findHierarchies() ([]ownCgroup, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	var found []ownCgroup
	for line := range strings.Lines(string(data)) {
		if f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3); len(f) == 3 && f[1] != "" && f[2] != "" {
			found = append(found, ownCgroup{f[1], f[2]})
		}
	}
	slices.Reverse(found)
	return found, nil
}

// roots are mounts of whole v1 hierarchies that nothing else sees, each with the attributes of the mounts that a child clones of
// its part: that takes one system call where to make a mount takes seven. A hierarchy is mounted somewhere as long as one of them
// is. The zero value works.
type roots struct {
	mu      sync.Mutex
	mounts  map[rootOf]int
	refused bool // the kernel lets no child clone them: before Linux 6.15
}

type rootOf struct {
	controllers string // as /proc/PID/cgroup has them
	attrs       uint64
}

// maxRoots bounds them: there are a dozen of hierarchies, and containers want the same attributes.
const maxRoots = 64

// root is the mount of a hierarchy; -1 where there is none.
func (s *Starter) root(of rootOf) int {
	r := &s.roots
	r.mu.Lock()
	defer r.mu.Unlock()
	if fd, ok := r.mounts[of]; ok {
		return fd
	}
	if r.refused || len(r.mounts) >= maxRoots {
		return -1
	}
	fd, err := mountHierarchy(of)
	if err != nil {
		return -1
	}
	if len(r.mounts) == 0 {
		var may bool
		if may, r.refused = s.mayClone(fd); !may {
			_ = unix.Close(fd)
			return -1
		}
	}
	if r.mounts == nil {
		r.mounts = map[rootOf]int{}
	}
	r.mounts[of] = fd
	return fd
}

// mayClone reports whether a child in a mount namespace of its own may clone the mount, or is refused that.
func (s *Starter) mayClone(mount int) (may, refused bool) {
	b := s.builders.take()
	defer s.builders.give(b)
	b.open(unix.SYS_OPEN_TREE, arg(mount), b.str("."), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	b.call(unix.SYS_EXIT_GROUP, 0)
	r := &request{netns: -1, prog: b.finish()}
	r.args.flags = unix.CLONE_NEWNS | unix.CLONE_VM
	if err := s.plain.do(r); err != nil || r.errno != 0 {
		return false, false
	}
	c := newChild(r.pid, int(r.pidfd))
	_, _ = c.wait()
	_ = c.close()
	return r.prog.failed == 0, r.prog.failed != 0
}

func (r *roots) close() {
	for _, fd := range r.mounts {
		_ = unix.Close(fd)
	}
}

func mountHierarchy(of rootOf) (int, error) {
	fs, err := unix.Fsopen("cgroup", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer func() { _ = unix.Close(fs) }()
	source, options := hierarchyOptions(of.controllers)
	if err := unix.FsconfigSetString(fs, "source", source); err != nil {
		return -1, err
	}
	for _, o := range options {
		if o.value == "" {
			err = unix.FsconfigSetFlag(fs, o.key)
		} else {
			err = unix.FsconfigSetString(fs, o.key, o.value)
		}
		if err != nil {
			return -1, err
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(of.attrs))
	if err != nil {
		return -1, err
	}
	return raise(fd)
}

// hierarchyOptions are the source and the options of a hierarchy's mount.
func hierarchyOptions(controllers string) (source string, options []fsOption) {
	if name, named := strings.CutPrefix(controllers, "name="); named {
		return name, []fsOption{{key: "none"}, {"name", name}}
	}
	for c := range strings.SplitSeq(controllers, ",") {
		options = append(options, fsOption{key: c})
	}
	return "cgroup", options
}

// cgroupMount plans a mount of type cgroup: v2 as it is, else a tmpfs with every v1 hierarchy in it, as runc
// does. The cgroup namespace makes the container's own cgroup the root of each.
func (p *plan) cgroupMount(m *specs.Mount, o *mountOptions) error {
	found, err := p.s.cgroups.get()
	if err != nil {
		return err
	}
	if len(found) == 0 {
		_, err := p.newMount("cgroup2", m.Source, m.Destination, o)
		return err
	}
	base := mountOptions{set: o.set, fs: []fsOption{{"mode", "755"}}}
	top, err := p.newMount("tmpfs", "tmpfs", m.Destination, &base)
	if err != nil {
		return err
	}
	for _, h := range found {
		dir := strings.TrimPrefix(h.controllers, "name=")
		at, _, err := p.view.target(top.at+"/"+dir, true)
		if err != nil {
			return err
		}
		// By its name in the file system above, which is new: nothing but the directory that was just made can be there.
		m := p.hierarchy(h, at, o.set)
		clear(p.dirs) // as attach
		p.b.doing("mount on", at)
		p.b.call(unix.SYS_MOVE_MOUNT, m, p.b.str(""), top.mount, p.b.str(dir), unix.MOVE_MOUNT_F_EMPTY_PATH)
		if strings.Contains(dir, ",") {
			p.linkControllers(top, dir)
		}
	}
	return nil
}

// hierarchy adds the steps that make a mount of the container's part of a hierarchy.
func (p *plan) hierarchy(h ownCgroup, at string, attrs uint64) arg {
	source, fs := hierarchyOptions(h.controllers)
	if p.bundle.Cgroup == nil || p.userNS || p.s.inUserNS {
		return p.makeFS("cgroup", source, at, fs, attrs)
	}
	where, known := p.bundle.Cgroup.PathV1(h.controllers)
	if where == "" && h.path == "/" { // elsewhere, this process may be moved meanwhile
		where = h.path
	}
	root := -1
	if known && strings.HasPrefix(where, "/") && !strings.HasPrefix(where, "/..") { // from outside this process's cgroup namespace
		root = p.s.root(rootOf{h.controllers, attrs})
	}
	if root < 0 {
		return p.makeFS("cgroup", source, at, fs, attrs)
	}
	b := p.b
	b.doing("clone cgroup hierarchy for", at)
	clone := b.here()
	b.call(unix.SYS_OPEN_TREE, p.inherit(root), b.str(relative(where)), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW).into(p.nextMount())
	cloned := b.skip()
	b.to(clone, unix.EINVAL)
	b.to(clone, unix.ENOENT)
	m := p.makeFS("cgroup", source, at, fs, attrs)
	b.land(cloned)
	return m
}

// linkControllers makes the usual links to a hierarchy of several controllers.
func (p *plan) linkControllers(top planned, dir string) {
	to := p.b.str(dir)
	for c := range strings.SplitSeq(dir, ",") {
		p.b.doing("link", top.at+"/"+c)
		p.b.call(unix.SYS_SYMLINKAT, to, top.mount, p.b.str(c))
	}
}

// checkCgroupMount refuses to show cgroups without a cgroup namespace: they would be the host's.
func checkCgroupMount(spec *specs.Spec, m *specs.Mount) error {
	if m.Type != "cgroup" && m.Type != "cgroup2" {
		return nil
	}
	if _, ok := namespace(spec, specs.CgroupNamespace); !ok {
		return fmt.Errorf("type %s without a cgroup namespace: %w by a direct start", m.Type, berth.ErrUnsupported)
	}
	return nil
}
