package docker_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

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
