//go:build cgo

package nvidia

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxb200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxh200"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi"
	"github.com/NVIDIA/nvidia-container-toolkit/pkg/nvcdi/transform"
	"golang.org/x/sys/unix"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/device"
)

// differencesFile lists in what a spec of berth's differs from that of NVIDIA's own generator, and why.
const differencesFile = "nvcdi-differences.json"

// NVIDIA's own generator makes the same specs as berth's of the same hosts, but for what is listed with a reason. Nodes for
// graphics are not compared: it looks for them in this machine's /sys, whatever its roots are.
func TestSpecIsThatOfNVIDIA(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: NVIDIA's generator looks at device nodes, which are made here")
	}
	reasons := map[string]string{}
	data, err := os.ReadFile(differencesFile)
	if err == nil {
		err = json.Unmarshal(data, &reasons)
	}
	if err != nil {
		t.Fatal(err)
	}
	used := map[string]bool{}
	for name, s := range map[string]*server.Server{"dgxa100": dgxa100.New(), "dgxh100": dgxh100.New(), "dgxh200": dgxh200.New(), "dgxb200": dgxb200.New()} {
		t.Run(name, func(t *testing.T) {
			root, version := mockHost(t, s), s.DriverVersion
			theirs := ofNVIDIA(t, s, root)
			h, err := device.OpenHost(root)
			if err != nil {
				t.Fatal(err)
			}
			ours, err := generate(t, h)
			if err != nil {
				t.Fatal(err)
			}
			if len(theirs.Devices) != len(ours.Devices) || len(ours.Devices) != 17 {
				t.Errorf("%d devices of NVIDIA's, %d of berth's", len(theirs.Devices), len(ours.Devices))
			}
			plain := []string{root, "", version, "VERSION"}
			for i, d := range s.Devices {
				plain = append(plain, d.(*server.Device).UUID, fmt.Sprint("UUID", i))
			}
			a, b := linesOf(theirs, plain), linesOf(ours, plain)
			for _, line := range slices.Sorted(maps.Keys(union(a, b))) {
				side := "only berth: "
				if a[line] {
					side = "only NVIDIA: "
				}
				if a[line] == b[line] {
					continue
				}
				kind := side + ordinal.ReplaceAllString(line, "N") // the same of each device
				if _, ok := reasons[kind]; !ok {
					t.Errorf("%s%s", side, line)
				}
				used[kind] = true
			}
			if len(a) < 30 {
				t.Errorf("NVIDIA's spec has only %d lines: the test sees nothing", len(a))
			}
		})
	}
	for line := range reasons {
		if !used[line] {
			t.Errorf("%s lists what is no difference: %s", differencesFile, line)
		}
	}
}

var ordinal = regexp.MustCompile(`\b(UUID)?\d+\b`)

func union(a, b map[string]bool) map[string]bool {
	all := maps.Clone(a)
	maps.Copy(all, b)
	return all
}

// ofNVIDIA is the spec that NVIDIA's generator makes.
func ofNVIDIA(t *testing.T, s *server.Server, root string) *specs.Spec {
	t.Helper()
	lib, err := nvcdi.New(
		nvcdi.WithMode(nvcdi.ModeNvml), nvcdi.WithNvmlLib(s), nvcdi.WithDriverRoot(root), nvcdi.WithDevRoot(root),
		nvcdi.WithNVIDIACDIHookPath(hooks.Path), nvcdi.WithFeatureFlags(nvcdi.FeatureDisableNvsandboxUtils),
		nvcdi.WithMergedDeviceOptions(transform.WithName("all"), transform.WithSkipIfExists(true)),
		nvcdi.WithDeviceNamers(namer(t, nvcdi.DeviceNameStrategyIndex), namer(t, nvcdi.DeviceNameStrategyUUID)),
	)
	if err != nil {
		t.Fatal(err)
	}
	made, err := lib.GetSpec()
	if err != nil {
		t.Fatal(err)
	}
	return made.Raw()
}

func namer(t *testing.T, strategy string) nvcdi.DeviceNamer {
	t.Helper()
	n, err := nvcdi.NewDeviceNamer(strategy)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// mockHost makes the files and nodes of a mock host, and completes the library that tells of it.
func mockHost(t *testing.T, s *server.Server) (root string) {
	t.Helper()
	root = t.TempDir()
	put := func(name, text string) {
		file := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		if err == nil {
			err = os.WriteFile(file, []byte(text), 0o755)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	node := func(name string, major, minor uint32) {
		file := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(file), 0o755)
		if err == nil {
			err = unix.Mknod(file, unix.S_IFCHR|0o666, int(unix.Mkdev(major, minor)))
		}
		if err == nil {
			err = os.Chmod(file, 0o666) // whatever the umask
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put("proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  "+s.DriverVersion+"  Tue Mar  5 22:23:56 UTC 2024\n")
	put("proc/devices", "Character devices:\n195 nvidia\n195 nvidiactl\n195 nvidia-modeset\n508 nvidia-uvm\n")
	node("dev/nvidiactl", 195, 255)
	node("dev/nvidia-modeset", 195, 254)
	node("dev/nvidia-uvm", 508, 0)
	node("dev/nvidia-uvm-tools", 508, 1)
	for _, d := range s.Devices {
		d := d.(*server.Device)
		d.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 0, nvml.SUCCESS }
		d.IsMigDeviceHandleFunc = func() (bool, nvml.Return) { return false, nvml.SUCCESS }
		node(fmt.Sprintf("dev/nvidia%d", d.Minor), 195, uint32(d.Minor))
		put("proc/driver/nvidia/gpus/"+d.PciBusID+"/information", fmt.Sprintf("Model: \t\t A\nGPU UUID: \t %s\nBus Location: \t %s\nDevice Minor: \t %d\n", d.UUID, d.PciBusID, d.Minor))
		put("sys/bus/pci/devices/"+d.PciBusID+"/vendor", "0x10de\n")
		put("sys/bus/pci/devices/"+d.PciBusID+"/class", "0x030200\n")
	}
	const lib = "usr/lib/x86_64-linux-gnu/"
	for _, name := range []string{"libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler", "libnvidia-cfg", "libGLX_nvidia", "libEGL_nvidia", "libnvidia-nvvm"} {
		put(lib+name+".so."+s.DriverVersion, "")
	}
	put(lib+"vdpau/libvdpau_nvidia.so."+s.DriverVersion, "")
	for _, name := range []string{"usr/bin/nvidia-smi", "usr/bin/nvidia-persistenced", "usr/bin/nvidia-cuda-mps-control", "etc/vulkan/icd.d/nvidia_icd.json", "usr/share/glvnd/egl_vendor.d/10_nvidia.json"} {
		put(name, "")
	}
	put("lib/firmware/nvidia/"+s.DriverVersion+"/gsp_ga10x.bin", "")
	return root
}

// linesOf is a spec as a set of lines. plain are what differs between hosts, each with what stands for it.
func linesOf(s *specs.Spec, plain []string) map[string]bool {
	all, lines := map[string]bool{}, map[string]bool{}
	for _, d := range s.Devices {
		edits(all, "device "+d.Name, d.ContainerEdits)
	}
	edits(all, "common", s.ContainerEdits)
	replace := strings.NewReplacer(plain...)
	for line := range all {
		lines[replace.Replace(line)] = true
	}
	return lines
}

func edits(all map[string]bool, of string, e specs.ContainerEdits) {
	add := func(what string, args ...any) {
		all[fmt.Sprint(of, " ", what, " ", strings.TrimSuffix(fmt.Sprintln(args...), "\n"))] = true
	}
	for _, v := range e.Env {
		add("variable", v)
	}
	for _, n := range e.DeviceNodes {
		mode := os.FileMode(0)
		if n.FileMode != nil {
			mode = *n.FileMode
		}
		add("node", n.Path, n.Major, ":", n.Minor, "mode", mode.Perm(), n.Permissions)
	}
	for _, m := range e.Mounts {
		add("mount", m.HostPath, m.ContainerPath, strings.Join(slices.Sorted(slices.Values(m.Options)), ","))
	}
	for _, h := range e.Hooks {
		args := h.Args
		if len(args) > 1 && strings.HasPrefix(args[1], "create-symlinks") || len(args) > 1 && args[1] == "update-ldcache" {
			for i := 2; i+1 < len(args); i += 2 {
				add("hook", h.HookName, h.Path, args[1], args[i], args[i+1])
			}
			continue
		}
		add("hook", h.HookName, h.Path, strings.Join(args[1:], " "), strings.Join(h.Env, " "))
	}
	for _, gid := range e.AdditionalGIDs {
		add("group", gid)
	}
}
