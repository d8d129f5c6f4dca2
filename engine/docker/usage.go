package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// Stats says what the container uses: from the files of its cgroup where they are of this host, else from the daemon,
// which takes a second and much of a processor for it.
func (c *Container) Stats(ctx context.Context) (berth.Usage, error) {
	if c.life.known() {
		return berth.Usage{}, c.hasEnded("usage of")
	}
	files := cgroupFiles{root: cgroupRoot}
	if r, err := c.life.readRecord(); err == nil {
		files.path = r.Cgroup
	}
	if files.path == "" {
		if f := c.life.files(ctx); f != nil {
			files = *f
		}
	}
	if u := readLive(files); u.PIDs != nil && *u.PIDs > 0 {
		return u, nil
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
	res, err := l.e.api().ContainerStats(ctx, l.docker(), client.ContainerStatsOptions{})
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

// keepUsage looks at what a container uses whose cgroup cannot be read when it has ended, until ctx ends: ten times in as
// long as it has run, and each second. On this machine the daemon is not asked, which takes much of a processor for it.
func (l *life) keepUsage(ctx context.Context) {
	for began := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(min(max(time.Since(began)/10, usageLeast), usageMost)):
		}
		var u berth.Usage
		if l.isRemote() {
			u, _ = l.askUsage(ctx)
		} else if f := l.files(ctx); f != nil {
			u = readLive(*f)
		}
		if u.PIDs == nil || *u.PIDs == 0 {
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
		PeakPIDs:   most(before.PeakPIDs, now.PeakPIDs, now.PIDs),
	}
}

const cgroupRoot = "/sys/fs/cgroup"

// readUsage reads what was used in a cgroup and below it: of a container that has ended, in the one above its
// own. What the kernel does not say is unknown.
func readUsage(files cgroupFiles) berth.Usage {
	var u berth.Usage
	if n, ok := files.number("cpuacct", "cpuacct.usage"); ok {
		u.CPUSeconds = new(float64(n) / 1e9)
	}
	if n, ok := files.number("memory", "memory.max_usage_in_bytes"); ok {
		u.PeakMemory = &n
	}
	if n, ok := files.number("pids", "pids.peak"); ok {
		u.PeakPIDs = &n
	}
	// The unified hierarchy.
	if raw, err := os.ReadFile(files.name("", "cpu.stat")); err == nil {
		for s := bufio.NewScanner(bytes.NewReader(raw)); s.Scan(); {
			if v, ok := strings.CutPrefix(s.Text(), "usage_usec "); ok {
				if n, err := strconv.ParseInt(v, 10, 64); err == nil {
					u.CPUSeconds = new(float64(n) / 1e6)
				}
			}
		}
	}
	if n, ok := files.number("", "memory.peak"); ok {
		u.PeakMemory = &n
	}
	if n, ok := files.number("", "pids.peak"); ok {
		u.PeakPIDs = &n
	}
	return u
}

// readLive is readUsage with what is used now.
func readLive(files cgroupFiles) berth.Usage {
	u := readUsage(files)
	for _, f := range []struct {
		to               **int64
		controller, file string
	}{
		{&u.Memory, "memory", "memory.usage_in_bytes"},
		{&u.PIDs, "pids", "pids.current"},
		{&u.Memory, "", "memory.current"},
		{&u.PIDs, "", "pids.current"},
	} {
		if n, ok := files.number(f.controller, f.file); ok {
			*f.to = &n
		}
	}
	return u
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

// removeCgroupWhole is removeCgroup for a step whose container the daemon knows no more.
func (l *life) removeCgroupWhole(r *record) {
	l.mu.Lock()
	bare := l.bare
	l.mu.Unlock()
	if !bare {
		removeBeneath(r.Cgroup)
		l.removeCgroup(r)
	}
}

// removeBeneath removes what is left beneath a cgroup of a daemon that was killed while it started a container. Where a
// process is in it, or beneath it, all stays: containers have empty cgroups of their own.
func removeBeneath(cgroup string) {
	if cgroup == "" {
		return
	}
	for _, root := range hierarchies() {
		var all []string
		held := false
		_ = filepath.WalkDir(root+cgroup, func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && p != root+cgroup {
				all = append(all, p)
				procs, err := os.ReadFile(filepath.Join(p, "cgroup.procs"))
				held = held || err != nil || len(procs) > 0
			}
			return nil
		})
		if held {
			continue
		}
		for _, p := range slices.Backward(all) {
			_ = unix.Rmdir(p)
		}
	}
}

// removeCgroup removes an empty cgroup from all hierarchies. It reports whether nothing is left of it: where it is not
// empty yet, whoever removes the container tries again.
func removeCgroup(cgroup string) bool {
	if cgroup == "" {
		return true
	}
	bare := true
	for _, root := range hierarchies() {
		removeConmon(root + cgroup)
		if err := unix.Rmdir(root + cgroup); err != nil && !errors.Is(err, unix.ENOENT) {
			bare = false
		}
	}
	return bare
}

// hierarchies are the directories beneath which cgroups lie. They are as they were when the system has come up.
var hierarchies = sync.OnceValue(func() []string {
	roots := []string{cgroupRoot}
	entries, _ := os.ReadDir(cgroupRoot)
	for _, d := range entries {
		if d.IsDir() && !exists(filepath.Join(cgroupRoot, "cgroup.controllers")) {
			roots = append(roots, filepath.Join(cgroupRoot, d.Name()))
		}
	}
	return roots
})
