package nvidia

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

func openHost(t *testing.T, name string) *device.Host {
	h, err := device.OpenHost(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestDevicesNone(t *testing.T) {
	devices, err := NewDriver(openHost(t, "none")).Devices(t.Context())
	if devices != nil || err != nil {
		t.Errorf("%v, %v", devices, err)
	}
}

func TestDevicesOne(t *testing.T) {
	got, err := NewDriver(openHost(t, "h200")).Devices(t.Context())
	want := []device.Device{{
		Vendor: "nvidia", UUID: "GPU-edfee158-11c1-52b8-0517-92f30e7fac88", PCI: "0000:06:00.0", Model: "NVIDIA H200",
		Driver: "570.124.06", CUDA: "12.8", NUMA: 1,
	}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Error(diff, err)
	}
}

// What the library adds counts; its failure leaves what is known without it.
func TestDevicesMore(t *testing.T) {
	d := NewDriver(openHost(t, "h200"))
	d.More = func(_ context.Context, all []device.Device) ([]device.Device, error) {
		all[0].Memory, all[0].Arch = 141<<30, "9.0"
		return all, nil
	}
	got, err := d.Devices(t.Context())
	if err != nil || len(got) != 1 || got[0].Memory != 141<<30 || got[0].Arch != "9.0" {
		t.Errorf("%+v, %v", got, err)
	}
	d.More = func(context.Context, []device.Device) ([]device.Device, error) { return nil, berth.ErrUnavailable }
	got, err = d.Devices(t.Context())
	if !errors.Is(err, berth.ErrUnavailable) || len(got) != 1 || got[0].Memory != 0 {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestDevicesMIG(t *testing.T) {
	got, err := NewDriver(openHost(t, "a100x8-mig")).Devices(t.Context())
	if err != nil || len(got) != 8 {
		t.Fatalf("%d devices, %v", len(got), err)
	}
	for i, d := range got {
		if d.Index != i || d.Minor != i || d.CUDA != "12.2" {
			t.Errorf("%+v", d)
		}
		if (len(d.Slices) > 0) != (i < 2) {
			t.Errorf("%d: slices %v", i, d.Slices)
		}
	}
	if n := len(got[0].Slices); n != 7 {
		t.Errorf("%d slices", n)
	}
	uuid := "MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a01"
	want := []device.Slice{
		{Index: 0, UUID: uuid + "/1/0", GI: 1, CI: 0},
		{Index: 1, UUID: uuid + "/2/0", GI: 2, CI: 0},
		{Index: 2, UUID: uuid + "/2/1", GI: 2, CI: 1},
	}
	if diff := cmp.Diff(want, got[1].Slices); diff != "" {
		t.Error(diff)
	}
	if got[0].PCI != "0000:07:00.0" || got[0].NUMA != 3 {
		t.Errorf("address %s, node %d", got[0].PCI, got[0].NUMA)
	}
}

// The minor number is the driver's, the index the order of PCI addresses; an excluded GPU has no index.
func TestDevicesMinorDiffers(t *testing.T) {
	got, err := NewDriver(openHost(t, "minor-differs")).Devices(t.Context())
	var minors []int
	for i, d := range got {
		minors = append(minors, d.Minor)
		if d.Index != i {
			t.Errorf("%+v", d)
		}
	}
	if diff := cmp.Diff([]int{2, 3, 0, 1}, minors); diff != "" {
		t.Error(diff)
	}
	want := "NVIDIA GPU 0000:af:00.0: unavailable: the driver vfio-pci has it"
	if err == nil || err.Error() != want || !errors.Is(err, berth.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}

// copyHost copies a recorded host, so that a test can spoil it.
func copyHost(t *testing.T, name string) string {
	root := filepath.Join(t.TempDir(), name)
	if err := os.CopyFS(root, os.DirFS(filepath.Join("testdata", name))); err != nil {
		t.Fatal(err)
	}
	return root
}

func edit(t *testing.T, file, from, to string) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), from) {
		t.Fatalf("%s does not hold %q", file, from)
	}
	if err := os.WriteFile(file, []byte(strings.ReplaceAll(string(data), from, to)), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDevicesThatCannotBeUsed(t *testing.T) {
	const info = "/proc/driver/nvidia/gpus/0000:06:00.0/information"
	for _, c := range []struct {
		name, file, from, to string
		want                 string
	}{
		{"no node", device.NodeList, "/dev/nvidia0", "/dev/else", "/dev/nvidia0: file does not exist; as root, run: nvidia-modprobe -c 0"},
		{"node of an older driver", device.NodeList, "c 195:0 ", "c 240:0 ", "it is 240:0, and the driver has 195:0"},
		{"node of another GPU", device.NodeList, "c 195:0 ", "c 195:1 ", "it is 195:1, and the driver has 195:0"},
		{"fallen off the bus", info, "GPU-edfee158-11c1-52b8-0517-92f30e7fac88", "GPU-????????-????-????-????-????????????", "the driver cannot reach the GPU"},
		{"no minor", info, "Minor: \t 0", "Minor: \t ", "the driver cannot reach the GPU"},
		{"no major", "/proc/devices", "nvidia", "other", "nothing of NVIDIA's driver is there"},
		{"a driver without a version", "/proc/driver/nvidia/version", "570.124.06", "unknown", "no version"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := copyHost(t, "h200")
			edit(t, filepath.Join(root, c.file), c.from, c.to)
			h, err := device.OpenHost(root)
			if err != nil {
				t.Fatal(err)
			}
			devices, err := NewDriver(h).Devices(t.Context())
			if devices != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, %v", devices, err)
			}
		})
	}
}

func TestDriverNotLoaded(t *testing.T) {
	root := copyHost(t, "h200")
	if err := os.RemoveAll(filepath.Join(root, "proc/driver")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(root, "sys/bus/pci/devices/0000:06:00.0/driver")); err != nil {
		t.Fatal(err)
	}
	h, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	devices, err := NewDriver(h).Devices(t.Context())
	if devices != nil || err == nil || !strings.Contains(err.Error(), "0000:06:00.0: unavailable: no driver is bound to it") {
		t.Errorf("%v, %v", devices, err)
	}
}

func TestVersion(t *testing.T) {
	for text, want := range map[string]string{
		"NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\n":                              "550.54.15",
		"NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (builder@U22)  Wed Oct 1 2025\nGCC": "580.159.04",
		"NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  570.86.15  Release Build\n":                                   "570.86.15",
	} {
		if got, err := parseVersion(text); err != nil || got != want {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if v, err := parseVersion("GCC version: gcc version 12.3.0 (Ubuntu)\n"); !errors.Is(err, berth.ErrUnavailable) {
		t.Errorf("%q, %v", v, err)
	}
}

func FuzzProc(f *testing.F) {
	f.Add("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue\n195 nvidia\nconfig 1\nModel: x\n")
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = parseVersion(text)
		_, _ = ParseMajors(text)
		ParseInformation(text)
		for name := range ParseMIGCaps(text) {
			if !strings.HasPrefix(CapFile(name), capabilities+"/") || strings.Contains(name, "..") {
				t.Errorf("%q", name)
			}
		}
		KindOf(text)
		_, _ = Select(nil, text)
	})
}
