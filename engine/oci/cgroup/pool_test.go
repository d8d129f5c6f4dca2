package cgroup

import (
	"encoding/json"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// newPool makes a pool that parks, or says that this host has none.
func newPool(t *testing.T) (*Host, *Pool) {
	t.Helper()
	h := host(t)
	p := h.NewPool(instance(t), 4)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if left, err := h.List(instance(t)); err != nil || len(left) > 0 {
			t.Errorf("left: %v %v", left, err)
		}
	})
	return h, p
}

func get(t *testing.T, p *Pool, l Limits) *Group {
	t.Helper()
	g, err := p.Get(Spec{Path: instance(t) + "/a" + time.Now().Format("150405.000000000"), Limits: l})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// put puts a group back and waits until the pool has dealt with it.
func put(t *testing.T, p *Pool, g *Group, clean bool) (parked bool) {
	t.Helper()
	p.Put(g, clean)
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		p.mu.Lock()
		for _, q := range p.parked {
			parked = parked || q == g
		}
		p.mu.Unlock()
		if gone := !exists(g.dirs()[0]); parked || gone && !exists(g.dirs()[len(g.dirs())-1]) {
			return parked
		}
	}
	t.Fatal("the pool never dealt with the group")
	return false
}

// residue is what is charged to a group that is not in reserve; none on v2, where nothing is used again.
func residue(t *testing.T, g *Group) (sum int64) {
	t.Helper()
	dir := g.v1[memory]
	if dir == "" {
		return 0
	}
	for _, f := range []struct{ name, key string }{{"memory.stat", "cache"}, {"memory.stat", "rss"}, {"memory.kmem.usage_in_bytes", ""}} {
		b, err := read(dir + "/" + f.name)
		if err != nil {
			t.Fatal(err)
		}
		n, err := parseInt(b)
		if f.key != "" {
			n, _, err = parseKey(b, f.key)
		}
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}

func TestPoolGivesCleanGroups(t *testing.T) {
	h, p := newPool(t)
	g := get(t, p, Limits{CPU: 1, Memory: 32 * mib, PIDs: 50})
	// Everything that the next must not see: CPU time, memory, page cache, disk writes, many pids, a kill.
	file := t.TempDir() + "/f"
	for _, args := range [][]string{{"spin", "200ms"}, {"write", file, "20000000"}} {
		if out, err := command(t.Context(), g, args...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v %s", args, err, out)
		}
	}
	if err := command(t.Context(), g, "hog", "100000000").Run(); err == nil {
		t.Fatal("100 MB in 32 MiB")
	}
	first, err := g.Usage()
	if err != nil || *first.CPUSeconds < 0.2 {
		t.Fatalf("%+v %v", first, err)
	}
	if parked := put(t, p, g, true); parked != (h.Version() != V2) {
		t.Fatalf("parked %v on %s", parked, h.Version())
	}
	g2 := get(t, p, Limits{CPU: 0.5, PIDs: 60})
	if (g2 == g) != (h.Version() != V2) {
		t.Errorf("given out again: %v", g2 == g)
	}
	u, err := g2.Usage()
	if err != nil || *u.CPUSeconds > 0.01 || *u.PeakMemory > maxCharged() || *u.Memory > maxCharged() || residue(t, g2) > maxResidue || u.BytesWritten != nil && *u.BytesWritten != 0 || *u.PIDs != 0 ||
		u.PeakPIDs != nil && *u.PeakPIDs != 0 {
		t.Errorf("a group given out again has used %s: %v", show(u), err)
	}
	if n, err := g2.OOMKills(); n != 0 || err != nil {
		t.Errorf("kills of another: %d %v", n, err)
	}
	if dir, v2 := g2.dir(memory); !v2 {
		if n, _ := readInt(dir + "/memory.limit_in_bytes"); n < 1<<60 {
			t.Errorf("memory limit of another: %d", n)
		}
	}
	if err := command(t.Context(), g2, "hog", "100000000").Run(); err != nil {
		t.Errorf("a limit of another: %v", err)
	}
	if u, err = g2.Usage(); err != nil || *u.PeakMemory < 100000000 || *u.CPUSeconds > *first.CPUSeconds+5 {
		t.Errorf("after use: %s %v", show(u), err)
	}
	p.Put(g2, true)
}

func TestPoolRefusesTheUnclean(t *testing.T) {
	h, p := newPool(t)
	if h.Version() == V2 {
		t.Skip("needs v1 hierarchies: on v2 nothing is used again")
	}
	for _, c := range []struct {
		name  string
		clean bool
		spoil func(g *Group) error
	}{
		{"could write cgroups", false, func(*Group) error { return nil }},
		{"child", true, func(g *Group) error { return os.Mkdir(g.v1[memory]+"/x", 0o755) }},
		{"child of v2", true, func(g *Group) error { return os.Mkdir(g.dirs()[len(g.dirs())-1]+"/x", 0o755) }},
		{"process", true, func(g *Group) error {
			c := command(t.Context(), g, "sleep")
			err := c.Start()
			go func() { _ = c.Wait() }()
			return err
		}},
		{"memory limit", true, func(g *Group) error { return write(g.v1[memory]+"/memory.memsw.limit_in_bytes", "-1") }},
		{"cpu quota", true, func(g *Group) error { return write(g.v1[cpu]+"/cpu.cfs_quota_us", "-1") }},
		{"cpu shares", true, func(g *Group) error { return write(g.v1[cpu]+"/cpu.shares", "2") }},
		{"oom killer", true, func(g *Group) error { return write(g.v1[memory]+"/memory.oom_control", "1") }},
		{"removed", true, func(g *Group) error { return os.Remove(g.v1[cpu]) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, err := p.Get(Spec{Path: "x/y", Limits: Limits{CPU: 1, Memory: 32 * mib}})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.spoil(g); err != nil {
				t.Fatal(err)
			}
			if put(t, p, g, c.clean) {
				t.Error("it was parked")
			}
		})
	}
	g := get(t, p, Limits{})
	if !put(t, p, g, true) {
		t.Error("a clean one was not parked")
	}
	special, err := p.Get(Spec{Path: instance(t) + "/special", Devices: []specsDevice{{Allow: true}}})
	if own := strings.HasSuffix(special.Path(), "/special"); err != nil || own == h.sharesRules() {
		t.Errorf("other devices: %v %v", special, err)
	}
	if put(t, p, special, true) != h.sharesRules() {
		t.Error("a group is parked where device rules are shared, and only there")
	}
}

func TestPoolAtOnce(t *testing.T) {
	_, p := newPool(t)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 10 {
				g := get(t, p, Limits{PIDs: 10})
				if n, err := g.Usage(); err != nil || n.PIDs == nil || *n.PIDs != 0 {
					t.Errorf("%s %v", show(n), err)
				}
				p.Put(g, true)
			}
		})
	}
	wg.Wait()
}

func show(u berth.Usage) string {
	b, _ := json.Marshal(u)
	return string(b)
}

// TestPoolChangesRules: a group is given out again under the device rules of its next container, and those alone.
func TestPoolChangesRules(t *testing.T) {
	h, p := newPool(t)
	if !h.sharesRules() {
		t.Skip("the device rules of this host are not in cgroups of their own")
	}
	major, minor := int64(10), int64(229)
	lent := []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"}}
	node := t.TempDir() + "/node"
	if err := unix.Mknod(node, unix.S_IFCHR|0o600, int(unix.Mkdev(10, 229))); err != nil {
		t.Fatal(err)
	}
	var first *Group
	for i, rules := range [][]specs.LinuxDeviceCgroup{nil, lent, lent, nil} {
		g, err := p.Get(Spec{Path: instance(t) + "/r", Devices: rules})
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = g
		}
		if g != first {
			t.Errorf("%d: another group was made", i)
		}
		out, err := command(t.Context(), g, "open", node, "r").Output()
		if err != nil {
			t.Fatal(err)
		}
		want := "EPERM\n"
		if rules != nil {
			want = "yes\n"
		}
		if string(out) != want {
			t.Errorf("%d: what runs in it opens the device: %q, want %q", i, out, want)
		}
		if !put(t, p, g, true) {
			t.Fatalf("%d: it was not parked", i)
		}
	}
}

// TestPoolReclaimsOnlyWhatIsLeft: after a short command most of what is charged is nobody's.
func TestPoolReclaimsOnlyWhatIsLeft(t *testing.T) {
	h, p := newPool(t)
	needsV1(t, h)
	const times = 40
	looked, burdened := 0, 0
	for range times {
		g := get(t, p, Limits{Memory: 64 * mib})
		if u, err := g.Usage(); err != nil || *u.PeakMemory > maxCharged() {
			t.Errorf("the peak begins at %s of %d: %v", show(u), maxCharged(), err)
		}
		if out, err := shell(t.Context(), g, "exec true").CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		charged, err := g.readInt(g.v1[memory] + "/memory.usage_in_bytes")
		if err != nil {
			t.Fatal(err)
		}
		yes, err := g.burdened(g.v1[memory], charged)
		if err != nil {
			t.Fatal(err)
		}
		if charged > maxResidue {
			looked++
		}
		if yes {
			burdened++
		}
		if !put(t, p, g, true) {
			t.Error("it was not parked")
		}
	}
	t.Logf("of %d commands %d left more than %d bytes, and %d a burden", times, looked, maxResidue, burdened)
	if burdened > times/4 {
		t.Errorf("memory is reclaimed after %d of %d commands that leave none", burdened, times)
	}
}

// TestPoolBoundsReserves: whatever the kernel's counts of pages say, a group with more than maxCharged is reclaimed.
func TestPoolBoundsReserves(t *testing.T) {
	h, p := newPool(t)
	needsV1(t, h)
	g := get(t, p, Limits{})
	for charged, want := range map[int64]bool{maxResidue: false, maxResidue + 1: false, maxCharged(): false, maxCharged() + 1: true} {
		if yes, err := g.burdened(g.v1[memory], charged); err != nil || yes != want {
			t.Errorf("an empty one of %d bytes is burdened: %v %v", charged, yes, err)
		}
	}
	p.Put(g, true)
}

// TestPoolReclaimsALittlePageCache: less than what the kernel may have in reserve is billed to nobody else either.
func TestPoolReclaimsALittlePageCache(t *testing.T) {
	h, p := newPool(t)
	needsV1(t, h)
	file := t.TempDir() + "/f"
	for range 10 {
		g := get(t, p, Limits{Memory: 64 * mib})
		if out, err := shell(t.Context(), g, "exec dd if=/dev/zero of="+file+" bs=512k count=1 conv=fsync").CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		if charged, err := g.readInt(g.v1[memory] + "/memory.usage_in_bytes"); err != nil || charged < 512<<10 {
			t.Fatalf("%d bytes are charged: %v", charged, err)
		}
		if put(t, p, g, true) {
			left, err := g.readInt(g.v1[memory] + "/memory.usage_in_bytes")
			if err != nil || left > maxCharged() || residue(t, g) > maxResidue {
				t.Errorf("%d bytes are left to the next, %d of them not in reserve: %v", left, residue(t, g), err)
			}
		}
	}
}
