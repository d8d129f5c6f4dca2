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
	found []string
	at    time.Time
}

func (h *hierarchies) get() ([]string, error) {
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

// findHierarchies finds the v1 cgroup hierarchies of this host, each by its controllers; none where only v2 is.
func findHierarchies() ([]string, error) {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	var found []string
	for line := range strings.Lines(string(data)) {
		if f := strings.SplitN(line, ":", 3); len(f) == 3 && f[1] != "" {
			found = append(found, f[1])
		}
	}
	slices.Reverse(found)
	return found, nil
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
	for _, controllers := range found {
		source, dir := "cgroup", controllers
		var fs []fsOption
		if name, named := strings.CutPrefix(controllers, "name="); named {
			source, dir = name, name
			fs = []fsOption{{key: "none"}, {"name", name}}
		} else {
			for c := range strings.SplitSeq(controllers, ",") {
				fs = append(fs, fsOption{key: c})
			}
		}
		at, _, err := p.view.target(top.at+"/"+dir, true)
		if err != nil {
			return err
		}
		// By its name in the file system above, which is new: nothing but the directory that was just made can be there.
		m := p.makeFS("cgroup", source, at, fs, o.set)
		clear(p.dirs) // as attach
		p.b.doing("mount on", at)
		p.b.call(unix.SYS_MOVE_MOUNT, m, p.b.str(""), top.mount, p.b.str(dir), unix.MOVE_MOUNT_F_EMPTY_PATH)
		if strings.Contains(dir, ",") {
			p.linkControllers(top, dir)
		}
	}
	return nil
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
