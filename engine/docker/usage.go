package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// Stats says what the container uses: from the files of its cgroup where they are of this host, else from the daemon,
// which takes a second and much of a processor for it.
func (c *Container) Stats(ctx context.Context) (berth.Usage, error) {
	if c.life.known() {
		return berth.Usage{}, c.hasEnded("usage of")
	}
	if r, err := c.life.readRecord(); err == nil && r.Cgroup != "" {
		if u := readLive(r.Cgroup); u.PIDs != nil && *u.PIDs > 0 {
			return u, nil
		}
	}
	u, err := c.life.askUsage(ctx)
	if err == nil && *u.PIDs == 0 { // what the daemon answers of a container that does not run
		return berth.Usage{}, c.hasEnded("usage of")
	}
	return u, err
}

// askUsage asks the daemon for what the container uses. PIDs is known.
func (l *life) askUsage(ctx context.Context) (berth.Usage, error) {
	ctx, cancel := l.e.call(ctx)
	defer cancel()
	res, err := l.e.api.ContainerStats(ctx, l.docker(), client.ContainerStatsOptions{})
	if err != nil {
		return berth.Usage{}, wrap(ctx, "usage of "+l.String(), err)
	}
	defer func() { _ = res.Body.Close() }()
	var s container.StatsResponse
	if err := json.NewDecoder(res.Body).Decode(&s); err != nil {
		return berth.Usage{}, wrap(ctx, "usage of "+l.String(), err)
	}
	u := berth.Usage{
		CPUSeconds: new(float64(s.CPUStats.CPUUsage.TotalUsage) / 1e9),
		Memory:     new(int64(s.MemoryStats.Usage)),
		PIDs:       new(int64(s.PidsStats.Current)),
	}
	if s.MemoryStats.MaxUsage > 0 {
		u.PeakMemory = new(int64(s.MemoryStats.MaxUsage))
	}
	return u, nil
}

const (
	usageLeast = 100 * time.Millisecond
	usageMost  = time.Second
)

// keepUsage looks at what a container on another machine uses, whose cgroup cannot be read when it has ended, until ctx
// ends: ten times in as long as it has run, and each second.
func (l *life) keepUsage(ctx context.Context) {
	for began := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(time.Since(began)/10, usageLeast), usageMost)):
		}
		u, err := l.askUsage(ctx)
		if err != nil || *u.PIDs == 0 {
			continue // it has not begun, or has ended, or the daemon is away
		}
		l.mu.Lock()
		l.used = peaks(l.used, u)
		l.mu.Unlock()
	}
}

// peaks is what a container has used by its end, as far as two looks tell.
func peaks(before, now berth.Usage) berth.Usage {
	most := func(all ...*int64) (p *int64) {
		for _, n := range all {
			if n != nil && (p == nil || *n > *p) {
				p = n
			}
		}
		return p
	}
	return berth.Usage{
		CPUSeconds: now.CPUSeconds,
		PeakMemory: most(before.PeakMemory, now.PeakMemory, now.Memory),
		PeakPIDs:   most(before.PeakPIDs, now.PIDs),
	}
}

const cgroupRoot = "/sys/fs/cgroup"

// readUsage reads what was used in a cgroup and below it: of a container that has ended, in the one above its
// own. What the kernel does not say is unknown.
func readUsage(cgroup string) berth.Usage {
	var u berth.Usage
	if cgroup == "" {
		return u
	}
	if n, ok := readNumber("cpuacct", cgroup, "cpuacct.usage"); ok {
		u.CPUSeconds = new(float64(n) / 1e9)
	}
	if n, ok := readNumber("memory", cgroup, "memory.max_usage_in_bytes"); ok {
		u.PeakMemory = &n
	}
	if n, ok := readNumber("pids", cgroup, "pids.peak"); ok {
		u.PeakPIDs = &n
	}
	// The unified hierarchy.
	if raw, err := os.ReadFile(filepath.Join(cgroupRoot, cgroup, "cpu.stat")); err == nil {
		for s := bufio.NewScanner(bytes.NewReader(raw)); s.Scan(); {
			if v, ok := strings.CutPrefix(s.Text(), "usage_usec "); ok {
				if n, err := strconv.ParseInt(v, 10, 64); err == nil {
					u.CPUSeconds = new(float64(n) / 1e6)
				}
			}
		}
	}
	if n, ok := readNumber("", cgroup, "memory.peak"); ok {
		u.PeakMemory = &n
	}
	if n, ok := readNumber("", cgroup, "pids.peak"); ok {
		u.PeakPIDs = &n
	}
	return u
}

// readLive is readUsage with what is used now.
func readLive(cgroup string) berth.Usage {
	u := readUsage(cgroup)
	for _, f := range []struct {
		to               **int64
		controller, file string
	}{
		{&u.Memory, "memory", "memory.usage_in_bytes"},
		{&u.PIDs, "pids", "pids.current"},
		{&u.Memory, "", "memory.current"},
		{&u.PIDs, "", "pids.current"},
	} {
		if n, ok := readNumber(f.controller, cgroup, f.file); ok {
			*f.to = &n
		}
	}
	return u
}

func readNumber(controller, cgroup, file string) (int64, bool) {
	raw, err := os.ReadFile(filepath.Join(cgroupRoot, controller, cgroup, file))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return n, err == nil
}

// removeCgroup removes the step's cgroup, where that is not done.
func (l *life) removeCgroup(r *record) {
	l.mu.Lock()
	bare := l.bare
	l.mu.Unlock()
	if bare || !removeCgroup(r.Cgroup) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bare = true
}

// removeCgroup removes an empty cgroup from all hierarchies. It reports whether nothing is left of it: where it is not
// empty yet, whoever removes the container tries again.
func removeCgroup(cgroup string) bool {
	if cgroup == "" {
		return true
	}
	removeConmon(cgroup)
	dirs, _ := filepath.Glob(cgroupRoot + "/*" + cgroup)
	bare := true
	for _, d := range append(dirs, cgroupRoot+cgroup) {
		if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			bare = false
		}
	}
	return bare
}

// sweepCgroups removes what is left of the cgroups of steps whose sandboxes are gone: Podman's conmon stays in them for
// five minutes after an exec.
func (e *Engine) sweepCgroups(sandboxes []fs.DirEntry) {
	dirs, _ := filepath.Glob(cgroupRoot + "/*" + defaultParent + "/" + e.owner + "-*")
	one, _ := filepath.Glob(cgroupRoot + defaultParent + "/" + e.owner + "-*")
	for _, d := range append(dirs, one...) {
		of := func(s fs.DirEntry) bool { return strings.HasPrefix(filepath.Base(d), e.owner+"-"+s.Name()+"-") }
		if !slices.ContainsFunc(sandboxes, of) {
			removeCgroup(path.Join(defaultParent, filepath.Base(d)))
		}
	}
}
