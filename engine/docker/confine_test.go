package docker_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/moby/moby/client"
)

// removeTree removes a cgroup from all hierarchies when the test has ended, with what lies beneath it.
func removeTree(t *testing.T, cgroup string) {
	t.Cleanup(func() {
		for _, root := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			found, err := filepath.Glob(root + cgroup)
			if err != nil {
				t.Error(err)
			}
			for _, dir := range found {
				var all []string
				_ = filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
					if err == nil && d.IsDir() {
						all = append(all, p)
					}
					return nil
				})
				for _, p := range slices.Backward(all) {
					_ = os.Remove(p)
				}
			}
		}
	})
}

// inspected is what a daemon says of a step's container.
func inspected(t *testing.T, d *dockertest.Daemon, e *docker.Engine, sandbox, step string) client.ContainerInspectResult {
	t.Helper()
	api, err := client.New(client.WithHost(d.Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	got, err := api.ContainerInspect(t.Context(), "berth-"+e.Owner()+"-"+sandbox+"-"+step, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// TestCgroupParent: beneath another cgroup a container is as it is beneath berth's own: limited, and its usage known. A berth
// that comes later finds it there, and nothing of the task's is left of it.
func TestCgroupParent(t *testing.T) {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		t.Skip("written for cgroup v1: it reads the limits in its hierarchies")
	}
	t.Parallel()
	for name, start := range map[string]func(testing.TB) *dockertest.Daemon{"docker": daemon, "podman": podman} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := start(t)
			parent := fmt.Sprintf("/berth-test-%s-%d/job 7", name, os.Getpid())
			removeTree(t, filepath.Dir(parent))
			dir := t.TempDir()
			e, img := newEngine(t, docker.Config{Host: d.Host(), Dir: dir})
			spec := berth.SandboxSpec{ID: berth.NewID(), CgroupParent: parent, Volumes: []berth.Volume{{Path: "/vol"}}, Limits: berth.Limits{CPU: 0.5, Memory: 48 << 20, PIDs: 40}}
			s, err := e.Open(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			run := func(id, script string) berth.Container {
				c, err := s.Start(t.Context(), berth.StepSpec{ID: id, Image: img, Command: []string{"sh", "-c", script}})
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			c := run("s1", "head -c 20m /dev/zero | tail -c 20m | sleep 0.3; until [ -e /vol/go ]; do sleep 0.05; done")
			got := inspected(t, d, e, spec.ID, "s1")
			if p := got.Container.HostConfig.CgroupParent; !strings.HasPrefix(p, parent+"/") {
				t.Errorf("cgroup parent %q", p)
			}
			raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", got.Container.State.Pid))
			if err != nil {
				t.Fatal(err)
			}
			for _, controller := range []string{"memory", "pids", "cpu", "devices"} {
				if !strings.Contains(string(raw), ":"+controller+":"+parent+"/") {
					t.Errorf("its cgroup of %s is not beneath %s:\n%s", controller, parent, raw)
				}
			}
			for file, want := range map[string]string{"memory/*/memory.limit_in_bytes": "50331648", "pids/*/pids.max": "40", "cpu/*/cpu.cfs_quota_us": "50000"} {
				controller, rest, _ := strings.Cut(file, "/*/")
				found, err := filepath.Glob(filepath.Join("/sys/fs/cgroup", controller, parent, "*", "*", rest))
				if err != nil {
					t.Fatal(err)
				}
				limited := slices.ContainsFunc(found, func(f string) bool {
					raw, err := os.ReadFile(f)
					return err == nil && strings.TrimSpace(string(raw)) == want
				})
				if !limited {
					t.Errorf("none of %q is %s", found, want)
				}
			}
			if u, err := c.(berth.Statser).Stats(t.Context()); err != nil || u.Memory == nil || u.PIDs == nil || *u.PIDs < 1 {
				t.Errorf("usage while it runs: %+v, %v", u, err)
			}
			// Another process of berth's.
			again, _ := newEngine(t, docker.Config{Host: d.Host(), Dir: dir})
			if _, err := again.Open(t.Context(), spec); err != nil {
				t.Errorf("opened again as it was: %v", err)
			}
			other := spec
			other.CgroupParent = ""
			if _, err := again.Open(t.Context(), other); !errors.Is(err, berth.ErrConflict) {
				t.Errorf("opened again, beneath another parent: %v", err)
			}
			vol, err := s.Volume(t.Context(), "/vol")
			if err == nil {
				err = errors.Join(vol.WriteFile("go", nil, 0o600), vol.Close())
			}
			if err != nil {
				t.Fatal(err)
			}
			if exit := wait(t, c); !exit.OK() || exit.Usage.PeakMemory == nil || *exit.Usage.PeakMemory < 5<<20 || exit.Usage.CPUSeconds == nil {
				t.Errorf("exit %+v", exit)
			}
			if exit := wait(t, run("s2", "tail /dev/zero")); exit.Reason != berth.OutOfMemory {
				t.Errorf("exit %+v", exit)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
			left := func() []string {
				found, _ := filepath.Glob("/sys/fs/cgroup/*" + parent + "/" + e.Owner() + "-*")
				return found
			}
			if len(left()) > 0 {
				t.Errorf("left: %q", left())
			}
			// The parent and what is above it were not there before.
			above := func() []string {
				found, _ := filepath.Glob("/sys/fs/cgroup/*" + filepath.Dir(parent))
				return found
			}
			until(t, "the parents are gone", func() bool { return len(above()) == 0 })
			// What a daemon that was killed leaves.
			gone := filepath.Join("/sys/fs/cgroup/memory", parent, e.Owner()+"-gone-s1", "container")
			if err := os.MkdirAll(gone, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := again.Sweep(t.Context()); err != nil {
				t.Error(err)
			}
			if _, err := os.Stat(filepath.Dir(gone)); err == nil {
				t.Errorf("left: %q", left())
			}
			if notes, _ := filepath.Glob(dir + "/cgroup-parents/*"); len(notes) != 1 {
				t.Fatalf("notes of parents: %q", notes)
			} else {
				old := time.Now().Add(-time.Hour)
				if err := errors.Join(os.Chtimes(notes[0], old, old), again.Sweep(t.Context())); err != nil {
					t.Error(err)
				}
				if _, err := os.Stat(notes[0]); err == nil {
					t.Error("a parent beneath which there is nothing more is noted still")
				}
			}
		})
	}
}

// TestSecurityOptions: what a step asks of AppArmor and SELinux comes to the daemon, and what the daemon would pass over is refused,
// before anything is made as at the start.
func TestSecurityOptions(t *testing.T) {
	t.Parallel()
	if on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled"); strings.HasPrefix(string(on), "Y") {
		t.Skip("written for a host without AppArmor")
	}
	for name, start := range map[string]func(testing.TB) *dockertest.Daemon{"docker": daemon, "podman": podman} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := start(t)
			e, img := newEngine(t, docker.Config{Host: d.Host()})
			s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Close(context.Background()); err != nil {
					t.Error(err)
				}
			})
			step := berth.StepSpec{ID: "s1", Image: img, Command: []string{"grep", "NoNewPrivs", "/proc/self/status"}, AppArmor: "unconfined", SELinux: []string{"disable"}}
			if err := e.Check(t.Context(), berth.SandboxSpec{}, []berth.StepSpec{step}); err != nil {
				t.Fatal(err)
			}
			c, err := s.Start(t.Context(), step)
			if err != nil {
				t.Fatal(err)
			}
			if exit, got := wait(t, c), logs(t, c, false); !exit.OK() || got != "NoNewPrivs:\t1\n" {
				t.Errorf("exit %+v, %q", exit, got)
			}
			got := inspected(t, d, e, s.ID(), "s1").Container
			want := []string{"no-new-privileges", "apparmor=unconfined", "label=disable"}
			if name == "docker" && !slices.Equal(got.HostConfig.SecurityOpt, want) {
				t.Errorf("security options %q; want %q", got.HostConfig.SecurityOpt, want)
			}
			again := step
			if _, err := s.Start(t.Context(), again); err != nil {
				t.Errorf("started again as it was: %v", err)
			}
			again.AppArmor = ""
			if _, err := s.Start(t.Context(), again); !errors.Is(err, berth.ErrConflict) {
				t.Errorf("started again, with another profile: %v", err)
			}
			for _, row := range []struct {
				step  berth.StepSpec
				kind  error
				names string
			}{
				{berth.StepSpec{AppArmor: "docker-default"}, berth.ErrUnsupported, "its host has no AppArmor"},
				{berth.StepSpec{SELinux: []string{"type:container_t"}}, berth.ErrUnsupported, "label=disable"},
				{berth.StepSpec{AppArmor: "a b"}, berth.ErrInvalid, "white space"},
				{berth.StepSpec{SELinux: []string{"typ:x"}}, berth.ErrInvalid, "type:container_t"},
			} {
				row.step.ID, row.step.Image, row.step.Command = "s2", img, []string{"true"}
				checked := e.Check(t.Context(), berth.SandboxSpec{}, []berth.StepSpec{row.step})
				_, started := s.Start(t.Context(), row.step)
				for when, err := range map[string]error{"checked": checked, "started": started} {
					if !errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.names) {
						t.Errorf("%s with AppArmor %q, SELinux %q: %v; want %v with %q", when, row.step.AppArmor, row.step.SELinux, err, row.kind, row.names)
					}
				}
			}
			for parent, kind := range map[string]error{"batch.slice": berth.ErrInvalid, "batch": berth.ErrInvalid, "/a/../b": berth.ErrInvalid} {
				spec := berth.SandboxSpec{ID: berth.NewID(), CgroupParent: parent}
				checked := e.Check(t.Context(), spec, nil)
				_, opened := e.Open(t.Context(), spec)
				if !errors.Is(checked, kind) || !errors.Is(opened, kind) {
					t.Errorf("cgroup parent %s: checked: %v; opened: %v", parent, checked, opened)
				}
			}
		})
	}
}
