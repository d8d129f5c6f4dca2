package device_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/devicetest"
	"github.com/berth-project/berth/device/intel"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/ledger"
)

// vendors are those of a host, with a program for NVIDIA's hooks that need not be there.
func vendors(h *device.Host) []device.Injector {
	hooks := nvidia.Hooks{Path: "/opt/berth/berth-cdi-hook"}
	return []device.Injector{
		&nvidia.Injector{Driver: nvidia.NewDriver(h), Generator: nvidia.Generator{Host: h, Hooks: hooks}},
		&amd.Injector{Driver: amd.NewDriver(h)},
		&intel.Injector{Driver: intel.NewDriver(h)},
	}
}

func openHost(t testing.TB, root string) *device.Host {
	t.Helper()
	h, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// pool makes a pool of a host; more changes its configuration.
func pool(t testing.TB, root string, more func(*device.PoolConfig)) *device.Pool {
	t.Helper()
	h := openHost(t, root)
	cfg := device.PoolConfig{Host: h, Vendors: vendors(h), Specs: cdi.NewCache(h.CDI()), Dir: t.TempDir()}
	if more != nil {
		more(&cfg)
	}
	return device.NewPool(cfg)
}

func asks(requests ...string) *berth.Task {
	data, _ := json.Marshal(requests)
	return &berth.Task{ID: "t", Resources: berth.Resources{GPUs: data}}
}

// ids are the names of what was lent, by their place among the host's.
func ids(lent []ledger.Device, gpus []devicetest.GPU) (at []int) {
	for _, d := range lent {
		at = append(at, slices.IndexFunc(gpus, func(g devicetest.GPU) bool { return g.UUID == d.ID }))
	}
	return at
}

// choose has a task choose from what others have left.
func choose(t *testing.T, p *device.Pool, task *berth.Task, taken map[string]ledger.Taken) ([]ledger.Device, error) {
	t.Helper()
	c, err := p.Choose(t.Context(), task)
	if err != nil {
		return nil, err
	}
	return c(taken)
}

func TestChoose(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 6, Recorded: true}) // 0, 1, 2 near one NUMA node, 3, 4, 5 near another
	p := pool(t, h.Root, nil)
	whole := func(at ...int) map[string]ledger.Taken {
		taken := map[string]ledger.Taken{}
		for _, i := range at {
			taken[h.AMD[i].UUID] = ledger.Taken{Exclusive: true, Tasks: []string{fmt.Sprint("other", i)}}
		}
		return taken
	}
	share := func(taken map[string]ledger.Taken, at int, gib int64) map[string]ledger.Taken {
		taken[h.AMD[at].UUID] = ledger.Taken{Bytes: gib << 30, Tasks: []string{"sharer"}}
		return taken
	}
	for _, c := range []struct {
		name  string
		task  *berth.Task
		taken map[string]ledger.Taken
		want  []int
		waits string
	}{
		{name: "one", task: asks("1"), want: []int{0}},
		{name: "one, from the node that is broken already", task: asks("1"), taken: whole(3), want: []int{4}},
		{name: "two near each other", task: asks("2"), taken: whole(0, 1), want: []int{3, 4}},
		{name: "two, so that three stay together", task: asks("2"), taken: whole(4), want: []int{3, 5}},
		{name: "four, which are near no one node", task: asks("4"), taken: whole(0), want: []int{1, 2, 3, 4}},
		{name: "all", task: asks("all"), want: []int{0, 1, 2, 3, 4, 5}},
		{name: "an id", task: asks("device=4"), want: []int{4}},
		{name: "an id beside a count", task: asks("1", "device=0"), want: []int{0, 1}},
		{name: "a share of a free one", task: asks("shared,memory=8GiB"), want: []int{0}},
		{name: "a share of one that is shared", task: asks("shared,memory=8GiB"), taken: share(whole(), 3, 20), want: []int{3}},
		{name: "a share of the least loaded", task: asks("shared,memory=8GiB"), taken: share(share(whole(), 3, 20), 5, 10), want: []int{5}},
		{name: "a share that fits no shared one", task: asks("shared,memory=60GiB"), taken: share(whole(), 3, 20), want: []int{4}}, // near the shared one
		{name: "a whole one is not one that is shared", task: asks("device=3"), taken: share(whole(), 3, 20), waits: "waiting for 1 GPU: amd 3 has 20 GiB of 64 GiB lent to sharer"},
		{name: "none is left", task: asks("3"), taken: whole(0, 1, 2, 3), waits: "waiting for 3 GPUs: amd 0 is lent to other0, amd 1 is lent to other1, amd 2 is lent to other2, amd 3 is lent to other3"},
		{name: "no share is left", task: asks("shared,memory=60GiB,device=3"), taken: share(whole(), 3, 20), waits: "waiting for 60 GiB of a GPU: amd 3 has 20 GiB"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lent, err := choose(t, p, c.task, c.taken)
			if c.waits != "" {
				if !errors.Is(err, berth.ErrUnavailable) || !strings.HasPrefix(err.Error(), c.waits) {
					t.Errorf("%v, %v; want %q", ids(lent, h.AMD), err, c.waits)
				}
				return
			}
			if got := ids(lent, h.AMD); err != nil || !slices.Equal(got, c.want) {
				t.Errorf("%v, %v; want %v", got, err, c.want)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{NVIDIA: 2, AMD: 1, Recorded: true})
	for _, c := range []struct {
		name string
		task *berth.Task
		env  map[string]string
		kind error
		says string
	}{
		{name: "nothing", task: &berth.Task{}},
		{name: "what there is", task: asks("2")},
		{name: "of each vendor", task: asks("vendor=amd", "vendor=nvidia,count=2")},
		{name: "more than there is", task: asks("3"), kind: berth.ErrExhausted, says: "2 fit; this host has nvidia 0"},
		{name: "more than there is, together", task: asks("1", "vendor=nvidia,count=2"), kind: nil},
		{name: "the same twice", task: asks("vendor=nvidia,count=2", "device=nvidia.com/gpu=0"), kind: berth.ErrExhausted, says: "all that the task asks for is more than there is; this host has"},
		{name: "an unknown id", task: asks("GPU-01234567-0000-4000-8000-000000000000"), kind: berth.ErrNotFound, says: "no device GPU-0123"},
		{name: "a mask", task: asks("vendor=nvidia,count=2"), env: map[string]string{"SLURM_JOB_GPUS": "1", "CUDA_VISIBLE_DEVICES": "0"}, kind: berth.ErrDenied, says: "several vendors"},
		{name: "a mask of UUIDs", task: asks("vendor=nvidia,count=2"), env: map[string]string{"CUDA_VISIBLE_DEVICES": h.NVIDIA[1].UUID}, kind: berth.ErrExhausted, says: "CUDA_VISIBLE_DEVICES=" + h.NVIDIA[1].UUID + " allows no more"},
		{name: "a job without devices", task: asks("1"), env: map[string]string{"SLURM_JOB_ID": "7"}, kind: berth.ErrExhausted, says: "no GPUs"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := pool(t, h.Root, func(cfg *device.PoolConfig) { cfg.Env = c.env })
			err := p.Check(t.Context(), c.task)
			if c.kind == nil && err != nil || c.kind != nil && (!errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("%v; want %v that says %q", err, c.kind, c.says)
			}
		})
	}
}

// What a mask allows stays with the task, whoever drives it.
func TestMaskStaysWithTask(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{NVIDIA: 3, Recorded: true})
	task := asks("1")
	masked := pool(t, h.Root, func(cfg *device.PoolConfig) { cfg.Env = map[string]string{"SLURM_JOB_GPUS": "2"} })
	if err := masked.Check(t.Context(), task); err != nil {
		t.Fatal(err)
	}
	lent, err := choose(t, pool(t, h.Root, nil), task, nil)
	if got := ids(lent, h.NVIDIA); err != nil || !slices.Equal(got, []int{2}) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestGrants(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{NVIDIA: 3, AMD: 2, Recorded: true})
	dir := t.TempDir()
	p := pool(t, h.Root, func(cfg *device.PoolConfig) { cfg.Dir = dir })
	lent := []ledger.Device{{ID: h.AMD[1].UUID}, {ID: h.NVIDIA[2].UUID}, {ID: h.NVIDIA[0].UUID}}
	task := asks("vendor=nvidia,count=2,\"capabilities=compute,utility\"", "vendor=amd")
	grants, notes, err := p.Grants(t.Context(), task, lent, nil)
	if err != nil || len(notes) > 0 || len(grants) != 3 {
		t.Fatal(grants, notes, err)
	}
	var uuids []string
	var edits []cdi.Edits
	for _, g := range grants {
		uuids = append(uuids, g.UUID)
		var e cdi.Edits
		if err := json.Unmarshal(g.Edits, &e); err != nil {
			t.Fatal(err)
		}
		edits = append(edits, e)
		var paths []string
		for _, n := range g.Nodes {
			paths = append(paths, n.Container)
		}
		own := append(slices.Clone(h.NVIDIA), h.AMD...)[slices.IndexFunc(append(slices.Clone(h.NVIDIA), h.AMD...), func(o devicetest.GPU) bool { return o.UUID == g.UUID })].Node
		want := []string{"/dev/nvidiactl", "/dev/nvidia-uvm", own.Path}
		if g.Vendor == "amd" {
			want = []string{"/dev/kfd", own.Path}
		}
		if !slices.Equal(paths, want) {
			t.Errorf("%s has the nodes %v, want %v", g.UUID, paths, want)
		}
		if last := g.Nodes[len(g.Nodes)-1]; last.Major != own.Major || last.Minor != own.Minor || last.Type != "c" {
			t.Errorf("%+v, want %+v", last, own)
		}
		if (g.Vendor == "amd") != slices.Equal(g.GIDs, []uint32{105}) {
			t.Errorf("groups %v of %s", g.GIDs, g.Vendor)
		}
		if !slices.Equal(g.Capabilities, []string{"compute", "utility"}) {
			t.Errorf("%v", g.Capabilities)
		}
	}
	if want := []string{h.NVIDIA[0].UUID, h.NVIDIA[2].UUID, h.AMD[1].UUID}; !slices.Equal(uuids, want) {
		t.Errorf("grants of %v, want %v", uuids, want)
	}
	// What all of a vendor need is in its first, and what depends on the whole in the last of all.
	if len(edits[0].Mounts) == 0 || len(edits[1].Mounts) > 0 || len(edits[0].DeviceNodes) != 3 || len(edits[1].DeviceNodes) != 1 || len(edits[2].DeviceNodes) != 2 {
		t.Errorf("%+v", edits)
	}
	want := []string{
		"BERTH_GPUS=" + strings.Join(uuids, ","), "CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=0,1",
		"ROCR_VISIBLE_DEVICES=0", "HIP_VISIBLE_DEVICES=0", "NVIDIA_VISIBLE_DEVICES=void",
	}
	if !slices.Equal(edits[2].Env, want) {
		t.Errorf("%q, want %q", edits[2].Env, want)
	}
	// Another process finds the same without looking for all of it.
	again, _, err := pool(t, h.Root, func(cfg *device.PoolConfig) { cfg.Dir = dir }).Grants(t.Context(), task, lent, nil)
	if err != nil || fmt.Sprint(again) != fmt.Sprint(grants) {
		t.Errorf("%v, %v; want %v", again, err, grants)
	}
}

func TestGrantsShare(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 1, Recorded: true})
	lent := []ledger.Device{{ID: h.AMD[0].UUID, Bytes: 8 << 30, Total: 64 << 30}}
	grants, notes, err := pool(t, h.Root, nil).Grants(t.Context(), asks("shared,memory=8GiB"), lent, nil)
	if err != nil || len(grants) != 1 || grants[0].Memory != 8<<30 || len(notes) != 1 || !strings.Contains(notes[0], "share of 8 GiB of amd 0") || !strings.Contains(notes[0], "advisory") {
		t.Error(grants, notes, err)
	}
}

func TestGrantsRequire(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{NVIDIA: 1, AMD: 1, Recorded: true})
	p := pool(t, h.Root, nil)
	nv, am := []ledger.Device{{ID: h.NVIDIA[0].UUID}}, []ledger.Device{{ID: h.AMD[0].UUID}}
	for _, c := range []struct {
		name string
		lent []ledger.Device
		env  []string
		kind error
	}{
		{"met", nv, []string{"NVIDIA_REQUIRE_CUDA=cuda>=12.0"}, nil},
		{"not met", nv, []string{"NVIDIA_REQUIRE_CUDA=cuda>=13.0"}, berth.ErrExhausted},
		{"an old image", nv, []string{"CUDA_VERSION=13.0.1"}, berth.ErrExhausted},
		{"disabled", nv, []string{"NVIDIA_REQUIRE_CUDA=cuda>=13.0", "NVIDIA_DISABLE_REQUIRE=true"}, nil},
		{"of another vendor", am, []string{"NVIDIA_REQUIRE_CUDA=cuda>=13.0"}, nil},
		{"parts of the driver", nv, []string{"NVIDIA_DRIVER_CAPABILITIES=compute,video"}, nil},
		{"parts that it has not", nv, []string{"NVIDIA_DRIVER_CAPABILITIES=compute,bogus"}, berth.ErrInvalid},
		{"those of another vendor's", am, []string{"NVIDIA_DRIVER_CAPABILITIES=bogus"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, _, err := p.Grants(t.Context(), asks("1"), c.lent, [][]string{nil, c.env})
			if !errors.Is(err, c.kind) {
				t.Errorf("%v", err)
			}
			if errors.Is(err, berth.ErrExhausted) && (!strings.Contains(err.Error(), "cuda>=13.0") || !strings.Contains(err.Error(), "cuda 12.4, driver 550.54.15")) {
				t.Errorf("%v does not show both sides", err)
			}
		})
	}
}

// What is asked for and has no effect is told.
func TestGrantsOptions(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 1, Recorded: true})
	lent := []ledger.Device{{ID: h.AMD[0].UUID}}
	for request, want := range map[string][]string{`1`: nil, `1,"options=b=1,a=2"`: {"options of GPUs (a, b) have no effect, as with Docker's drivers"}} {
		if _, notes, err := pool(t, h.Root, nil).Grants(t.Context(), asks(request), lent, nil); err != nil || !slices.Equal(notes, want) {
			t.Errorf("%s: %q, %v", request, notes, err)
		}
	}
}

// What a task says of the parts of the driver that it uses counts before what its image says.
func TestGrantsCapabilities(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{NVIDIA: 1, Recorded: true})
	env := [][]string{{"NVIDIA_DRIVER_CAPABILITIES=bogus"}}
	for request, kind := range map[string]error{
		`1,"capabilities=utility"`: nil, `1,"capabilities=gpu"`: berth.ErrInvalid, `1`: berth.ErrInvalid,
	} {
		_, _, err := pool(t, h.Root, nil).Grants(t.Context(), asks(request), []ledger.Device{{ID: h.NVIDIA[0].UUID}}, env)
		if !errors.Is(err, kind) {
			t.Errorf("%s: %v", request, err)
		}
	}
}

func TestFaultyDeviceIsNotLent(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{NVIDIA: 2, Recorded: true})
	q := device.Quarantine{Dirs: []string{t.TempDir()}}
	open := func() *device.Pool {
		return pool(t, h.Root, func(cfg *device.PoolConfig) { cfg.Quarantine = q })
	}
	p := open()
	if err := p.Check(t.Context(), asks("2")); err != nil {
		t.Fatal(err)
	}
	h.Write(device.FaultFile, h.NVIDIA[0].UUID+" Xid 79: GPU has fallen off the bus\n")
	texts, err := p.Faults(t.Context(), []ledger.Device{{ID: h.NVIDIA[0].UUID}, {ID: h.NVIDIA[1].UUID}})
	if err != nil || len(texts) != 1 || !strings.Contains(texts[0], h.NVIDIA[0].UUID+" reported Xid 79") {
		t.Fatal(texts, err)
	}
	for range 2 {
		lent, err := choose(t, p, asks("1"), nil)
		if got := ids(lent, h.NVIDIA); err != nil || !slices.Equal(got, []int{1}) {
			t.Errorf("%v, %v", got, err)
		}
		p = open() // any other process
	}
	for _, asked := range []string{"2", "device=0"} {
		if err := p.Check(t.Context(), asks(asked)); err == nil || !strings.Contains(err.Error(), "is in quarantine: Xid 79: GPU has fallen off the bus since") {
			t.Error(asked, err)
		}
	}
	if err := q.Release(h.NVIDIA[0].UUID); err != nil {
		t.Fatal(err)
	}
	if err := open().Check(t.Context(), asks("2")); err != nil {
		t.Error(err)
	}
}

func TestBusyDeviceIsNotLent(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 2})
	pid, below := holder(t, h.Path(h.AMD[0].Node.Path))
	t.Cleanup(func() { _ = syscall.Kill(below, syscall.SIGKILL) })
	l, err := ledger.New(ledger.Config{Dirs: ledger.Dirs{Shared: t.TempDir() + "/ledger"}})
	if err != nil {
		t.Fatal(err)
	}
	open := func() *device.Pool { return pool(t, h.Root, func(cfg *device.PoolConfig) { cfg.Ledger = l }) }
	check := func(request string, want ...int) {
		t.Helper()
		lent, err := choose(t, open(), asks(request), nil)
		if got := ids(lent, h.AMD); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", request, got, err, want)
		}
	}
	check("1", 1)
	check("2,allow_busy", 0, 1)
	_, err = choose(t, open(), asks("2"), nil)
	if want := fmt.Sprintf("waiting for 2 GPUs: amd 0 is used by \"sh\" (process %d); --allow-busy lends what others use", pid); err == nil || err.Error() != want || !errors.Is(err, berth.ErrUnavailable) {
		t.Errorf("%v, want %s", err, want)
	}
	// The processes of whom it is lent to are not another's.
	lease, err := l.Acquire(t.Context(), ledger.Request{Task: "t", Devices: []ledger.Device{{ID: h.AMD[0].UUID, Bytes: 1 << 30, Total: 64 << 30}}})
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	holds, err := ledger.Process(pid)
	if err == nil {
		err = lease.AddHolder(t.Context(), holds)
	}
	if err != nil {
		t.Fatal(err)
	}
	check("2", 0, 1) // to the processes; that it is lent is the ledger's to say
}

func TestChooseLinked(t *testing.T) {
	// 0, 1, 2 near one NUMA node, 3, 4, 5 near another; 2 to 5 have links to each other.
	h := devicetest.New(t, devicetest.Options{AMD: 6, Hive: 4, Recorded: true})
	p := pool(t, h.Root, nil)
	for request, want := range map[string][]int{
		"1": {0}, "2": {3, 4}, "3": {3, 4, 5}, "4": {2, 3, 4, 5}, "5": {0, 1, 2, 3, 4},
	} {
		lent, err := choose(t, p, asks(request), nil)
		if got := ids(lent, h.AMD); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v, %v; want %v", request, got, err, want)
		}
	}
}

// Slices of the GPU that is broken already go first, and a request gets the least that will do.
func TestChooseSlices(t *testing.T) {
	slice := func(uuid, profile string, gib int64) device.Slice {
		return device.Slice{UUID: uuid, Profile: profile, Memory: gib << 30}
	}
	divided := []device.Device{
		{Vendor: "nvidia", Index: 0, UUID: "a", Memory: 80 << 30, Slices: []device.Slice{slice("a0", "1g.10gb", 10), slice("a1", "1g.10gb", 10), slice("a2", "3g.40gb", 40)}},
		{Vendor: "nvidia", Index: 1, UUID: "b", Memory: 80 << 30, Slices: []device.Slice{slice("b0", "1g.10gb", 10), slice("b1", "1g.10gb", 10)}},
		{Vendor: "nvidia", Index: 2, UUID: "c", Memory: 80 << 30},
		{Vendor: "nvidia", Index: 3, UUID: "d", Memory: 48 << 30},
	}
	for i := range divided {
		for k := range divided[i].Slices {
			divided[i].Slices[k].Index, divided[i].Slices[k].GI = k, k
		}
	}
	h := devicetest.New(t, devicetest.Options{Recorded: true, NVIDIA: 1})
	p := pool(t, h.Root, func(cfg *device.PoolConfig) { cfg.Vendors = []device.Injector{fixed{cfg.Vendors[0], divided}} })
	taken := func(ids ...string) map[string]ledger.Taken {
		m := map[string]ledger.Taken{}
		for _, id := range ids {
			m[id] = ledger.Taken{Exclusive: true, Tasks: []string{"other"}}
		}
		return m
	}
	for _, c := range []struct {
		request string
		taken   []string
		want    string // or what it waits for
	}{
		{"mig=1g.10gb", nil, "b0"},                  // of fewer slices
		{"mig=1g.10gb", []string{"a0", "a2"}, "a1"}, // lent by a berth that had other names for slices
		{"mig=1g.10gb", []string{"MIG-a/0/0", "a2"}, "a1"},
		{"mig=3g.40gb", nil, "a2"},
		{"memory=8GiB", nil, "b0"},
		{"memory=20GiB", nil, "a2"},
		{"memory=41GiB", nil, "d"},
		{"memory=49GiB", nil, "c"},
		{"1", nil, "d"}, // whole, the lesser
		{"2", nil, "c d"},
		{"mig=3g.40gb", []string{"a2"}, "waiting for 1 of the slices 3g.40gb: nvidia 0:2 is lent to other"},
		{"device=0:1", []string{"a"}, "waiting for 1 GPU: nvidia 0:1 is lent to other"}, // lent before it was divided
		{"device=0", nil, "is divided into slices"},
	} {
		lent, err := choose(t, p, asks(c.request), taken(c.taken...))
		var got []string
		for _, d := range lent {
			for _, u := range device.Units(divided) {
				if u.Key() == d.ID {
					got = append(got, u.UUID())
				}
			}
		}
		slices.Sort(got)
		if err != nil {
			got = []string{err.Error()}
		}
		if text := strings.Join(got, " "); text != c.want && (err == nil || !strings.Contains(text, c.want)) {
			t.Errorf("%s with %v lent: %s, want %s", c.request, c.taken, text, c.want)
		}
	}
}

// TestChooseVendor: who asks for memory gets the least that will do, of whatever vendor, unless one is named; who asks for
// a number alone gets the first vendor's, as with Docker.
func TestChooseVendor(t *testing.T) {
	of := func(vendor string, gib ...int64) (all []device.Device) {
		for i, n := range gib {
			all = append(all, device.Device{Vendor: vendor, Index: i, UUID: fmt.Sprint(vendor, i), Memory: n << 30, Model: vendor + " card"})
		}
		return all
	}
	h := devicetest.New(t, devicetest.Options{Recorded: true, NVIDIA: 1})
	p := pool(t, h.Root, func(cfg *device.PoolConfig) {
		cfg.Vendors = []device.Injector{fixed{cfg.Vendors[0], of("nvidia", 80, 24, 24)}, fixed{cfg.Vendors[1], of("amd", 16, 64, 16)}}
	})
	for _, c := range []struct {
		request string
		taken   map[string]ledger.Taken
		want    string
	}{
		{"1", nil, "nvidia1"},
		{"memory=8GiB", nil, "amd0"},
		{"memory=8GiB,vendor=nvidia", nil, "nvidia1"},
		{"memory=20GiB", nil, "nvidia1"},
		{"memory=40GiB", nil, "amd1"},
		{"memory=65GiB", nil, "nvidia0"},
		{"2,memory=8GiB", nil, "amd0 amd2"},
		{"2,memory=20GiB", nil, "nvidia1 nvidia2"},
		{"2,memory=30GiB", nil, "1 fit"},
		{"memory=8GiB,capabilities=compute", nil, "nvidia1"},
		{"capabilities=amd", nil, "amd0"},
		{"memory=8GiB", map[string]ledger.Taken{"amd0": {Exclusive: true, Tasks: []string{"other"}}, "amd2": {Exclusive: true, Tasks: []string{"other"}}}, "nvidia1"},
		{"shared,memory=4GiB", nil, "amd0"},
		{"shared,memory=4GiB", map[string]ledger.Taken{"nvidia2": {Bytes: 1 << 30, Tasks: []string{"sharer"}}}, "nvidia2"},
	} {
		lent, err := choose(t, p, asks(c.request), c.taken)
		var got []string
		for _, d := range lent {
			got = append(got, d.ID)
		}
		if err != nil {
			got = []string{err.Error()}
		}
		if text := strings.Join(got, " "); text != c.want && (err == nil || !strings.Contains(text, c.want)) {
			t.Errorf("%s: lent %s, want %s", c.request, text, c.want)
		}
	}
}

// TestOtherVendorsImage: that an image is made for NVIDIA's GPUs, and the task has others, is told.
func TestOtherVendorsImage(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{Recorded: true, AMD: 2})
	p := pool(t, h.Root, nil)
	lent := []ledger.Device{{ID: h.AMD[0].UUID}}
	cuda := [][]string{{"PATH=/bin"}, {"NVIDIA_REQUIRE_CUDA=cuda>=12.4"}}
	for _, c := range []struct {
		request string
		envs    [][]string
		says    bool
	}{
		{"1", cuda, true},
		{"1", [][]string{{"CUDA_VERSION=10.2"}}, true},
		{"1", [][]string{{"CUDA_VERSION="}, nil}, false},
		{"vendor=amd", cuda, false},
		{"device=" + h.AMD[0].UUID, cuda, false},
	} {
		_, notes, err := p.Grants(t.Context(), asks(c.request), lent, c.envs)
		if says := slices.ContainsFunc(notes, func(n string) bool { return strings.Contains(n, "ask for vendor=nvidia") }); err != nil || says != c.says {
			t.Errorf("%s, %v: %q, %v", c.request, c.envs, notes, err)
		}
	}
}

// fixed is a vendor with certain devices.
type fixed struct {
	device.Injector
	devices []device.Device
}

func (f fixed) Devices(context.Context) ([]device.Device, error) { return f.devices, nil }
