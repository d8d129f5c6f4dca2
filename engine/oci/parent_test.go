package oci_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"golang.org/x/sys/unix"
)

// makeParent makes a cgroup in all hierarchies, and answers what was made.
func makeParent(t *testing.T, name string) (dirs []string) {
	t.Helper()
	roots := []string{"/sys/fs/cgroup"}
	if !onV2(t) {
		roots, _ = filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
		for i, r := range roots {
			roots[i] = filepath.Dir(r)
		}
	}
	for _, root := range roots {
		dir := root + name
		if err := os.Mkdir(dir, 0o755); errors.Is(err, os.ErrExist) {
			continue // two names of one hierarchy
		} else if err != nil {
			t.Fatal(err)
		}
		dirs = append(dirs, dir)
	}
	return dirs
}

// TestCgroupParent: a task has its cgroups beneath another, with its limits and usage; and what was made for it there goes with it,
// so that whoever made that cgroup can remove it.
func TestCgroupParent(t *testing.T) {
	for _, rt := range []string{"direct", "runc"} {
		t.Run(rt, func(t *testing.T) {
			parent := fmt.Sprintf("/berth-test-parent-%s-%d", rt, os.Getpid())
			dirs := makeParent(t, parent)
			t.Cleanup(func() {
				for _, d := range dirs {
					if err := os.Remove(d); err != nil {
						t.Error(err)
					}
				}
			})
			e, img := newEngine(t, rt)
			spec := berth.SandboxSpec{ID: "t1", CgroupParent: parent, Limits: berth.Limits{CPU: 0.5, Memory: 48 << 20, PIDs: 40}}
			if err := e.Check(t.Context(), spec, nil); err != nil {
				t.Fatal(err)
			}
			sb, err := e.Open(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			mark := fmt.Sprint(6_000_000 + os.Getpid())
			c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "head -c 20m /dev/zero | tail -c 20m | sleep 0.3; exec sleep " + mark}})
			pid := ""
			waitFor(t, "the command", ample, func() bool {
				out, _ := exec.CommandContext(t.Context(), "pgrep", "-fx", "sleep "+mark).Output()
				pid = strings.TrimSpace(string(out))
				return pid != ""
			})
			raw, err := os.ReadFile("/proc/" + pid + "/cgroup")
			if err != nil {
				t.Fatal(err)
			}
			controllers := []string{":memory:", ":pids:", ":cpu:", ":devices:"}
			if onV2(t) {
				controllers = []string{"0::"}
			}
			for _, controller := range controllers {
				if !strings.Contains(string(raw), controller+parent+"/") {
					t.Errorf("its cgroup %s is not beneath %s:\n%s", controller, parent, raw)
				}
			}
			if u, err := c.(berth.Statser).Stats(t.Context()); err != nil || u.Memory == nil || u.PIDs == nil || *u.PIDs < 1 {
				t.Errorf("usage while it runs: %+v, %v", u, err)
			}
			if err := c.Stop(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.Stopped || exit.Usage.PeakMemory == nil || *exit.Usage.PeakMemory < 5<<20 || exit.Usage.CPUSeconds == nil {
				t.Errorf("exit %+v, %v", exit, err)
			}
			c = start(t, sb, berth.StepSpec{ID: "s2", Image: img, Command: []string{"tail", "/dev/zero"}})
			if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.OutOfMemory {
				t.Errorf("exit %+v, %v", exit, err)
			}
			if err := sb.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			for _, d := range dirs {
				if left, _ := filepath.Glob(d + "/*/cgroup.procs"); len(left) > 0 {
					t.Errorf("left: %q", left)
				}
			}
		})
	}
}

// TestCgroupParentKilled: a monitor that comes after one that was killed finds the cgroups of a task beneath its parent.
func TestCgroupParentKilled(t *testing.T) {
	parent := fmt.Sprintf("/berth-test-killed-%d", os.Getpid())
	dirs := makeParent(t, parent)
	t.Cleanup(func() {
		for _, d := range dirs {
			if err := os.Remove(d); err != nil {
				t.Error(err)
			}
		}
	})
	e, img := newEngine(t, "direct")
	spec := berth.SandboxSpec{ID: "t1", CgroupParent: parent}
	sb, err := e.Open(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sleep", "1000"}})
	if err := unix.Kill(monitorPid(t, e.Dir()), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	e2, err := oci.New(oci.Config{Dir: e.Dir(), Idle: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e2.Close() }()
	if _, err := e2.Open(t.Context(), berth.SandboxSpec{ID: "t1"}); !errors.Is(err, berth.ErrConflict) {
		t.Errorf("opened again, beneath no parent: %v", err)
	}
	again, err := e2.Open(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := again.Container(t.Context(), "s1"); err != nil {
		t.Error(err)
	} else if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.Lost {
		t.Errorf("exit %+v, %v", exit, err)
	}
	c := start(t, again, berth.StepSpec{ID: "s2", Image: img, Command: []string{"true"}})
	if exit, err := c.Wait(t.Context()); err != nil || !exit.OK() {
		t.Errorf("exit %+v, %v", exit, err)
	}
	if err := again.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// TestConfinementRefused: what this host has not is refused before anything is made, as at the start.
func TestConfinementRefused(t *testing.T) {
	if on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); strings.HasPrefix(string(on), "Y") {
		t.Skip("written for a host without AppArmor")
	}
	e, img := newEngine(t, "direct")
	sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sb.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"true"}, AppArmor: "unconfined", SELinux: []string{"disable"}})
	if exit, err := c.Wait(t.Context()); err != nil || !exit.OK() {
		t.Errorf("exit %+v, %v", exit, err)
	}
	for _, row := range []struct {
		step berth.StepSpec
		kind error
		word string
	}{
		{berth.StepSpec{AppArmor: "docker-default"}, berth.ErrUnsupported, "without AppArmor"},
		{berth.StepSpec{SELinux: []string{"type:container_t"}}, berth.ErrUnsupported, "without SELinux"},
		{berth.StepSpec{SELinux: []string{"x"}}, berth.ErrInvalid, "type:container_t"},
	} {
		row.step.ID, row.step.Image, row.step.Command = "s2", img, []string{"true"}
		checked := e.Check(t.Context(), berth.SandboxSpec{}, []berth.StepSpec{row.step})
		_, started := sb.Start(t.Context(), row.step)
		for when, err := range map[string]error{"checked": checked, "started": started} {
			if !errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.word) {
				t.Errorf("%s with AppArmor %q, SELinux %q: %v; want %v with %q", when, row.step.AppArmor, row.step.SELinux, err, row.kind, row.word)
			}
		}
	}
	for parent, kind := range map[string]error{"batch.slice": berth.ErrInvalid, "batch": berth.ErrInvalid, "/berth-test-not-there": berth.ErrNotFound} {
		if err := e.Check(t.Context(), berth.SandboxSpec{CgroupParent: parent}, nil); !errors.Is(err, kind) {
			t.Errorf("cgroup parent %s: %v; want %v", parent, err, kind)
		}
	}
}
