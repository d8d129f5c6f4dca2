package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// controller is a resource controller, by what it does; blkio and io are the same one.
type controller int

const (
	cpu controller = iota
	cpuacct
	memory
	pids
	blkio
	devices
	freezer
	controllers // how many there are
)

var v1Names = [controllers]string{"cpu", "cpuacct", "memory", "pids", "blkio", "devices", "freezer"}

// v2Names are the controllers that v2 has to enable; cpuacct, devices and freezer are always there.
var v2Names = [controllers]string{cpu: "cpu", memory: "memory", pids: "pids", blkio: "io"}

// Options say how a host is to be used. The zero value is usable.
type Options struct {
	// Base is the cgroup below which all others are made; "" is "berth".
	Base string
	// Adopt lets Find change the place of this process, which v2 may demand: a cgroup either has processes
	// or gives controllers to its children. A process that is to stay, such as berth's monitor, sets it:
	// then it is moved into a scope that the user's systemd is asked for, or, with all other processes of this
	// program that are in its own cgroup, into a leaf of that. Processes of other programs are never moved.
	// Without it Find only looks what would be possible, and its groups have no limits then on v2.
	Adopt bool
	// CountDisks has a v1 kernel count the bytes that groups move from and to disks where it does not by
	// itself: since Linux 6.10. That changes the host until it is booted again, by a little work for each
	// request to a disk.
	CountDisks bool
	// Scope names the systemd scope that may be asked for; "" is "berth-PID.scope".
	Scope string
}

// Host is where this process may make cgroups, and with which controllers. It may be used concurrently.
type Host struct {
	version Version
	v1      [controllers]*tree // nil: not there, or not usable
	v2      *tree              // of a v2 or hybrid host; nil: not there, or not usable
	others  []*tree            // hierarchies that berth makes nothing in, but OCI runtimes do
	v2has   [controllers]bool  // enabled below v2
	killer  bool               // cgroup.kill is there
	counts  bool               // cpu.stat of v2 counts without its controller
	ruled   bool               // device rules can be set on v2
	lacks   []berth.Lack
	work    sync.WaitGroup
	release func() // takes back a move of this process

	shelters string   // the directory whose leaf this process may be moved into
	obstacle obstacle // the nearest one that was met
	// promised are the controllers that Find would have with Options.Adopt.
	promised [controllers]bool

	mu      sync.Mutex
	parents map[string]bool     // directories known to be there, with their controllers enabled
	rules   map[string]bool     // device cgroups whose rules are set
	beneath map[string]int      // groups that were made beneath a parent; see enter
	without map[string][]string // by parent, what of it was not there before the first of them, the deepest first

	stacks   map[string]bool // see stacked
	stacksAt time.Time

	counted atomic.Pointer[time.Time] // see countsDisks
	holders holders
}

// tree is a hierarchy, and where in it berth's cgroups are.
type tree struct {
	hierarchy
	base string // path below mount: "/berth"
}

// Find finds out what the host offers to this process. What is lacking is no error: see Lacks.
func Find(ctx context.Context, opts Options) (*Host, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("find cgroups: %w", err)
	}
	if opts.Base == "" {
		opts.Base = "berth"
	}
	if opts.Scope == "" {
		opts.Scope = fmt.Sprintf("berth-%d.scope", os.Getpid())
	}
	h := &Host{version: None, parents: map[string]bool{}, rules: map[string]bool{}, beneath: map[string]int{}, without: map[string][]string{}, release: func() {}}
	found := parseMounts(mounts, own)
	h.version = versionOf(found)
	h.ruled = h.version == V2 && ruleable()
	for i := range found {
		if !found[i].v2 && !h.findV1(&found[i], opts.Base) {
			h.others = append(h.others, &tree{hierarchy: found[i], base: "/" + opts.Base})
		}
	}
	for i := range found {
		if found[i].v2 {
			h.findV2(ctx, &found[i], opts)
		}
	}
	h.lacks = append(h.lacks, h.lacking()...)
	if opts.CountDisks {
		h.work.Go(h.countDisks) // it waits until the disks have no request under way
	}
	return h, nil
}

// Version is the layout of the host's cgroups.
func (h *Host) Version() Version { return h.version }

// Lacks says what cannot be limited or read on this host, each with its remedy.
func (h *Host) Lacks() []berth.Lack { return h.lacks }

// Controllers names what is limited or counted here, of cpu, memory, pids, io and devices.
func (h *Host) Controllers() []string {
	var names []string
	for c, name := range map[controller]string{cpu: "cpu", memory: "memory", pids: "pids", blkio: "io", devices: "devices"} {
		if h.can(c) || h.promised[c] {
			names = append(names, name)
		}
	}
	return sorted(names)
}

// Close removes what Find made, unless groups are left, and takes back a move of this process.
func (h *Host) Close() error {
	h.work.Wait()
	for _, t := range h.trees() {
		_ = os.Remove(t.mount + t.base) // another berth may have groups there
	}
	h.release()
	return nil
}

// can reports whether a controller is usable.
func (h *Host) can(c controller) bool {
	if c == devices {
		return h.v1[c] != nil || h.version == V2 && h.v2 != nil && h.ruled
	}
	return h.v1[c] != nil || h.v2 != nil && h.v2has[c]
}

func versionOf(found []hierarchy) Version {
	one, two := false, false
	for _, h := range found {
		if h.v2 {
			two = true
		} else if len(h.controllers) > 0 && !strings.HasPrefix(h.controllers[0], "name=") {
			one = true
		}
	}
	switch {
	case one && two:
		return Hybrid
	case one:
		return V1
	case two:
		return V2
	}
	return None
}

// findV1 takes a v1 hierarchy into use, if it has a controller that berth wants and can be written.
func (h *Host) findV1(found *hierarchy, base string) (used bool) {
	var t *tree
	for c := range controllers {
		if !found.has(v1Names[c]) {
			continue
		}
		if t == nil {
			if t = writable(found, base); t == nil {
				return false
			}
			t.sum()
		}
		h.v1[c] = t
	}
	return t != nil
}

// writable finds a place for base in the hierarchy: at its root or, in a container, below our own cgroup.
func writable(found *hierarchy, base string) *tree {
	for _, at := range []string{"/", found.own} {
		p := path.Join(at, base)
		if makeBase(found.mount + p) {
			return &tree{hierarchy: *found, base: p}
		}
	}
	return nil
}

// baseTries bounds how often a base is made anew that others have removed.
const baseTries = 100

// makeBase makes a directory, if it is not there, and reports whether this process can make others in it. Another berth that ends may remove
// it at any time as long as it is empty.
func makeBase(dir string) bool {
	for range baseTries {
		err := os.Mkdir(dir, 0o755)
		if err == nil || errors.Is(err, fs.ErrExist) {
			err = unix.Access(dir, unix.W_OK|unix.X_OK)
		}
		if !vanished(err) {
			return err == nil
		}
	}
	return false
}

// vanished reports whether an error is that of a cgroup which was removed meanwhile: of a file that was open by then it is ENODEV.
func vanished(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }

// sum has the memory of a v1 group count what is below it, as before Linux 5.11 it does only where this is set.
func (t *tree) sum() {
	if t.v2 || !t.has("memory") {
		return
	}
	file := t.mount + t.base + "/memory.use_hierarchy"
	if n, err := readInt(file); err == nil && n == 0 {
		_ = write(file, "1")
	}
}
