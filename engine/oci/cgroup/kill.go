package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Procs lists the processes in the group and below it, by their ids in our pid namespace.
func (g *Group) Procs() ([]int, error) {
	dir := g.procDir()
	if dir == "" {
		return nil, nil
	}
	var all []int
	err := walk(dir, func(d string) error {
		b, err := read(d + "/cgroup.procs")
		if err != nil {
			// A threaded cgroup of v2 has no list; its processes are in that of the cgroup above.
			if errors.Is(err, unix.EOPNOTSUPP) {
				return nil
			}
			return err
		}
		for f := range strings.FieldsSeq(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 { // 0 is beyond our pid namespace
				all = append(all, pid)
			}
		}
		return nil
	})
	return all, kind("processes of cgroup "+g.path, err)
}

// Populated reports whether there are processes in the group or below it.
func (g *Group) Populated() (bool, error) {
	if g.v2 != "" {
		n, ok, err := g.readKey(g.v2+"/cgroup.events", "populated")
		if err != nil || ok && n > 0 {
			return err == nil, kind("cgroup "+g.path, err)
		}
	}
	// A process that runc started need not be in the v2 cgroup of a hybrid host.
	for _, dir := range g.dirs() {
		if dir == g.v2 {
			continue
		}
		b, err := g.procs(dir)
		busy := len(b) > 0
		if err == nil && !busy {
			err = g.walkBelow(dir, func(d string) error {
				b, err := read(d + "/cgroup.procs")
				busy = busy || len(b) > 0
				return err
			})
		}
		if err != nil || busy {
			return busy, kind("cgroup "+g.path, err)
		}
	}
	return false, nil
}

// occupied is Populated, but for a group of a pool it looks no further than v2: a process is cloned into that
// before it joins the others, and cannot leave it from within its cgroup namespace.
func (g *Group) occupied() (bool, error) {
	if g.whole && g.v2 != "" {
		if n, ok, err := g.readKey(g.v2+"/cgroup.events", "populated"); err == nil && ok {
			return n > 0, nil
		}
	}
	return g.Populated()
}

// Kill kills every process in the group and below it, and returns when none is left or ctx ends. Where the
// kernel cannot do it at once (cgroup.kill, Linux 5.14), the group is frozen so that none can fork away.
func (g *Group) Kill(ctx context.Context) error {
	busy, err := g.occupied()
	if errors.Is(err, fs.ErrNotExist) || err == nil && !busy {
		return nil
	}
	if g.v2 != "" {
		// Kernels that count kills (6.14 and later) compare the count of the parent's cgroup with that of the
		// one that a child is cloned into, and kill the child where they differ: this group had its last one.
		g.spent.Store(true)
		err := write(g.v2+"/cgroup.kill", "1")
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EOPNOTSUPP) {
			return kind("kill cgroup "+g.path, err)
		}
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		busy, err := g.Populated()
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if !busy {
			return nil
		}
		if err := g.killEach(); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill cgroup %s: %w: processes are left: %w", g.path, berth.ErrUnavailable, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// killEach kills the processes that are in the group now, one after another.
func (g *Group) killEach() error {
	frozen := g.Freeze() == nil
	procs, err := g.Procs()
	for _, pid := range procs {
		g.killOne(pid)
	}
	if frozen { // v1 delivers the signal when it thaws
		_ = g.Thaw()
	}
	return err
}

// killOne kills a process if it is in the group: its number may be another's by now.
func (g *Group) killOne(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ENOSYS) {
		_ = unix.Kill(pid, unix.SIGKILL)
		return
	}
	if err != nil {
		return
	}
	defer func() { _ = unix.Close(fd) }()
	own, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil || !strings.Contains(string(own), g.path) {
		return
	}
	_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

// Freeze stops all processes of the group until Thaw. ErrUnsupported where the host cannot.
func (g *Group) Freeze() error { return g.freeze("1", "FROZEN") }

// Thaw ends Freeze.
func (g *Group) Thaw() error { return g.freeze("0", "THAWED") }

func (g *Group) freeze(v2, v1 string) error {
	if dir := g.v1[freezer]; dir != "" {
		return kind("freeze cgroup "+g.path, write(dir+"/freezer.state", v1))
	}
	if g.v2 == "" || !exists(g.v2+"/cgroup.freeze") {
		return fmt.Errorf("freeze cgroup %s: %w: no freezer here", g.path, berth.ErrUnsupported)
	}
	return kind("freeze cgroup "+g.path, write(g.v2+"/cgroup.freeze", v2))
}

// procDir is the directory whose processes are the group's: a v1 one first, as a process that runc started
// need not be in the v2 cgroup of a hybrid host.
func (g *Group) procDir() string {
	for c, dir := range g.v1 {
		if dir != "" && (!g.shared || controller(c) != devices) {
			return dir
		}
	}
	return g.v2
}

// walk calls f for dir and each cgroup below it, the deepest last. A cgroup that is removed meanwhile is no
// error, unless it is dir.
func walk(dir string, f func(dir string) error) error {
	if err := f(dir); err != nil {
		return err
	}
	return walkBelow(dir, f)
}

// walkBelow is walk without dir.
func walkBelow(dir string, f func(dir string) error) error {
	for _, sub := range children(dir) {
		if err := walk(sub, f); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
	}
	return nil
}

// children lists the cgroups right below dir.
func children(dir string) []string {
	var st unix.Stat_t
	// A directory of cgroups counts those below it in its links: no need to read its many files' names.
	if err := unix.Lstat(dir, &st); err != nil || st.Nlink == 2 {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var subs []string
	for _, e := range entries {
		if e.IsDir() {
			subs = append(subs, dir+"/"+e.Name())
		}
	}
	return subs
}
