package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/fds"
)

var _ bundle.Cgroup = (*Group)(nil)

// Group is the cgroup of one container: one directory on v2, one in each hierarchy on v1. Its methods may
// be called concurrently.
type Group struct {
	host   *Host
	path   string              // below the roots of the hierarchies
	v1     [controllers]string // directories; several may be the same one
	v2     string              // directory
	shared bool                // v1[devices] is not this group's alone
	limits Limits
	reuse  bool        // Pool may give it out again
	whole  bool        // whoever is in it is in all its directories
	spent  atomic.Bool // by Kill: see there
	base   counters    // what was used before it was given out

	beneath Spec                     // it was made with; see Host.leave
	left    sync.Once                // of Host.leave
	others  atomic.Pointer[[]string] // directories that Spread has made

	held  held // files that the pool has it keep open
	mu    sync.Mutex
	join  []*os.File // open tasks files
	dirV2 *os.File
}

// Make makes a group with its limits. Nothing is left of it after an error: ErrInvalid, ErrUnsupported (a
// limit that this host cannot keep), ErrConflict (the group is there), ErrDenied.
//
// Where the host lets us make no cgroups at all and no limits are asked for, the group is an empty one:
// nothing can be joined, and nothing is known of its usage.
func (h *Host) Make(spec Spec) (*Group, error) {
	if err := spec.check(); err != nil {
		return nil, err
	}
	return h.makeNamed(spec, "")
}

// makeNamed makes a group under another path than spec's, if it has one.
func (h *Host) makeNamed(spec Spec, name string) (*Group, error) {
	if name != "" {
		spec.Path = name
	}
	if err := h.supports(spec.Limits); err != nil {
		return nil, err
	}
	set, err := parseRules(spec.Devices)
	if err != nil {
		return nil, err
	}
	if err := h.CheckParent(spec.Parent); err != nil {
		return nil, err
	}
	g := &Group{host: h, limits: spec.Limits, reuse: name != "", whole: name != ""}
	h.enter(spec)
	g.beneath = spec
	if err := g.make(spec, set); err != nil {
		g.unmake()
		h.leave(spec)
		return nil, kind("make cgroup "+spec.Path, err)
	}
	return g, nil
}

// Open finds a group that something else made: path is as OCI runtimes take it in linux.cgroupsPath.
// ErrNotFound if no hierarchy has it.
func (h *Host) Open(cgroup string) (*Group, error) {
	g := &Group{host: h, path: path.Clean("/" + cgroup)}
	found := false
	for c, t := range h.v1 {
		if t != nil && exists(t.mount+g.path) {
			g.v1[c], found = t.mount+g.path, true
		}
	}
	if h.v2 != nil && exists(h.v2.mount+g.path) {
		g.v2, found = h.v2.mount+g.path, true
	}
	if !found {
		return nil, fmt.Errorf("cgroup %s: %w", g.path, berth.ErrNotFound)
	}
	return g, nil
}

// Path is the group's path below the roots of its hierarchies, as OCI runtimes take it; "" for a group
// without any cgroup.
func (g *Group) Path() string { return g.path }

// Limits are those that the group was made with or was set to.
func (g *Group) Limits() Limits {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.limits
}

// JoinV1 are the open tasks files, one a v1 hierarchy; a process that writes "0" into each is in the group.
// They stay open until Close.
func (g *Group) JoinV1() []*os.File {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.join == nil {
		_ = g.openJoin()
	}
	return g.join
}

// PathV1 implements bundle.Cgroup.
func (g *Group) PathV1(controllers string) (where string, known bool) {
	list := strings.Split(controllers, ",")
	slices.Sort(list)
	g.mu.Lock()
	defer g.mu.Unlock()
	for c, t := range g.host.v1 {
		if t == nil || g.v1[c] == "" || !slices.ContainsFunc(list, t.has) {
			continue
		}
		where, ok := strings.CutPrefix(g.v1[c], t.mount)
		if !ok || where == "" || t.root != "/" || !slices.Equal(t.controllers, list) {
			return "", false
		}
		return where, true
	}
	return "", true
}

// DirV2 is the open directory of the v2 cgroup, for CLONE_INTO_CGROUP; nil where there is none. It stays
// open until Close.
func (g *Group) DirV2() *os.File {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dirV2 == nil && g.v2 != "" {
		_ = g.openDir()
	}
	return g.dirV2
}

// Close closes the files that JoinV1 and DirV2 answer, and others that it has kept open. The group itself stays.
func (g *Group) Close() error {
	g.host.holders.remove(g)
	g.mu.Lock()
	defer g.mu.Unlock()
	var errs []error
	for _, f := range g.join {
		errs = append(errs, f.Close())
	}
	if g.dirV2 != nil {
		errs = append(errs, g.dirV2.Close())
	}
	g.join, g.dirV2 = nil, nil
	return errors.Join(errs...)
}

// Set changes the limits while the group runs. ErrExhausted: more memory than the new limit is in use and
// cannot be reclaimed; the old limits then hold.
func (g *Group) Set(l Limits) error {
	if err := l.check(); err != nil {
		return err
	}
	if err := g.host.supports(l); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.limits
	if err := g.set(old, l); err != nil {
		_ = g.set(l, old)
		return kind("limit cgroup "+g.path, err)
	}
	g.limits = l
	return nil
}

// unlimited is what a new directory has.
var unlimited = Limits{PIDs: -1}

func (g *Group) make(spec Spec, set rules) error {
	if err := g.mkdirs(spec, set); err != nil {
		return err
	}
	if err := g.openJoin(); err != nil {
		return err
	}
	if g.v2 != "" {
		if err := g.openDir(); err != nil {
			return err
		}
	}
	return g.set(unlimited, spec.Limits)
}

func (g *Group) mkdirs(spec Spec, set rules) error {
	h := g.host
	made := map[*tree]string{}
	for c, t := range h.v1 {
		if t == nil || !g.needs(controller(c)) {
			continue
		}
		if made[t] == "" && controller(c) != devices {
			dir := t.mount + t.at(spec.Parent) + "/" + spec.Path
			if err := h.mkdir(t, dir); err != nil {
				return err
			}
			made[t] = dir
			g.path = dir[len(t.mount):]
		}
		g.v1[c] = made[t]
	}
	if t := h.v1[devices]; t != nil && made[t] != "" {
		if err := set.applyV1(made[t]); err != nil {
			return err
		}
		g.v1[devices] = made[t]
	} else if t != nil {
		dir, err := h.deviceGroup(t, spec, set)
		if err != nil {
			return err
		}
		g.v1[devices], g.shared = dir, true
	}
	if h.v2 == nil {
		return nil
	}
	dir := h.v2.mount + h.v2.at(spec.Parent) + "/" + spec.Path
	if h.version == V2 {
		parent, err := h.deviceGroup(h.v2, spec, set)
		if err != nil {
			return err
		}
		dir = parent + "/" + path.Base(spec.Path)
	}
	if err := h.mkdir(h.v2, dir); err != nil {
		return err
	}
	g.v2 = dir
	if h.version == V2 || g.path == "" {
		g.path = dir[len(h.v2.mount):]
	}
	return nil
}

// needs reports whether the group has a directory of a v1 controller: of two that serve the same end one is
// enough, and each costs.
func (g *Group) needs(c controller) bool {
	switch c {
	case cpuacct:
		return g.host.v1[cpuacct] == g.host.v1[cpu] || !g.host.counts
	case freezer:
		return g.host.v2 == nil || !g.host.killer
	default:
		return true
	}
}

// at is where groups with a parent are made, if the hierarchy has it.
func (t *tree) at(parent string) string {
	if parent == "" || !exists(t.mount+parent) {
		return t.base
	}
	return path.Join(parent, path.Base(t.base))
}

// mkdir makes a group's directory, and what lies above it where that is not there yet. A directory that is
// there is an error.
func (h *Host) mkdir(t *tree, dir string) error {
	// What lies above may be removed by others at any time, when it looks empty to them: between any two steps.
	for try := 0; ; try++ {
		err := h.parent(t, path.Dir(dir))
		if err == nil {
			err = os.Mkdir(dir, 0o755)
		}
		if try < 100 && vanished(err) {
			h.forget()
			continue
		}
		return err
	}
}

// parent makes a directory in which groups are made, and enables the controllers of v2 down to it.
func (h *Host) parent(t *tree, dir string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.parentLocked(t, dir)
}

func (h *Host) parentLocked(t *tree, dir string) error {
	if h.parents[dir] {
		return nil
	}
	if err := os.Mkdir(dir, 0o755); errors.Is(err, fs.ErrNotExist) {
		if err := h.parentLocked(t, path.Dir(dir)); err != nil {
			return err
		}
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	} else if err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	} else if err == nil && dir == t.mount+t.base {
		t.sum()
	}
	if t.v2 && count(h.v2has) > 0 {
		if err := h.enableAll(t, dir); err != nil {
			return err
		}
	}
	h.parents[dir] = true
	return nil
}

// forget makes the next group look again at what lies above it.
func (h *Host) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	clear(h.parents)
	clear(h.rules)
}

// openJoin opens the tasks files. The process that writes to one needs no right to open it.
func (g *Group) openJoin() error {
	var seen [controllers]string
	for c, dir := range g.v1 {
		if dir == "" || contains(seen[:c], dir) {
			continue
		}
		seen[c] = dir
		fd, err := open(dir+"/tasks", unix.O_WRONLY)
		if err != nil {
			return err
		}
		g.join = append(g.join, os.NewFile(uintptr(fds.Aside(fd)), dir+"/tasks"))
	}
	return nil
}

func (g *Group) openDir() error {
	fd, err := open(g.v2, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	g.dirV2 = os.NewFile(uintptr(fd), g.v2)
	return nil
}

// unmake removes what make made before an error.
func (g *Group) unmake() {
	_ = g.Close()
	for _, dir := range g.dirs() {
		_ = os.Remove(dir)
	}
}

// dirs are the directories that are this group's alone.
func (g *Group) dirs() []string {
	var dirs []string
	for c, dir := range g.v1 {
		if dir != "" && (!g.shared || controller(c) != devices) && !contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	if g.v2 != "" {
		dirs = append(dirs, g.v2)
	}
	if others := g.others.Load(); others != nil {
		dirs = append(dirs, *others...)
	}
	return dirs
}

// Spread makes the group in the v1 hierarchies that berth has no need of as well, for an OCI runtime, which uses all: berths that end remove what is
// above it there as soon as it is empty, and a runtime fails then. What cannot be made is left to the runtime, which says why.
func (g *Group) Spread() {
	if g.path == "" {
		return
	}
	var made []string
	if others := g.others.Load(); others != nil {
		made = slices.Clone(*others)
	}
	for _, t := range append(g.host.trees(), g.host.others...) {
		dir := t.mount + g.path
		if t.v2 || g.host.mkdir(t, dir) != nil {
			continue
		}
		if !contains(made, dir) {
			made = append(made, dir)
		}
		if t.has("cpuset") {
			fillCpuset(t.mount, g.path)
		}
	}
	g.others.Store(&made)
}

// fillCpuset gives the cpusets down to a path what those above them have: new ones have nothing, and nothing may join them.
func fillCpuset(mount, to string) {
	at := mount
	for name := range strings.SplitSeq(strings.Trim(to, "/"), "/") {
		above := at
		at += "/" + name
		for _, file := range []string{"/cpuset.cpus", "/cpuset.mems"} {
			if have, err := read(at + file); err == nil && strings.TrimSpace(string(have)) == "" {
				if from, err := read(above + file); err == nil {
					_ = write(at+file, strings.TrimSpace(string(from)))
				}
			}
		}
	}
}

func contains(list []string, s string) bool {
	return slices.Contains(list, s)
}
