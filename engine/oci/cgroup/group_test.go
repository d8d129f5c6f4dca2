package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
)

const mib = 1 << 20

type specsDevice = specs.LinuxDeviceCgroup

func TestLimitsAreWritten(t *testing.T) {
	h := host(t)
	g := make1(t, h, Spec{Limits: Limits{CPU: 0.5, Memory: 64 * mib, PIDs: 77}})
	check := func(want map[string]string) {
		t.Helper()
		got := map[string]string{}
		for _, c := range []controller{memory, cpu, pids} {
			dir, v2 := g.dir(c)
			for _, f := range map[bool]map[controller][]string{
				false: {memory: {"memory.limit_in_bytes", "memory.memsw.limit_in_bytes"}, cpu: {"cpu.cfs_quota_us", "cpu.cfs_period_us"}, pids: {"pids.max"}},
				true:  {memory: {"memory.max", "memory.swap.max"}, cpu: {"cpu.max"}, pids: {"pids.max"}},
			}[v2][c] {
				if b, err := os.ReadFile(dir + "/" + f); err == nil {
					got[f] = strings.TrimSpace(string(b))
				}
			}
		}
		for f, v := range got {
			if want[f] != v {
				t.Errorf("%s is %q, want %q", f, v, want[f])
			}
		}
		if len(got) < 3 {
			t.Errorf("read only %v", got)
		}
	}
	check(map[string]string{
		"memory.limit_in_bytes": "67108864", "memory.memsw.limit_in_bytes": "67108864", "cpu.cfs_quota_us": "50000", "cpu.cfs_period_us": "100000", "pids.max": "77",
		"memory.max": "67108864", "memory.swap.max": "0", "cpu.max": "50000 100000",
	})
	if err := g.Set(Limits{CPU: 1.000004, Memory: 128 * mib, PIDs: -1}); err != nil {
		t.Fatal(err)
	}
	check(map[string]string{
		"memory.limit_in_bytes": "134217728", "memory.memsw.limit_in_bytes": "134217728", "cpu.cfs_quota_us": "250001", "cpu.cfs_period_us": "250000", "pids.max": "max",
		"memory.max": "134217728", "memory.swap.max": "0", "cpu.max": "250001 250000",
	})
	if err := g.Set(Limits{CPU: 0.01, Memory: 32 * mib}); err != nil {
		t.Fatal(err)
	}
	check(map[string]string{
		"memory.limit_in_bytes": "33554432", "memory.memsw.limit_in_bytes": "33554432", "cpu.cfs_quota_us": "1000", "cpu.cfs_period_us": "100000", "pids.max": "4096",
		"memory.max": "33554432", "memory.swap.max": "0", "cpu.max": "1000 100000",
	})
	if err := g.Set(Limits{PIDs: -1}); err != nil {
		t.Fatal(err)
	}
	check(map[string]string{
		"memory.limit_in_bytes": "9223372036854771712", "memory.memsw.limit_in_bytes": "9223372036854771712", "cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000", "pids.max": "max",
		"memory.max": "max", "memory.swap.max": "max", "cpu.max": "max 100000",
	})
}

func TestMemoryLimitKills(t *testing.T) {
	h := host(t)
	g := make1(t, h, Spec{Limits: Limits{Memory: 32 * mib}})
	err := command(t.Context(), g, "hog", "100000000").Run()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("100 MB in 32 MiB: %v", err)
	}
	if n, err := g.OOMKills(); err != nil || n != 1 {
		t.Errorf("OOMKills: %d %v", n, err)
	}
	u, err := g.Usage()
	if err != nil {
		t.Fatal(err)
	}
	if u.PeakMemory != nil && (*u.PeakMemory > 33*mib || *u.PeakMemory < 31*mib) {
		t.Errorf("peak %d of 32 MiB", *u.PeakMemory)
	}
	if d := g.OOMDetail(); !strings.HasPrefix(d, "the memory limit of 32 MiB was reached; ") || !strings.HasSuffix(d, "the kernel killed 1 of its processes") {
		t.Errorf("detail %q", d)
	}
}

func TestUsage(t *testing.T) {
	h := host(t)
	g := make1(t, h, Spec{})
	used := 0.0 // by what the kernel tells a parent
	for _, args := range [][]string{{"spin", "300ms"}, {"hog", "50000000"}} {
		c := command(t.Context(), g, args...)
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
		used += (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds()
	}
	u, err := g.Final()
	if err != nil {
		t.Fatal(err)
	}
	// The group does not have what ran before the process joined.
	if u.CPUSeconds == nil || *u.CPUSeconds < 0.28 || *u.CPUSeconds > used*1.05+0.02 {
		t.Errorf("CPU %v s, and %v s by the parent", value(u.CPUSeconds), used)
	}
	if h.can(memory) && (u.PeakMemory == nil || *u.PeakMemory < 50e6 || *u.PeakMemory > 80e6) {
		t.Errorf("peak memory %v", u.PeakMemory)
	}
	if u.Memory != nil || u.PIDs != nil {
		t.Errorf("final usage has what only a running group has: %+v", u)
	}
	live, err := g.Usage()
	if err != nil || h.can(memory) && live.Memory == nil || h.can(pids) && (live.PIDs == nil || *live.PIDs != 0) {
		t.Errorf("live usage %+v %v", live, err)
	}
}

func TestUsageOfDisk(t *testing.T) {
	h := host(t)
	if !h.can(blkio) {
		t.Skip("needs the io controller: elsewhere nothing counts")
	}
	h.countDisks()
	g := make1(t, h, Spec{})
	file := filepath.Join(t.TempDir(), "f")
	if out, err := command(t.Context(), g, "write", file, "30000000").CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	// The page cache knows nothing of the file any more.
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	before, err := g.Usage()
	if err != nil || before.BytesWritten == nil || *before.BytesWritten < 30000000 || *before.BytesWritten > 40000000 {
		t.Errorf("30 MB written: %s %v", show(before), err)
	}
	if out, err := command(t.Context(), g, "read", file).CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	after, err := g.Usage()
	if err != nil || after.BytesRead == nil || *after.BytesRead-*before.BytesRead < 30000000 || *after.BytesRead-*before.BytesRead > 40000000 {
		t.Errorf("30 MB read: %s before, %s after, %v", show(before), show(after), err)
	}
}

func value(f *float64) float64 {
	if f == nil {
		return -1
	}
	return *f
}

func TestCPULimit(t *testing.T) {
	h := host(t)
	g := make1(t, h, Spec{Limits: Limits{CPU: 0.2}})
	begin := time.Now()
	if err := command(t.Context(), g, "spin", "300ms").Run(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took < time.Second {
		t.Errorf("300 ms of CPU time at 0.2 cores took %v", took)
	}
}

func TestPIDsLimit(t *testing.T) {
	h := host(t)
	g := make1(t, h, Spec{Limits: Limits{PIDs: 30}})
	_, line := start(t, g, "forks", "60")
	if line == "made 60" || !strings.HasPrefix(line, "made ") {
		t.Errorf("a limit of 30 let it: %s", line)
	}
	u, err := g.Usage()
	if err != nil || u.PIDs == nil || *u.PIDs > 30 || *u.PIDs < 10 {
		t.Errorf("pids %v %v", u.PIDs, err)
	}
	if err := g.Kill(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestKillAndRemove(t *testing.T) {
	h := host(t)
	g := make1(t, h, Spec{})
	p, _ := start(t, g, "forks", "5")
	if busy, err := g.Populated(); err != nil || !busy {
		t.Errorf("populated: %v %v", busy, err)
	}
	procs, err := g.Procs()
	if err != nil || len(procs) != 6 || !slices.Contains(procs, p.Pid) {
		t.Errorf("procs %v %v, want 6 with %d", procs, err, p.Pid)
	}
	// What a task may make below itself.
	for _, d := range g.dirs() {
		if err := os.MkdirAll(d+"/x/y", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	if err := g.Kill(ctx); err != nil {
		t.Fatal(err)
	}
	if procs, err := g.Procs(); err != nil || len(procs) != 0 {
		t.Errorf("after Kill: %v %v", procs, err)
	}
	dirs := g.dirs()
	if err := g.Remove(ctx); err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if exists(d) {
			t.Errorf("%s is left", d)
		}
	}
	if err := g.Remove(ctx); err != nil {
		t.Errorf("removing again: %v", err)
	}
}

func TestFreeze(t *testing.T) {
	h := host(t)
	g := make1(t, h, Spec{})
	c := command(t.Context(), g, "spin", "1h")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Process.Kill(); _ = c.Wait() }()
	if err := g.Freeze(); err != nil {
		t.Fatal(err)
	}
	used := func() float64 { u, _ := g.Usage(); return *u.CPUSeconds }
	time.Sleep(50 * time.Millisecond)
	before := used()
	time.Sleep(100 * time.Millisecond)
	if after := used(); after-before > 0.01 {
		t.Errorf("frozen, it used %v s", after-before)
	}
	if err := g.Thaw(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(20 * time.Second); used()-before < 0.01; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("thawed, it used %v s", used()-before)
		}
	}
}

func TestDevices(t *testing.T) {
	h := host(t)
	if !h.can(devices) {
		t.Fatalf("no device rules here: %v", h.Lacks())
	}
	fuse := filepath.Join(t.TempDir(), "fuse")
	tun := filepath.Join(t.TempDir(), "tun")
	for name, minor := range map[string]int{fuse: 229, tun: 200} {
		if err := syscall.Mknod(name, syscall.S_IFCHR|0o666, 10<<8|minor&0xff|minor&^0xff<<12); err != nil {
			t.Fatal(err)
		}
	}
	ten, n229, n200 := int64(10), int64(229), int64(200)
	for _, c := range []struct {
		name  string
		rules []specsDevice
		want  string
	}{
		{"default", nil, "yes yes EPERM EPERM EPERM"},
		{"one more", []specsDevice{{Allow: true, Type: "c", Major: &ten, Minor: &n229}}, "yes yes yes yes EPERM"},
		{"read only", []specsDevice{{Allow: true, Type: "c", Major: &ten, Minor: &n229, Access: "r"}}, "yes yes yes EPERM EPERM"},
		{"all of a major", []specsDevice{{Allow: true, Type: "c", Major: &ten, Access: "rw"}}, "yes yes yes yes yes"},
		{"deny first", []specsDevice{{}, {Allow: true, Type: "c", Major: &ten, Minor: &n200, Access: "rwm"}}, "EPERM EPERM EPERM EPERM yes"},
		{"everything", []specsDevice{{Allow: true, Type: "a", Access: "rwm"}}, "yes yes yes yes yes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := make1(t, h, Spec{Path: strings.ReplaceAll(c.name, " ", "-"), Devices: c.rules})
			t.Cleanup(func() {
				if err := h.RemoveAll(context.Background(), instance(t)); err != nil {
					t.Error(err)
				}
			})
			out, err := command(t.Context(), g, "open", "/dev/null", "r", "/dev/null", "w", fuse, "r", fuse, "w", tun, "r").CombinedOutput()
			got := strings.Join(strings.Fields(string(out)), " ")
			// Devices without a driver answer so once the rules have let it through.
			got = strings.NewReplacer("no such device or address", "yes", "no such device", "yes", "operation not supported by device", "yes").Replace(got)
			if err != nil || got != c.want {
				t.Errorf("null r, null w, fuse r, fuse w, tun r: %s (%v), want %s", got, err, c.want)
			}
			if h.Version() != V2 || c.name == "everything" { // which needs no program
				return
			}
			if err := g.HoldsRules(c.rules); err != nil {
				t.Errorf("its own rules: %v", err)
			}
			others := append(slices.Clone(c.rules), specsDevice{Allow: true, Type: "c", Major: &n200, Minor: &ten})
			if err := g.HoldsRules(others); !errors.Is(err, ErrOtherRules) {
				t.Errorf("other rules: %v", err)
			}
		})
	}
	_, err := h.Make(Spec{Path: instance(t) + "/deny", Devices: []specsDevice{{Allow: true, Type: "c", Major: &ten}, {Type: "c", Major: &ten, Minor: &n229}}})
	if !errors.Is(err, berth.ErrUnsupported) {
		t.Errorf("a rule that denies: %v", err)
	}
}

func TestRecovery(t *testing.T) {
	h := host(t)
	other := host2(t, "other")
	g := make1(t, h, Spec{Path: "one"})
	two := make1(t, h, Spec{Path: "two", Devices: []specsDevice{{Allow: true}}})
	start(t, g, "forks", "3")
	start(t, two, "sleep")
	keep, err := other.Make(Spec{Path: "other/one"})
	if err != nil {
		t.Fatal(err)
	}
	alive, _ := start(t, keep, "sleep")
	// Another process, after a crash of the first.
	again := host2(t, "unused")
	list, err := again.List(instance(t))
	if want := sorted([]string{g.Path(), two.Path()}); err != nil || !slices.Equal(list, want) {
		t.Errorf("list %v %v, want %v", list, err, want)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := again.RemoveAll(ctx, instance(t)); err != nil {
		t.Fatal(err)
	}
	if list, err := again.List(instance(t)); err != nil || len(list) != 0 {
		t.Errorf("left: %v %v", list, err)
	}
	for _, tr := range h.trees() {
		if d := tr.mount + tr.base + "/" + instance(t); exists(d) {
			t.Errorf("%s is left", d)
		}
	}
	if err := alive.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("another instance's process: %v", err)
	}
	if list, err := again.List("other"); err != nil || !slices.Equal(list, []string{keep.Path()}) {
		t.Errorf("another instance's groups: %v %v", list, err)
	}
	// The first goes on working.
	if _, err := h.Make(Spec{Path: instance(t) + "/three"}); err != nil {
		t.Error(err)
	}
}

func host2(t *testing.T, instance string) *Host {
	t.Helper()
	h, err := Find(t.Context(), Options{Base: "berth-test", Adopt: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.RemoveAll(context.Background(), instance); _ = h.Close() })
	return h
}

func TestMakeRefuses(t *testing.T) {
	h := host(t)
	make1(t, h, Spec{Path: "there"})
	for _, c := range []struct {
		name string
		spec Spec
		want error
	}{
		{"no instance", Spec{Path: "a"}, berth.ErrInvalid},
		{"dots", Spec{Path: "a/.."}, berth.ErrInvalid},
		{"own name", Spec{Path: "a/_self"}, berth.ErrInvalid},
		{"three", Spec{Path: "a/b/c"}, berth.ErrInvalid},
		{"little CPU", Spec{Path: "a/b", Limits: Limits{CPU: 0.001}}, berth.ErrInvalid},
		{"negative memory", Spec{Path: "a/b", Limits: Limits{Memory: -1}}, berth.ErrInvalid},
		{"parent", Spec{Path: "a/b", Parent: "/x/../y"}, berth.ErrInvalid},
		{"there", Spec{Path: instance(t) + "/there"}, berth.ErrConflict},
	} {
		t.Run(c.name, func(t *testing.T) {
			if g, err := h.Make(c.spec); !errors.Is(err, c.want) {
				t.Errorf("%v %v, want %v", g, err, c.want)
			}
		})
	}
}

func TestOpenOfNothing(t *testing.T) {
	if _, err := host(t).Open("/nothing/here"); !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
}

// A resource manager gives each job a cgroup, in which everything of the job shall be.
func TestParent(t *testing.T) {
	h := host(t)
	const parent = "/berth-test-job"
	for _, tr := range h.trees() {
		if err := os.Mkdir(tr.mount+parent, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(tr.mount + parent); err != nil {
				t.Error(err)
			}
		})
	}
	g := make1(t, h, Spec{Parent: parent, Limits: Limits{PIDs: 50}})
	if !strings.HasPrefix(g.Path(), parent+"/berth-test/testparent/") {
		t.Errorf("path %s", g.Path())
	}
	start(t, g, "sleep")
	if list, err := h.List(instance(t), parent); err != nil || !slices.Equal(list, []string{g.Path()}) {
		t.Errorf("list %v %v", list, err)
	}
	if err := h.RemoveAll(t.Context(), instance(t), parent); err != nil {
		t.Fatal(err)
	}
	for _, tr := range h.trees() {
		if left := children(tr.mount + parent); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	// The job's owner can remove its cgroup when the last of the job's groups is gone, and not what another group is in.
	a, b := make1(t, h, Spec{Path: "first", Parent: parent}), make1(t, h, Spec{Path: "second", Parent: parent, Limits: Limits{PIDs: 50}})
	if err := a.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	start(t, b, "sleep") // it can be joined still
	for _, dir := range append(b.dirs(), b.v1[devices]) {
		if dir != "" && !exists(dir) {
			t.Errorf("%s went with another group", dir)
		}
	}
	if err := errors.Join(b.Kill(t.Context()), b.Remove(t.Context())); err != nil {
		t.Fatal(err)
	}
	for _, tr := range h.trees() {
		if left := children(tr.mount + parent); len(left) > 0 {
			t.Errorf("left when the last group was removed: %v", left)
		}
	}
	again := make1(t, h, Spec{Path: "third", Parent: parent})
	start(t, again, "sleep")
	if err := errors.Join(again.Kill(t.Context()), again.Remove(t.Context())); err != nil {
		t.Fatal(err)
	}
	// Where the groups without a parent are, too, they stay, joined or not.
	mine, beside := make1(t, h, Spec{Path: "mine"}), make1(t, h, Spec{Path: "beside", Parent: path.Dir(h.trees()[0].base)})
	if err := beside.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, dir := range mine.dirs() {
		if !exists(dir) {
			t.Errorf("%s went with a group beside it", dir)
		}
	}
	_, err := h.Make(Spec{Path: "x/y", Parent: "/berth-test-nothing"})
	if !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("a parent that is not there: %v", err)
	}
}
