package intel

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "tags.cncf.io/container-device-interface/specs-go"

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

// An Arc by i915, one by xe, an integrated GPU, and a GPU that a virtual machine has. The render nodes are not in
// the order of addresses.
func TestArc(t *testing.T) {
	devices, err := NewDriver(host(t, "testdata/arc")).Devices(t.Context())
	want := []device.Device{
		{Vendor: "intel", Index: 0, UUID: "0000-00-02-0-0x4680", PCI: "0000:00:02.0", Minor: 129, Model: "Intel GPU 0x4680", Driver: "i915", NUMA: -1},
		{Vendor: "intel", Index: 1, UUID: "0000-03-00-0-0x56a0", PCI: "0000:03:00.0", Minor: 128, Model: "Intel Arc A770", Memory: 16 << 30, Driver: "i915"},
		{Vendor: "intel", Index: 2, UUID: "0000-04-00-0-0xe20b", PCI: "0000:04:00.0", Minor: 130, Model: "Intel Arc B580", Driver: "xe"},
	}
	if diff := cmp.Diff(want, devices); diff != "" {
		t.Error(diff)
	}
	if !errors.Is(err, berth.ErrUnavailable) || !strings.Contains(err.Error(), "0000:05:00.0") || !strings.Contains(err.Error(), "vfio-pci") {
		t.Error(err)
	}
}

// xe tells the memory of each tile.
func TestMemoryOfTiles(t *testing.T) {
	root := filepath.Join(t.TempDir(), "host")
	if err := os.CopyFS(root, os.DirFS("testdata/arc")); err != nil {
		t.Fatal(err)
	}
	for tile, bytes := range map[string]string{"tile0": "0x200000000\n", "tile1": "4294967296\n"} {
		dir := filepath.Join(root, pciDevices, "0000:04:00.0", tile)
		err := os.Mkdir(dir, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, "physical_vram_size_bytes"), []byte(bytes), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	devices, _ := NewDriver(host(t, root)).Devices(t.Context())
	if len(devices) != 3 || devices[2].Memory != 12<<30 {
		t.Errorf("%v", devices)
	}
}

// TestHealth: a GPU whose driver calls its state critical is not lent.
func TestHealth(t *testing.T) {
	for says, want := range map[string]*string{
		"": nil, "ok\n": new(""), "warning\n": new(""), "critical\n": new("GPU health is critical"), "another\n": nil,
	} {
		root := filepath.Join(t.TempDir(), "host")
		err := os.CopyFS(root, os.DirFS("testdata/arc"))
		if err == nil && says != "" {
			err = os.WriteFile(filepath.Join(root, pciDevices, "0000:04:00.0/gpu_health"), []byte(says), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		h := host(t, root)
		devices, _ := NewDriver(h).Devices(t.Context())
		if diff := cmp.Diff(want, devices[2].Health); diff != "" || devices[1].Health != nil {
			t.Errorf("%q: %s; %v", says, diff, devices[1].Health)
		}
		held := device.Quarantine{}.See(device.FindFaults(h, devices)...)
		if f, is := held[devices[2].UUID]; is != (says == "critical\n") || is && f.Reason != *want {
			t.Errorf("%q: held: %v", says, held)
		}
	}
}

func TestNoGPU(t *testing.T) {
	h := host(t, t.TempDir())
	if devices, err := NewDriver(h).Devices(t.Context()); devices != nil || err != nil {
		t.Errorf("%v, %v", devices, err)
	}
	if _, err := (Generator{Host: h}).Spec(nil); !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
}

func TestGeneratedSpec(t *testing.T) {
	h := host(t, "testdata/arc")
	gpus := Find(h)
	spec, err := Generator{Host: h}.Spec(gpus)
	if err != nil {
		t.Fatal(err)
	}
	mode, video, render := fs.FileMode(0o660), uint32(44), uint32(105)
	byPath := func(use string) *specs.Mount {
		path := "/dev/dri/by-path/pci-0000:03:00.0-" + use
		return &specs.Mount{HostPath: path, ContainerPath: path, Type: "none", Options: []string{"bind", "rw"}}
	}
	want := specs.Device{Name: "0000-03-00-0-0x56a0", ContainerEdits: specs.ContainerEdits{
		DeviceNodes: []*specs.DeviceNode{
			{Path: "/dev/dri/card0", Type: "c", Major: 226, Minor: 0, FileMode: &mode, Permissions: "rwm", GID: &video},
			{Path: "/dev/dri/renderD128", Type: "c", Major: 226, Minor: 128, FileMode: &mode, Permissions: "rwm", GID: &render},
		},
		Mounts: []*specs.Mount{byPath("card"), byPath("render")},
	}}
	if diff := cmp.Diff(want, spec.Devices[1]); diff != "" {
		t.Error(diff)
	}
	vfio := spec.Devices[3].ContainerEdits
	var nodes []string
	for _, n := range vfio.DeviceNodes {
		nodes = append(nodes, n.Path)
	}
	if !slices.Equal(nodes, []string{"/dev/vfio/17", "/dev/vfio/vfio", "/dev/vfio/devices/vfio0"}) || vfio.Mounts != nil {
		t.Errorf("%q, %v", nodes, vfio.Mounts)
	}
	mei, err := Generator{Host: h}.MEI(gpus)
	if err != nil || len(mei.Devices) != 1 || mei.Devices[0].Name != "mei1" || mei.Devices[0].ContainerEdits.DeviceNodes[0].Major != 239 {
		t.Errorf("%+v, %v", mei, err)
	}
	for _, s := range []*specs.Spec{spec, mei} {
		if _, err := cdi.Marshal(s); err != nil {
			t.Error(err)
		}
	}
	edits := spec.Devices[1].ContainerEdits
	edits.Mounts = nil // links to nodes, which are no files in a recorded host
	differences, err := cdi.Differences(h.CDI(), &edits)
	if err != nil || differences != nil {
		t.Errorf("differs from its own host: %q, %v", differences, err)
	}
}

// TestMEI: of several management interfaces of a GPU, the first by name is the one in specs.
func TestMEI(t *testing.T) {
	root := t.TempDir()
	dir := root + "/sys/bus/pci/devices/0000:03:00.0"
	for name, text := range map[string]string{
		"vendor": "0x8086", "class": "0x030000", "device": "0x56c0",
		"xe.mei-gsc.768/mei/mei2/dev": "239:2", "xe.mei-gscfi.768/mei/mei1/dev": "239:1", "xe.mei-gscfi.768/mei/meinotes": "",
	} {
		file := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	if gpus := Find(host(t, root)); len(gpus) != 1 || gpus[0].MEI != "mei1" {
		t.Errorf("%+v", gpus)
	}
}

func TestGroups(t *testing.T) {
	h := host(t, "testdata/arc")
	edits, err := Generator{Host: h, Groups: true}.Edits(Find(h)[1])
	if err != nil || !slices.Equal(edits.AdditionalGIDs, []uint32{44, 105}) {
		t.Errorf("%+v, %v", edits, err)
	}
}

// Beside another vendor's GPU, whose nodes lie in the same directory, each vendor finds its own.
func TestTwoVendors(t *testing.T) {
	gpus := Find(host(t, "testdata/amd-and-intel"))
	if len(gpus) != 1 || gpus[0].Render != "/dev/dri/renderD128" || gpus[0].Driver != "i915" {
		t.Errorf("%+v", gpus)
	}
}
