package grant

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Group is the cgroup that bounds which devices a process may open: by the controller devices of v1 where the process is in
// one, else by the programs of v2.
type Group struct {
	Dir string
	V2  bool
}

// ErrNoGroup says that no hierarchy that is mounted here bounds a process's devices.
var ErrNoGroup = errors.New("its cgroup is in no hierarchy that is mounted here")

// GroupOf finds a process's group. Errors: ErrNoGroup; fs.ErrNotExist where there is no such process.
func GroupOf(pid int) (Group, error) { return new(Hierarchies).groupOf(pid) }

// Hierarchies are where those of cgroups are mounted, for a process that asks often: to read all of a host's mounts takes longer
// than all else of the answer. The zero value looks when it is asked first. It may be used concurrently.
type Hierarchies struct {
	mu     sync.Mutex
	mounts string // lines of mountinfo, of cgroups alone; "" is not known
}

func (h *Hierarchies) groupOf(pid int) (Group, error) {
	own, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return Group{}, err
	}
	mounts, err := h.look()
	if err != nil {
		return Group{}, err
	}
	g, ok := groupIn(string(own), mounts)
	if !ok {
		h.forget() // they may be mounted otherwise now
		if mounts, err = h.look(); err != nil {
			return Group{}, err
		}
		if g, ok = groupIn(string(own), mounts); !ok {
			return g, fmt.Errorf("process %d: %w", pid, ErrNoGroup)
		}
	}
	return g, nil
}

func (h *Hierarchies) look() (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.mounts != "" {
		return h.mounts, nil
	}
	all, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", err
	}
	var of strings.Builder
	for line := range strings.Lines(string(all)) {
		if strings.Contains(line, " - cgroup") {
			of.WriteString(line)
		}
	}
	h.mounts = of.String()
	return h.mounts, nil
}

// forget has the next who asks look anew.
func (h *Hierarchies) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.mounts = ""
}

// controller is that of device rules on v1.
const controller = "devices"

// groupIn finds a group from the contents of /proc/PID/cgroup and /proc/self/mountinfo.
func groupIn(own, mounts string) (Group, bool) {
	at := map[string]string{} // by kind of hierarchy
	for line := range strings.Lines(own) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(f) != 3:
		case f[1] == "":
			at["cgroup2"] = f[2]
		case slices.Contains(strings.Split(f[1], ","), controller):
			at["cgroup"] = f[2]
		}
	}
	for _, kind := range []string{"cgroup", "cgroup2"} {
		cgroup, ok := at[kind]
		if !ok {
			continue
		}
		for line := range strings.Lines(mounts) {
			head, tail, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
			h, t := strings.Fields(head), strings.Fields(tail)
			if len(h) < 5 || len(t) < 3 || t[0] != kind || kind == "cgroup" && !slices.Contains(strings.Split(t[2], ","), controller) {
				continue
			}
			if rel, err := filepath.Rel(h[3], cgroup); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
				return Group{filepath.Join(h[4], rel), kind == "cgroup2"}, true
			}
		}
	}
	return Group{}, false
}
