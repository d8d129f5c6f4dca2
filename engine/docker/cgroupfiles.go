package docker

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cgroupFiles are the files of what is in one cgroup, which may have another path in each hierarchy.
type cgroupFiles struct {
	root string            // beneath which the hierarchies lie
	path string            // in each of them, where by is nil
	by   map[string]string // by controller; "" is the unified hierarchy
}

// name is that of a file; "" where the cgroup is not known to be in that hierarchy.
func (f cgroupFiles) name(controller, file string) string {
	p, ok := f.path, f.path != ""
	if f.by != nil {
		p, ok = f.by[controller]
	}
	if !ok {
		return ""
	}
	return filepath.Join(f.root, controller, p, file)
}

// number reads a file.
func (f cgroupFiles) number(controller, file string) (int64, bool) {
	raw, err := os.ReadFile(f.name(controller, file))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return n, err == nil
}

// cgroupOf finds the cgroup of the container with an ID by one of its processes, in proc; nil where that is in none of such
// a name, as when the daemon counts processes in another namespace.
func cgroupOf(proc, root string, pid int, id string) *cgroupFiles {
	raw, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "cgroup"))
	if err != nil || id == "" {
		return nil
	}
	f := &cgroupFiles{root: root, by: map[string]string{}}
	for line := range strings.Lines(string(raw)) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), ":")
		controllers, p, _ := strings.Cut(rest, ":")
		before, after, ok := strings.Cut(p, id)
		if !ok {
			continue
		}
		own, _, _ := strings.Cut(after, "/") // below it are cgroups of the container's own
		for c := range strings.SplitSeq(controllers, ",") {
			f.by[c] = before + id + own
		}
	}
	if len(f.by) == 0 {
		return nil
	}
	return f
}

// files are those of the container's own cgroup, as far as it runs on this machine; else nil. Where berth could not make one
// for the step, as with the systemd driver, or as an ordinary user, it is where the daemon has put it. What is not found of a
// container that runs is not looked for again.
func (l *life) files(ctx context.Context) *cgroupFiles {
	l.mu.Lock()
	f, none := l.cgroup, l.noCgroup || l.sb == nil || l.sb.away()
	l.mu.Unlock()
	if f != nil || none {
		return f
	}
	got, err := l.inspect(ctx, l.docker())
	if err != nil || isOver(got.State) || got.State.Pid <= 0 {
		return nil
	}
	f = cgroupOf("/proc", cgroupRoot, got.State.Pid, got.ID)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cgroup, l.noCgroup = f, f == nil
	return f
}
