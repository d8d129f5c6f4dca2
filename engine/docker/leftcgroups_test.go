package docker_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
)

// TestLeftCgroups: what a daemon that was killed has left beneath the cgroup of a step goes with the step, and later where the
// step is gone already; one that holds a process stays.
func TestLeftCgroups(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{Host: daemon(t).Host()})
	left := func(id string) []string {
		var all []string
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			found, err := filepath.Glob(root + "/berth-docker/" + e.Owner() + "-" + id + "-*")
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, found...)
		}
		return all
	}
	s, _ := begin(t, e, img, "sleep 1000")
	dirs := left(s.ID())
	if len(dirs) == 0 {
		t.Fatal("the step has no cgroup")
	}
	for _, d := range dirs {
		if err := os.MkdirAll(filepath.Join(d, "left", "more"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if dirs := left(s.ID()); len(dirs) > 0 {
		t.Errorf("left with the step: %q", dirs)
	}
	for _, d := range dirs {
		d = filepath.Join(filepath.Dir(d), e.Owner()+"-gone-gone-1", "left")
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	held := left("gone")[0]
	cmd := exec.CommandContext(t.Context(), "sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(held, "left", "cgroup.procs"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		t.Error(err)
	}
	if err := e.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if dirs := left("gone"); len(dirs) != 1 || dirs[0] != held {
		t.Errorf("left while one holds a process: %q", dirs)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if err := e.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if dirs := left("gone"); len(dirs) > 0 {
		t.Errorf("left: %q", dirs)
	}
}

// TestCgroupsOfAnother: the cgroups of a data directory's tasks on one daemon are not another's to remove, be they empty, as
// while a container is started.
func TestCgroupsOfAnother(t *testing.T) {
	t.Parallel()
	a, img := newEngine(t, docker.Config{Host: daemon(t).Host()})
	b, _ := newEngine(t, docker.Config{Host: daemon(t).Host(), Owner: a.Owner()})
	s, _ := begin(t, a, img, "sleep 1000")
	of := func() []string {
		var all []string
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			found, err := filepath.Glob(root + "/berth-docker/*" + s.ID() + "-*")
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, found...)
		}
		return all
	}
	have := of()
	if len(have) == 0 {
		t.Fatal("the step has no cgroup")
	}
	for _, d := range have {
		if err := os.MkdirAll(filepath.Join(d+"2", "container"), 0o755); err != nil { // as of a further step
			t.Fatal(err)
		}
	}
	if err := b.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if now := of(); len(now) != 2*len(have) {
		t.Errorf("left of %q, twice: %q", have, now)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := a.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if now := of(); len(now) != 0 {
		t.Errorf("left when all is gone: %q", now)
	}
}

// TestLeftParents: a cgroup parent that was not there before goes with the last sandbox beneath it, or later where that could not be;
// one that somebody has made stays, and so does what is in use.
func TestLeftParents(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, img := newEngine(t, docker.Config{Host: daemon(t).Host(), Dir: dir})
	top := "/berth-left-" + e.Owner()
	removeTree(t, top)
	theirs, ours := top+"/theirs", top+"/ours/job"
	roots, err := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if own, _ := filepath.Glob("/sys/fs/cgroup/cgroup.procs"); len(own) > 0 {
		roots = own
	}
	if err != nil || len(roots) == 0 {
		t.Fatal(roots, err)
	}
	there := func(cgroup string) (all []string) {
		for _, r := range roots {
			if _, err := os.Stat(filepath.Dir(r) + cgroup); err == nil {
				all = append(all, filepath.Dir(r)+cgroup)
			}
		}
		return all
	}
	for _, r := range roots {
		if err := os.MkdirAll(filepath.Dir(r)+theirs, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	open := func(parent string) berth.Sandbox {
		s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), CgroupParent: parent})
		if err != nil {
			t.Fatal(err)
		}
		if err := start(t.Context(), s, img); err != nil {
			t.Fatal(err)
		}
		return s
	}
	end := func(s berth.Sandbox) {
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	a, b, c := open(ours), open(ours), open(theirs)
	if len(there(ours)) == 0 {
		t.Fatal("there is no parent")
	}
	end(c)
	end(a)
	if err := e.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if len(there(ours)) == 0 {
		t.Error("a parent is gone beneath which a sandbox is open")
	}
	// Something holds it when the last goes.
	held := there(ours)[0] + "/held"
	if err := os.Mkdir(held, 0o755); err != nil {
		t.Fatal(err)
	}
	end(b)
	until(t, "all is gone but what is held", func() bool { return len(there(ours)) == 1 && len(there(top+"/ours")) == 1 })
	if err := os.Remove(held); err != nil {
		t.Fatal(err)
	}
	if err := e.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if left := there(top + "/ours"); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if got := there(theirs); len(got) != len(roots) {
		t.Errorf("of what was there before, in %d hierarchies, there is %q", len(roots), got)
	}
	// It was theirs to make since.
	for _, r := range roots {
		if err := os.MkdirAll(filepath.Dir(r)+ours, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	end(open(ours))
	if err := e.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
	if got := there(ours); len(got) != len(roots) {
		t.Errorf("of what was made since, in %d hierarchies, there is %q", len(roots), got)
	}
}
