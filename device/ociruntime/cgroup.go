package ociruntime

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// group is the cgroup that bounds which devices a process may open.
type group struct {
	dir string
	v2  bool
}

// groupOf finds a process's cgroup: of the controller devices where that is of v1, else of v2.
func groupOf(pid int) (group, error) {
	own, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return group{}, err
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return group{}, err
	}
	paths := map[string]string{}
	for line := range strings.Lines(string(own)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		switch {
		case f[1] == "":
			paths["cgroup2"] = f[2]
		case slices.Contains(strings.Split(f[1], ","), "devices"):
			paths["cgroup"] = f[2]
		}
	}
	for _, kind := range []string{"cgroup", "cgroup2"} {
		at, ok := paths[kind]
		if !ok {
			continue
		}
		for line := range strings.Lines(string(mounts)) {
			head, tail, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
			h, t := strings.Fields(head), strings.Fields(tail)
			if len(h) < 5 || len(t) < 3 || t[0] != kind || kind == "cgroup" && !slices.Contains(strings.Split(t[2], ","), "devices") {
				continue
			}
			if rel, err := filepath.Rel(h[3], at); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
				return group{filepath.Join(h[4], rel), kind == "cgroup2"}, nil
			}
		}
	}
	return group{}, fmt.Errorf("the cgroup of process %d is in no hierarchy that is mounted here", pid)
}

// ownGroup finds the cgroup of a container's process, where it is not that of who started it too.
func ownGroup(pid int) (group, bool) {
	g, err := groupOf(pid)
	if err != nil {
		return g, false
	}
	here, err := groupOf(os.Getpid())
	return g, err == nil && g.dir != here.dir && !strings.HasPrefix(here.dir, g.dir+"/")
}
