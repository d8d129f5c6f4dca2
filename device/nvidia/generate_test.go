package nvidia

import (
	"errors"
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

var hooks = Hooks{Path: "/opt/berth/berth-cdi-hook"}

// generate returns the spec of all devices of a host.
func generate(t *testing.T, h *device.Host) (*specs.Spec, error) {
	devices, err := NewDriver(h).Devices(t.Context())
	if err != nil {
		t.Log(err)
	}
	return Generator{Host: h, Hooks: hooks}.Spec(devices)
}

func names(s *specs.Spec) (all []string) {
	for _, d := range s.Devices {
		all = append(all, d.Name)
	}
	return all
}

func paths(e specs.ContainerEdits) (nodes []string) {
	for _, n := range e.DeviceNodes {
		nodes = append(nodes, n.Path)
	}
	return nodes
}

func find(t *testing.T, s *specs.Spec, name string) specs.ContainerEdits {
	i := slices.IndexFunc(s.Devices, func(d specs.Device) bool { return d.Name == name })
	if i < 0 {
		t.Fatalf("%q is not among %q", name, names(s))
	}
	return s.Devices[i].ContainerEdits
}

func TestSpecOne(t *testing.T) {
	s, err := generate(t, openHost(t, "h200"))
	if err != nil {
		t.Fatal(err)
	}
	if s.Version != "0.7.0" || s.Kind != "nvidia.com/gpu" {
		t.Errorf("version %s, kind %s", s.Version, s.Kind)
	}
	if diff := cmp.Diff([]string{"0", "GPU-edfee158-11c1-52b8-0517-92f30e7fac88", "all"}, names(s)); diff != "" {
		t.Error(diff)
	}
	mode := func(m os.FileMode) *os.FileMode { return &m }
	gid := func(n uint32) *uint32 { return &n }
	env := []string{"NVIDIA_CTK_DEBUG=false"}
	gpu := specs.ContainerEdits{
		DeviceNodes: []*specs.DeviceNode{
			{Path: "/dev/nvidia0", Major: 195, Permissions: "rwm", FileMode: mode(0o666)},
			{Path: "/dev/dri/card1", Major: 226, Minor: 1, Permissions: "rwm", FileMode: mode(0o660), GID: gid(44)},
			{Path: "/dev/dri/renderD128", Major: 226, Minor: 128, Permissions: "rwm", FileMode: mode(0o660), GID: gid(105)},
		},
		AdditionalGIDs: []uint32{44, 105},
		Hooks: []*specs.Hook{{
			HookName: "createContainer", Path: hooks.Path, Env: env, Args: []string{
				"berth-cdi-hook", "create-symlinks",
				"--link", "../card1::/dev/dri/by-path/pci-0000:06:00.0-card",
				"--link", "../renderD128::/dev/dri/by-path/pci-0000:06:00.0-render",
			},
		}},
	}
	for _, name := range names(s) {
		if diff := cmp.Diff(gpu, find(t, s, name)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}

	common := s.ContainerEdits
	if diff := cmp.Diff([]string{"NVIDIA_CTK_LIBCUDA_DIR=/usr/local/nvidia/lib64", "NVIDIA_VISIBLE_DEVICES=void"}, common.Env); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset"}, paths(common)); diff != "" {
		t.Error(diff)
	}
	const dir = "/usr/local/nvidia/lib64/"
	want := map[string]string{
		dir + "vdpau/libvdpau_nvidia.so.570.124.06": "", "/usr/local/nvidia/bin/nvidia-smi": "", "/usr/bin/nvidia-persistenced": "",
		"/lib/firmware/nvidia/570.124.06/gsp_ga10x.bin": "", "/lib/firmware/nvidia/570.124.06/gsp_tu10x.bin": "",
		"/etc/vulkan/icd.d/nvidia_icd.json": "", "/usr/share/glvnd/egl_vendor.d/10_nvidia.json": "",
	}
	for _, lib := range []string{
		"libcuda", "libnvidia-ml", "libnvidia-ptxjitcompiler", "libnvidia-nvvm", "libcudadebugger", "libnvidia-allocator",
		"libnvidia-opticalflow", "libGLX_nvidia", "libnvidia-cfg", "libnvidia-gpucomp", "libnvidia-pkcs11-openssl3",
	} {
		want[dir+lib+".so.570.124.06"] = ""
	}
	got := map[string]string{}
	for _, m := range common.Mounts {
		got[m.ContainerPath] = strings.TrimPrefix(m.HostPath, m.ContainerPath)
		if diff := cmp.Diff([]string{"ro", "nosuid", "nodev", "rbind", "rprivate"}, m.Options); diff != "" {
			t.Errorf("%s: %s", m.ContainerPath, diff)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	var commands [][]string
	for _, h := range common.Hooks {
		if h.HookName != "createContainer" || h.Path != hooks.Path || !slices.Equal(h.Env, env) {
			t.Errorf("%+v", h)
		}
		commands = append(commands, h.Args[1:])
	}
	if diff := cmp.Diff([][]string{
		{
			"create-symlinks",
			"--link", "libGLX_nvidia.so.570.124.06::" + dir + "libGLX_indirect.so.0",
			"--link", "libcuda.so.1::" + dir + "libcuda.so",
			"--link", "../libnvidia-allocator.so.1::" + dir + "gbm/nvidia-drm_gbm.so",
			"--link", "libnvidia-opticalflow.so.1::" + dir + "libnvidia-opticalflow.so",
		},
		{"enable-cuda-compat", "--host-driver-version=570.124.06"},
		{"update-ldcache", "--folder", "/usr/local/nvidia/lib64", "--folder", "/usr/local/nvidia/lib64/vdpau"},
		{"disable-device-node-modification"},
		{"update-application-profile"},
	}, commands); diff != "" {
		t.Error(diff)
	}
}

func TestSpecMIG(t *testing.T) {
	s, err := generate(t, openHost(t, "a100x8-mig"))
	if err != nil {
		t.Fatal(err)
	}
	all := names(s)
	// The GPUs 0 and 1 are of slices: the wholes are in no spec, not even in "all".
	if slices.Contains(all, "0") || slices.Contains(all, "1") || !slices.Contains(all, "2") || !slices.Contains(all, "0:6") {
		t.Errorf("%q", all)
	}
	// Of gpu1/gi2/ci1; what is before it in mig-minors is two lines, and 135 of gpu0.
	want := []string{"/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap156", "/dev/nvidia-caps/nvidia-cap158"}
	for _, name := range []string{"1:2", "MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a01-2-1"} {
		if diff := cmp.Diff(want, paths(find(t, s, name))); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	nodes := paths(find(t, s, "all"))
	if len(nodes) != 8+7*2+2+3 {
		t.Errorf("all: %q", nodes)
	}
	for _, m := range s.ContainerEdits.Mounts {
		if strings.Contains(m.ContainerPath, "i386") {
			t.Errorf("a library for 32 bits: %s", m.ContainerPath)
		}
	}
}

func TestSpecMinorDiffers(t *testing.T) {
	s, err := generate(t, openHost(t, "minor-differs"))
	if err != nil {
		t.Fatal(err)
	}
	edits := find(t, s, "0")
	if diff := cmp.Diff([]string{"/dev/nvidia2"}, paths(edits)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]uint32{44}, edits.AdditionalGIDs); diff != "" {
		t.Error(diff)
	}
}

func TestSpecErrors(t *testing.T) {
	for _, c := range []struct {
		name, host, file, from, to string
		want                       string
	}{
		{"no driver", "none", "", "", "", "NVIDIA driver: unavailable: it is not loaded"},
		{"driver just upgraded", "upgraded", "", "", "", "550.54.15 is loaded and its libraries are not installed; those of 550.90.07 are: reboot"},
		{"no control node", "h200", device.NodeList, "/dev/nvidiactl", "/dev/else", "/dev/nvidiactl: file does not exist"},
		{"no memory node", "h200", device.NodeList, "/dev/nvidia-uvm\n", "/dev/else\n", "/dev/nvidia-uvm: file does not exist"},
		{"no GPU node", "h200", device.NodeList, "/dev/nvidia0", "/dev/else", "this host has no NVIDIA GPU that could be in it"},
		{"no node of a slice", "a100x8-mig", device.NodeList, "/dev/nvidia-caps/nvidia-cap158\n", "/dev/else\n", "MIG slice 2: unavailable: /dev/nvidia-caps/nvidia-cap158: file does not exist"},
		{"no number of a slice", "a100x8-mig", "/proc/driver/nvidia-caps/mig-minors", "gpu1/gi2/ci1/access 158\n", "", "MIG access gpu1/gi2/ci1/access: not found"},
	} {
		t.Run(c.name, func(t *testing.T) {
			root := copyHost(t, c.host)
			if c.file != "" {
				edit(t, filepath.Join(root, c.file), c.from, c.to)
			}
			h, err := device.OpenHost(root)
			if err != nil {
				t.Fatal(err)
			}
			s, err := generate(t, h)
			if s != nil || err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, %v", s, err)
			}
		})
	}
}

// What is generated can be written, and then does not differ from its host.
func TestSpecIsFresh(t *testing.T) {
	for _, name := range []string{"h200", "a100x8-mig", "minor-differs"} {
		root := copyHost(t, name)
		if err := os.MkdirAll(filepath.Join(root, "opt/berth"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, hooks.Path), nil, 0o755); err != nil {
			t.Fatal(err)
		}
		h, err := device.OpenHost(root)
		if err != nil {
			t.Fatal(err)
		}
		s, err := generate(t, h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cdi.Marshal(s); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, d := range s.Devices {
			edits := cdi.Append(nil, &s.ContainerEdits, &d.ContainerEdits)
			if causes, err := cdi.Differences(h.CDI(), edits); causes != nil || err != nil {
				t.Errorf("%s: %s: %q, %v", name, d.Name, causes, err)
			}
		}
	}
}

// A device whose node has gone since it was found is an error, not a device without a node.
func TestSpecNodeGone(t *testing.T) {
	h := openHost(t, "h200")
	gone := device.Device{Vendor: Vendor, UUID: "GPU-x", PCI: "0000:07:00.0", Minor: 7}
	s, err := Generator{Host: h, Hooks: hooks}.Spec([]device.Device{gone})
	if s != nil || !errors.Is(err, berth.ErrUnavailable) || !strings.Contains(err.Error(), "/dev/nvidia7") {
		t.Errorf("%v, %v", s, err)
	}
}

// Without modeset and tools, which servers lack, CUDA works.
func TestSpecOptionalNodes(t *testing.T) {
	root := copyHost(t, "h200")
	edit(t, filepath.Join(root, device.NodeList), "/dev/nvidia-modeset", "/dev/else1")
	edit(t, filepath.Join(root, device.NodeList), "/dev/nvidia-uvm-tools", "/dev/else2")
	edit(t, filepath.Join(root, device.NodeList), "/dev/dri/card1", "/dev/else3")
	h, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	s, err := generate(t, h)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"/dev/nvidiactl", "/dev/nvidia-uvm"}, paths(s.ContainerEdits)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{"/dev/nvidia0", "/dev/dri/renderD128"}, paths(find(t, s, "0"))); diff != "" {
		t.Error(diff)
	}
}

// A driver in a root of its own is mounted from there, to where its files are in it.
func TestSpecFilesElsewhere(t *testing.T) {
	root := copyHost(t, "h200")
	if err := os.Remove(filepath.Join(root, device.NodeList)); err != nil {
		t.Fatal(err)
	}
	files, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	common, err := Generator{Host: openHost(t, "h200"), Files: files, Hooks: hooks}.Common()
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range common.Mounts {
		if m.HostPath != root+m.ContainerPath {
			t.Errorf("%s at %s", m.HostPath, m.ContainerPath)
		}
	}
}

func TestSpecial(t *testing.T) {
	root := copyHost(t, "h200")
	edit(t, filepath.Join(root, device.NodeList), "# recorded", "c 510:9 0666 0:0 /dev/nvidia-fs0\nc 10:1 0666 0:0 /dev/infiniband/rdma_cm\n"+
		"c 234:255 0666 0:0 /dev/nvidia-nvswitchctl\nc 234:0 0660 0:27 /dev/nvidia-nvswitch0\n# recorded")
	if err := os.WriteFile(filepath.Join(root, "etc/cufile.json"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	g := Generator{Host: h, Hooks: hooks}
	for _, c := range []struct {
		mode   string
		ids    []string
		nodes  []string
		mounts []string
		gids   []uint32
		fails  error
	}{
		{mode: "gds", nodes: []string{"/dev/nvidia-fs0"}, mounts: []string{"/etc/cufile.json"}},
		{mode: "mofed", nodes: []string{"/dev/infiniband/rdma_cm"}},
		{mode: "gdrcopy"},
		{mode: "nvswitch", nodes: []string{"/dev/nvidia-nvswitchctl", "/dev/nvidia-nvswitch0"}, gids: []uint32{27}},
		{mode: "imex", ids: []string{"channel0"}, nodes: []string{"/dev/nvidia-caps-imex-channels/channel0"}},
		{mode: "imex", ids: []string{"all"}, nodes: []string{"/dev/nvidia-caps-imex-channels/channel0"}},
		{mode: "imex", ids: []string{"7"}, fails: berth.ErrNotFound},
		{mode: "imex", ids: []string{"x"}, fails: berth.ErrInvalid},
		{mode: "mig-caps", ids: []string{"monitor", "config"}, nodes: []string{"/dev/nvidia-caps/nvidia-cap2", "/dev/nvidia-caps/nvidia-cap1"}},
		{mode: "mig-caps", ids: []string{"else"}, fails: berth.ErrInvalid},
		{mode: "else", fails: berth.ErrInvalid},
	} {
		edits, err := g.Special(c.mode, c.ids...)
		if !errors.Is(err, c.fails) || c.fails != nil && err == nil {
			t.Errorf("%s %q: %v", c.mode, c.ids, err)
		}
		if err != nil {
			continue
		}
		var mounts []string
		for _, m := range edits.Mounts {
			mounts = append(mounts, m.ContainerPath)
		}
		if diff := cmp.Diff(c.nodes, paths(*edits)) + cmp.Diff(c.mounts, mounts) + cmp.Diff(c.gids, edits.AdditionalGIDs); diff != "" {
			t.Errorf("%s %q: %s", c.mode, c.ids, diff)
		}
	}
}

func TestHooks(t *testing.T) {
	if h, err := (Hooks{Path: "berth-cdi-hook"}).New(hookLDCache, "/lib"); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("a relative path: %v, %v", h, err)
	}
	for _, c := range []struct {
		name  string
		hooks Hooks
		hook  string
		args  []string
		want  []string
	}{
		{"nothing to link", hooks, hookSymlinks, nil, nil},
		{"chmod is off", hooks, hookChmod, []string{"/dev/dri"}, nil},
		{"chmod", Hooks{Path: "/h", Enabled: []string{"chmod"}}, hookChmod, []string{"/a", "/b"}, []string{"h", "chmod", "--mode", "755", "--path", "/a", "--path", "/b"}},
		{"NVIDIA's command", Hooks{Path: "/usr/bin/nvidia-ctk"}, hookNodes, nil, []string{"nvidia-ctk", "hook", "disable-device-node-modification"}},
		{"disabled", Hooks{Path: "/h", Disabled: []string{"update-ldcache"}}, hookLDCache, []string{"/lib"}, nil},
		{"all disabled", Hooks{Path: "/h", Disabled: []string{"all"}}, hookProfile, nil, nil},
		{"all disabled but one", Hooks{Path: "/h", Disabled: []string{"all"}, Enabled: []string{"update-ldcache"}}, hookLDCache, []string{"/lib"}, []string{"h", "update-ldcache", "--folder", "/lib"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			hook, err := c.hooks.New(c.hook, c.args...)
			if err != nil {
				t.Fatal(err)
			}
			var args []string
			if hook != nil {
				args = hook.Args
			}
			if diff := cmp.Diff(c.want, args); diff != "" {
				t.Error(diff)
			}
		})
	}
}
