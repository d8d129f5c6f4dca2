package amd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
)

func host(t *testing.T, root string) *device.Host {
	t.Helper()
	h, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// copyHost makes a copy of a recorded host, to be changed.
func copyHost(t *testing.T, name string) string {
	t.Helper()
	root := filepath.Join(t.TempDir(), "host")
	if err := os.CopyFS(root, os.DirFS("testdata/"+name)); err != nil {
		t.Fatal(err)
	}
	return root
}

// A GPU of eight partitions beside a whole one: each partition is a device, in the order of its render node,
// which is neither 128 and the index nor the order of the directories.
func TestPartitions(t *testing.T) {
	devices, err := NewDriver(host(t, "testdata/mi300x-cpx")).Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var want []device.Device
	for i, minor := range []int{128, 129, 130, 131, 132, 133, 134, 136} {
		want = append(want, device.Device{
			Vendor: "amd", Index: i, UUID: fmt.Sprintf("GPU-ef294c2f1e9ae6ed/%d", i), PCI: "0000:05:00.0", Minor: minor,
			Model: "AMD Instinct MI300X OAM", Memory: 24 << 30, Driver: "6.10.5", Arch: "gfx942", NUMA: 0,
		})
	}
	want = append(want, device.Device{
		Vendor: "amd", Index: 8, UUID: fmt.Sprintf("GPU-%016x", uint64(11212317489513712237)), PCI: "0000:26:00.0", Minor: 135,
		Model: "AMD Instinct MI300X OAM", Memory: 192 << 30, Driver: "6.10.5", Arch: "gfx942", NUMA: 1,
	})

	if diff := cmp.Diff(want, devices); diff != "" {
		t.Error(diff)
	}
}

// hide makes nodes of the compute driver's topology unreadable, as the device cgroup of a job does.
func hide(t *testing.T, root string, nodes ...int) {
	t.Helper()
	for _, n := range nodes {
		file := filepath.Join(root, topology, strconv.Itoa(n), "properties")
		err := os.Remove(file)
		if err == nil {
			err = os.Mkdir(file, 0o755) // root would read any file
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A partition has the same name for a process that does not see the others of its GPU: it would be lent twice.
func TestPartitionsInJob(t *testing.T) {
	for name, tt := range map[string]struct {
		hidden []int
		want   []string
	}{
		"some": {[]int{1, 3, 4, 5, 7, 8, 9}, []string{"GPU-ef294c2f1e9ae6ed/1", "GPU-ef294c2f1e9ae6ed/5"}},
		"one":  {[]int{2, 3, 4, 5, 6, 7, 8, 9}, []string{"GPU-ef294c2f1e9ae6ed/0"}},
		"last": {[]int{1, 2, 3, 4, 5, 6, 7, 9}, []string{"GPU-ef294c2f1e9ae6ed/7"}},
	} {
		t.Run(name, func(t *testing.T) {
			root := copyHost(t, "mi300x-cpx")
			hide(t, root, tt.hidden...)
			devices, err := NewDriver(host(t, root)).Devices(t.Context())
			var got []string
			for _, d := range devices {
				got = append(got, d.UUID)
			}
			if err != nil || !slices.Equal(got, tt.want) {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// A job's GPU has the index that it has on the host, which resource managers say, though others are kept from the job.
func TestIndexInJob(t *testing.T) {
	root := copyHost(t, "mi300x-cpx")
	// Two whole GPUs: of the divided one there is the first partition alone.
	for _, n := range []string{"2", "3", "4", "5", "6", "7", "8"} {
		if err := os.RemoveAll(filepath.Join(root, topology, n)); err != nil {
			t.Fatal(err)
		}
	}
	dirs, err := filepath.Glob(filepath.Join(root, partitions))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	hide(t, root, 1)
	// A card that does not compute may be the one that is hidden, for all that is seen: it is not counted, nor is that.
	devices, err := NewDriver(host(t, root)).Devices(t.Context())
	if err != nil || len(devices) != 1 || devices[0].Index != 0 {
		t.Errorf("%+v, %v", devices, err)
	}
	if err := os.RemoveAll(filepath.Join(root, drivers, "pci:amdgpu/0000:c3:00.0")); err != nil {
		t.Fatal(err)
	}
	devices, err = NewDriver(host(t, root)).Devices(t.Context())
	if err != nil || len(devices) != 1 || devices[0].Index != 1 || devices[0].Minor != 135 {
		t.Errorf("%+v, %v", devices, err)
	}
}

// Drivers have the number of a partition in the highest bits of its location since 2024.
func TestPartitionNumbers(t *testing.T) {
	root := copyHost(t, "mi300x-cpx")
	for n := range 8 {
		file := filepath.Join(root, topology, strconv.Itoa(n+1), "properties")
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		text := strings.Replace(string(data), fmt.Sprintf("location_id %d\n", 1280+n), fmt.Sprintf("location_id %d\n", 1280+n<<28), 1)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	hide(t, root, 1, 2)
	devices, err := NewDriver(host(t, root)).Devices(t.Context())
	if err != nil || len(devices) != 7 || devices[0].UUID != "GPU-ef294c2f1e9ae6ed/2" || devices[0].PCI != "0000:05:00.0" {
		t.Errorf("%v, %v", devices, err)
	}
}

// One unique id is all partitions of a GPU.
func TestUniqueIDOfPartitions(t *testing.T) {
	gpus, err := Find(host(t, "testdata/mi300x-cpx"))
	if err != nil {
		t.Fatal(err)
	}
	v := ParseVisible("0xEF294C2F1E9AE6ED,8", len(gpus), UniqueIDs(gpus))
	if !slices.Equal(v.Indices, []int{0, 1, 2, 3, 4, 5, 6, 7, 8}) || v.IgnoredIDs != nil {
		t.Errorf("%+v", v)
	}
	if gpus[0].Partition != "cpx_nps4" || gpus[8].Partition != "spx_nps1" {
		t.Errorf("partitions %q and %q", gpus[0].Partition, gpus[8].Partition)
	}
}

func TestNoDriver(t *testing.T) {
	h := host(t, t.TempDir())
	if devices, err := NewDriver(h).Devices(t.Context()); err != nil || devices != nil {
		t.Errorf("%v, %v", devices, err)
	}
	if _, err := (Generator{Host: h}).Spec(nil); !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
}

// A GPU whose node is missing is no device, and the others are.
func TestMissingNode(t *testing.T) {
	root := copyHost(t, "mi300x-cpx")
	list, err := os.ReadFile(filepath.Join(root, device.NodeList))
	if err != nil {
		t.Fatal(err)
	}
	list = []byte(strings.ReplaceAll(string(list), "/dev/dri/renderD135", "/dev/elsewhere"))
	if err := os.WriteFile(filepath.Join(root, device.NodeList), list, 0o600); err != nil {
		t.Fatal(err)
	}
	h := host(t, root)
	devices, err := NewDriver(h).Devices(t.Context())
	if len(devices) != 8 || !errors.Is(err, berth.ErrUnavailable) || !strings.Contains(err.Error(), "renderD135") {
		t.Errorf("%d devices, %v", len(devices), err)
	}
	gpus, err := Find(h)
	if err != nil {
		t.Fatal(err)
	}
	if spec, err := (Generator{Host: h}).Spec(gpus); !errors.Is(err, berth.ErrUnavailable) {
		t.Errorf("%v, %v", spec, err)
	}
}

// What is generated is a valid spec that fits the host, and brings the groups of the nodes along where asked.
func TestGeneratedSpec(t *testing.T) {
	root := copyHost(t, "mi300x-cpx")
	h := host(t, root)
	gpus, err := Find(h)
	if err != nil {
		t.Fatal(err)
	}
	for groups, want := range map[bool][]uint32{false: nil, true: {44, 105}} {
		spec, err := Generator{Host: h, Groups: groups}.Spec(gpus)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cdi.Write(h.CDI(), "/etc/cdi", "berth-amd", spec); err != nil {
			t.Fatal(err)
		}
		cache := cdi.NewCache(h.CDI(), "/etc/cdi")
		if err := cache.Check("amd.com/gpu=8", "amd.com/gpu=all"); err != nil {
			t.Error(err)
		}
		edits, _, err := cache.Resolve("amd.com/gpu=8")
		if err != nil {
			t.Fatal(err)
		}
		var nodes []string
		for _, n := range edits.DeviceNodes {
			nodes = append(nodes, n.Path)
		}
		if !slices.Equal(nodes, []string{"/dev/dri/card2", "/dev/dri/renderD135", "/dev/kfd"}) || !slices.Equal(edits.AdditionalGIDs, want) {
			t.Errorf("groups %v: nodes %q, gids %v", groups, nodes, edits.AdditionalGIDs)
		}
	}
}

func TestTracker(t *testing.T) {
	root := t.TempDir()
	h := host(t, root)
	if tr, err := ReadTracker(h); tr != nil || err != nil {
		t.Errorf("%v, %v", tr, err)
	}
	if err := os.MkdirAll(root+"/var/log", 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(root+TrackerFile, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(`{"enabled":true,"gpusStatus":{"0":{"uuid":"0xA","partitionType":"","accessibility":0,"containerIds":["c1"]},"1":{"accessibility":1,"containerIds":[]}}}`)
	tr, err := ReadTracker(h)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tr.Reserve("c2", "0-1,1", nil); err != nil || !slices.Equal(got, []int{0, 1}) {
		t.Errorf("%v, %v", got, err)
	}
	if got, err := tr.Reserve("c3", "all", nil); !errors.Is(err, berth.ErrUnavailable) || got != nil {
		t.Errorf("%v, %v", got, err)
	}
	tr.Release("c2")
	want := Tracker{0: {Containers: []string{"c1"}}, 1: {Exclusive: true, Containers: []string{}}}
	if diff := cmp.Diff(want, tr); diff != "" {
		t.Error(diff)
	}
	write(`{"enabled":false}`)
	if tr, err := ReadTracker(h); tr != nil || err != nil {
		t.Errorf("%v, %v", tr, err)
	}
	write(`{`)
	if _, err := ReadTracker(h); !errors.Is(err, berth.ErrUnavailable) {
		t.Error(err)
	}
}

func FuzzParseVisible(f *testing.F) {
	f.Add("0-3,0xef2c,all")
	f.Add("0-99999999999999")
	f.Fuzz(func(t *testing.T, value string) {
		v := ParseVisible(value, 2, map[string][]int{"ab": {1}})
		if len(v.Indices)+len(v.IgnoredIDs)+len(v.IgnoredRanges) > (maxListed+4)*(1+strings.Count(value, ",")) {
			t.Errorf("%d indices, %d ids", len(v.Indices), len(v.IgnoredIDs))
		}
		for _, i := range v.Indices {
			if i < 0 || i > 1 {
				t.Errorf("index %d", i)
			}
		}
	})
}

// Beside another vendor's GPU, whose nodes lie in the same directory, each vendor finds its own.
func TestTwoVendors(t *testing.T) {
	devices, err := NewDriver(host(t, "../intel/testdata/amd-and-intel")).Devices(t.Context())
	want := []device.Device{{
		Vendor: "amd", UUID: "GPU-0000000123456789", PCI: "0000:03:00.0", Minor: 129,
		Model: "Radeon PRO W7900", Memory: 48 << 30, Arch: "gfx1100",
	}}
	if diff := cmp.Diff(want, devices); diff != "" || err != nil {
		t.Error(diff, err)
	}
}
