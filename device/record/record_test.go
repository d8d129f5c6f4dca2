package record

import (
	"bytes"
	"debug/elf"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/intel"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/device/nvidia/nvml"
)

func open(t *testing.T, root string) *device.Host {
	t.Helper()
	h, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// answers are all that berth finds out of a host's GPUs.
type answers struct {
	Devices []device.Device
	Errors  []string
	Specs   []any
}

func ask(t *testing.T, h *device.Host) (a answers) {
	t.Helper()
	note := func(err error) {
		if err != nil {
			a.Errors = append(a.Errors, err.Error())
		}
	}
	n := nvidia.NewDriver(h)
	n.More = nvml.Asker{Host: h}.More
	for _, v := range []device.Vendor{n, amd.NewDriver(h), intel.NewDriver(h)} {
		devices, err := v.Devices(t.Context())
		a.Devices = append(a.Devices, devices...)
		note(err)
	}
	spec, err := nvidia.Generator{Host: h, Hooks: nvidia.Hooks{Path: "/hook"}}.Spec(a.Devices)
	note(err)
	a.Specs = append(a.Specs, spec)
	if gpus, err := amd.Find(h); err == nil {
		spec, err := amd.Generator{Host: h}.Spec(gpus)
		note(err)
		a.Specs = append(a.Specs, spec)
	}
	if gpus := intel.Find(h); len(gpus) > 0 {
		spec, err := intel.Generator{Host: h}.Spec(gpus)
		note(err)
		a.Specs = append(a.Specs, spec)
	}
	return a
}

// A recording of a recording gives the same answers as the recorded host does.
func TestRoundTrip(t *testing.T) {
	hosts, err := filepath.Glob("../*/testdata/*/device-nodes")
	if err != nil || len(hosts) < 8 {
		t.Fatal(hosts, err)
	}
	for _, nodes := range hosts {
		root := filepath.Dir(nodes)
		t.Run(filepath.Base(root), func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "new")
			h := open(t, root)
			facts, err := nvml.Asker{Host: h}.Facts(t.Context()) // those that were recorded, if any
			if err != nil {
				t.Fatal(err)
			}
			if err := Write(h, facts, dir); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(ask(t, open(t, root)), ask(t, open(t, dir))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// A host as the kernel shows it: directories of GPUs are links, libraries have names for the linker, and there are
// things that are nobody's business.
func TestRecord(t *testing.T) {
	root := t.TempDir()
	put := func(name, text string) {
		t.Helper()
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	link := func(target, name string) {
		t.Helper()
		file := filepath.Join(root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.Symlink(target, file)); err != nil {
			t.Fatal(err)
		}
	}
	const uuid = "GPU-edfee158-11c1-52b8-0517-92f30e7fac88"
	put("device-nodes", "c 195:0 0666 0:0 /dev/nvidia0\nc 195:255 0666 0:0 /dev/nvidiactl\nc 510:0 0666 0:0 /dev/nvidia-uvm\nc 8:0 0660 0:6 /dev/sda\n")
	put("proc/devices", "Character devices:\n195 nvidia\n510 nvidia-uvm\n")
	put("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.06  Wed\n")
	put("proc/driver/nvidia/gpus/0000:06:00.0/information", "Model: \t NVIDIA H200\nGPU UUID: \t "+uuid+"\nBus Location: \t 0000:06:00.0\nDevice Minor: \t 0\nSerial: \t SECRET\n")
	put("sys/devices/pci0000:00/0000:00:01.0/0000:06:00.0/class", "0x030200\n")
	put("sys/devices/pci0000:00/0000:00:01.0/0000:06:00.0/vendor", "0x10de\n")
	put("sys/devices/pci0000:00/0000:00:01.0/0000:06:00.0/numa_node", "1\n")
	put("sys/devices/pci0000:00/0000:00:01.0/0000:06:00.0/serial_number", "SECRET\n")
	put("sys/devices/pci0000:00/0000:00:02.0/class", "0x020000\n")
	link("../../../devices/pci0000:00/0000:00:01.0/0000:06:00.0", "sys/bus/pci/devices/0000:06:00.0")
	link("../../../devices/pci0000:00/0000:00:02.0", "sys/bus/pci/devices/0000:00:02.0")
	link("../../../../bus/pci/drivers/nvidia", "sys/devices/pci0000:00/0000:00:01.0/0000:06:00.0/driver")
	put("etc/ld.so.conf.d/x.conf", "/opt/SECRET/lib\n/opt/gpu/lib\n")
	put("etc/hostname", "SECRET\n")
	put("opt/SECRET/lib/libother.so.1", "SECRET")
	put("opt/gpu/lib/libcuda.so.570.124.06", string(stub("libcuda.so.1"))+"SECRET code")
	put("opt/gpu/lib/libnvidia-ml.so.570.124.06", string(stub("libnvidia-ml.so.1")))
	link("libcuda.so.570.124.06", "opt/gpu/lib/libcuda.so.1")
	link("libnvidia-ml.so.570.124.06", "opt/gpu/lib/libnvidia-ml.so.1")
	link("libnvidia-ml.so.1", "opt/gpu/lib/libnvidia-ml.so")
	put("usr/bin/nvidia-smi", "SECRET program")

	dir := t.TempDir()
	facts := &nvml.Facts{Driver: "570.124.06", CUDA: "12.8", GPUs: []nvml.GPU{{UUID: uuid, Memory: 141 << 30, Arch: "9.0"}}}
	if err := Write(open(t, root), facts, dir); err != nil {
		t.Fatal(err)
	}
	put("nvml.json", `{"cuda":"12.8","gpus":[{"uuid":"`+uuid+`","memory":151397597184,"arch":"9.0"}]}`)
	want, got := ask(t, open(t, root)), ask(t, open(t, dir))
	if diff := cmp.Diff(want, got); diff != "" || len(got.Devices) != 1 || got.Devices[0].Memory != 141<<30 || got.Devices[0].NUMA != 1 || len(got.Errors) != 0 {
		t.Error(diff, got.Errors)
	}
	if target, err := open(t, dir).Resolve("/sys/bus/pci/devices/0000:06:00.0"); err != nil || target != "/sys/devices/pci0000:00/0000:00:01.0/0000:06:00.0" {
		t.Errorf("%s, %v: what it is behind is not told", target, err)
	}
	private(t, dir)
	if err := Write(open(t, root), nil, dir); !errors.Is(err, berth.ErrConflict) {
		t.Error(err)
	}
}

// private looks for what must not be in a recording.
func private(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(name)
		if bytes.Contains(data, []byte("SECRET")) || strings.Contains(name, "SECRET") || bytes.Contains(data, []byte("/dev/sda")) || strings.Contains(name, "00:02.0") {
			t.Errorf("%s: %q", name, data)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestStub(t *testing.T) {
	for _, name := range []string{"libcuda.so.1", "x", "a-name-of-some-more-letters.so.12"} {
		f, err := elf.NewFile(bytes.NewReader(stub(name)))
		if err != nil {
			t.Fatal(err)
		}
		if names, err := f.DynString(elf.DT_SONAME); err != nil || len(names) != 1 || names[0] != name {
			t.Errorf("%q, %v", names, err)
		}
	}
}
