package cgroup

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// container is one of runc's, which makes its cgroup itself.
type container struct {
	t      *testing.T
	id     string
	bundle string
	root   string
}

// runc prepares a container that runs a helper in the cgroup.
func runc(t *testing.T, cgroup string, limits Limits, devices []specs.LinuxDeviceCgroup, args ...string) *container {
	t.Helper()
	c := &container{t: t, id: instance(t), bundle: t.TempDir(), root: t.TempDir()}
	rootfs := filepath.Join(c.bundle, "rootfs")
	for _, d := range []string{"proc", "dev", "tmp", "bin"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	pidsLimit, q, period := limits.PIDs, int64(0), uint64(0)
	quotaUS, periodUS := quota(limits.CPU)
	q, period = quotaUS, uint64(periodUS)
	spec := specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: rootfs},
		Process: &specs.Process{Args: append([]string{"/test", "helper"}, args...), Cwd: "/", Capabilities: &specs.LinuxCapabilities{}},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc"},
			{Destination: "/test", Type: "bind", Source: exe, Options: []string{"bind", "ro"}},
			{Destination: "/lib", Type: "bind", Source: "/lib", Options: []string{"rbind", "ro"}},
			{Destination: "/lib64", Type: "bind", Source: "/lib64", Options: []string{"rbind", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: cgroup,
			Namespaces:  []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}},
			Resources: &specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &limits.Memory, Swap: &limits.Memory},
				CPU:    &specs.LinuxCPU{Quota: &q, Period: &period}, Pids: &specs.LinuxPids{Limit: &pidsLimit},
				Devices: devices,
			},
		},
	}
	b, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.bundle, "config.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.command(context.Background(), "delete", "--force", c.id).Run() })
	return c
}

func (c *container) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "runc", append([]string{"--root", c.root}, args...)...)
	cmd.Dir = c.bundle
	return cmd
}

// What runc makes of the same limits and device rules is what we make, and we read its groups as ours.
func TestEqualsRunc(t *testing.T) {
	h := host(t)
	limits := Limits{CPU: 0.5, Memory: 64 * mib, PIDs: 77}
	ten, n229 := int64(10), int64(229)
	extra := []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: &ten, Minor: &n229, Access: "rw"}}
	ours := make1(t, h, Spec{Path: "ours", Limits: limits, Devices: extra})
	path := ours.Path()[:strings.LastIndexByte(ours.Path(), '/')] + "/runc"
	deny := []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}
	c := runc(t, path, limits, slices.Concat(deny, extra), "sleep")
	log := filepath.Join(c.bundle, "log")
	out, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := c.command(t.Context(), "run", "--detach", c.id)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Run(); err != nil {
		b, _ := os.ReadFile(log)
		t.Fatalf("runc: %v\n%s", err, b)
	}
	theirs, err := h.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	compared := 0
	for _, f := range []struct {
		c    controller
		name string
	}{
		{memory, "memory.limit_in_bytes"},
		{memory, "memory.memsw.limit_in_bytes"},
		{memory, "memory.max"},
		{memory, "memory.swap.max"},
		{memory, "memory.oom.group"},
		{memory, "memory.swappiness"},
		{memory, "memory.oom_control"},
		{cpu, "cpu.cfs_quota_us"},
		{cpu, "cpu.cfs_period_us"},
		{cpu, "cpu.shares"},
		{cpu, "cpu.max"},
		{cpu, "cpu.weight"},
		{pids, "pids.max"},
	} {
		a, _ := ours.dir(f.c)
		b, _ := theirs.dir(f.c)
		want, err := os.ReadFile(b + "/" + f.name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		got, err2 := os.ReadFile(a + "/" + f.name)
		if err := errors.Join(err, err2); err != nil || string(got) != string(want) {
			t.Errorf("%s: %q, runc's %q: %v", f.name, got, want, err)
		}
		compared++
	}
	if compared < 3 {
		t.Errorf("compared %d files only", compared)
	}
	if a, b := ours.v1[devices], theirs.v1[devices]; a != "" {
		got, want := lines(t, a+"/devices.list"), lines(t, b+"/devices.list")
		// Before 1.2 runc let every container open /dev/net/tun.
		want = slices.DeleteFunc(want, func(s string) bool { return s == "c 10:200 rwm" })
		if !slices.Equal(got, want) {
			t.Errorf("device rules\n%q, runc's\n%q", got, want)
		}
	}
	procs, err := theirs.Procs()
	u, err2 := theirs.Usage()
	if err := errors.Join(err, err2); err != nil || len(procs) != 1 || u.CPUSeconds == nil || *u.CPUSeconds == 0 || u.PeakMemory == nil || *u.PeakMemory == 0 || *u.PIDs == 0 {
		t.Errorf("runc's group: %v, %s: %v", procs, show(u), err)
	}
	if busy, err := theirs.Populated(); err != nil || !busy {
		t.Errorf("populated: %v %v", busy, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := theirs.Kill(ctx); err != nil {
		t.Error(err)
	}
	if busy, err := theirs.Populated(); err != nil || busy {
		t.Errorf("after Kill, populated: %v %v", busy, err)
	}
	// runc is gone too: what it made in every hierarchy goes.
	if err := h.RemoveAll(ctx, instance(t)); err != nil {
		t.Error(err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range parseMounts(mounts, nil) {
		if d := m.mount + path; exists(d) {
			t.Errorf("%s is left", d)
		}
	}
}

func lines(t *testing.T, file string) []string {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return sorted(strings.Split(strings.TrimSpace(string(b)), "\n"))
}

func TestKillsInRuncsGroup(t *testing.T) {
	h := host(t)
	path := h.trees()[0].base + "/" + instance(t) + "/runc"
	c := runc(t, path, Limits{CPU: 1, Memory: 32 * mib, PIDs: 50}, nil, "hog", "100000000")
	if _, err := exec.LookPath("runc"); err != nil {
		t.Fatal(err)
	}
	create := c.command(t.Context(), "create", c.id)
	if err := create.Run(); err != nil {
		t.Fatal(err)
	}
	g, err := h.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.command(t.Context(), "start", c.id).Run(); err != nil {
		t.Fatal(err)
	}
	var kills int64
	for end := time.Now().Add(10 * time.Second); kills == 0 && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if kills, err = g.OOMKills(); err != nil {
			t.Fatal(err)
		}
	}
	if kills != 1 {
		t.Errorf("kills %d", kills)
	}
}
