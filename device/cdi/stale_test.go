package cdi

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
)

// driverHost is a host with an NVIDIA driver that was just upgraded.
func driverHost(t *testing.T) Host {
	return testHost(t, map[string]string{
		"proc/devices":                  "Character devices:\n195 nvidia\n511 nvidia-uvm\n507 nvidia-caps\n\nBlock devices:\n  8 sd\n",
		"proc/driver/nvidia/version":    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build  (root@b)  Sat\nGCC version:  gcc version 12.3.0\n",
		"usr/lib/libcuda.so.580.159.04": "lib", "usr/lib/libcuda.so.550.54.15": "left over",
		"usr/lib/libnvidia-egl-wayland.so.1.1.13": "lib", "opt/hook": "program", "lib": "-> /usr/lib",
	}, nodes{
		"/dev/nvidia0":    {Type: "c", Major: 195, Minor: 0},
		"/dev/nvidia-uvm": {Type: "c", Major: 511, Minor: 0},
		"/dev/sda":        {Type: "b", Major: 8}, "/dev/dri": {},
	})
}

func TestDifferences(t *testing.T) {
	node := func(d specs.DeviceNode) Edits { return Edits{DeviceNodes: []*specs.DeviceNode{&d}} }
	mount := func(m specs.Mount) Edits { return Edits{Mounts: []*specs.Mount{&m}} }
	hook := func(path string, args ...string) Edits {
		return Edits{Hooks: []*specs.Hook{{HookName: "createContainer", Path: path, Args: args}}}
	}
	host := driverHost(t)
	if err := os.Chmod(filepath.Join(host.Root, "usr/lib/libcuda.so.550.54.15"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		e    Edits
		want []string
	}{
		{"fresh", node(specs.DeviceNode{Path: "/dev/nvidia0", Type: "c", Major: 195}), nil},
		{"numbers are left to the host", node(specs.DeviceNode{Path: "/dev/nvidia-uvm"}), nil},
		{"the major moved", node(specs.DeviceNode{Path: "/dev/nvidia-uvm", Major: 510}), []string{"/dev/nvidia-uvm is 510:0 there and 511:0 on this host"}},
		{"the minor moved", node(specs.DeviceNode{Path: "/dev/nvidia0", Type: "c", Major: 195, Minor: 1}), []string{"/dev/nvidia0 is 195:1 there and 195:0 on this host"}},
		{"hostPath", node(specs.DeviceNode{Path: "/dev/nvidia9", HostPath: "/dev/nvidia0", Major: 195}), nil},
		{"another type", node(specs.DeviceNode{Path: "/dev/sda", Type: "c"}), []string{"/dev/sda is of type c there and of type b on this host"}},
		{"no node", node(specs.DeviceNode{Path: "/dev/dri"}), []string{"/dev/dri is no device node on this host"}},
		{"gone", node(specs.DeviceNode{Path: "/dev/nvidia1", Major: 195, Minor: 1}), []string{"/dev/nvidia1 is not on this host"}},
		{"made on demand", node(specs.DeviceNode{Path: "/dev/nvidia-caps/nvidia-cap1", Type: "c", Major: 507, Minor: 1}), nil},
		{
			"made on demand, by a driver that is gone", node(specs.DeviceNode{Path: "/dev/nvidia-caps/nvidia-cap1", Type: "c", Major: 508, Minor: 1}),
			[]string{"/dev/nvidia-caps/nvidia-cap1 is 508:1 there, which no driver of this host has, and is not on this host"},
		},
		{"the major of another kind", node(specs.DeviceNode{Path: "/dev/x", Type: "b", Major: 195}), []string{"/dev/x is 195:0 there, which no driver of this host has, and is not on this host"}},
		{"library", mount(specs.Mount{HostPath: "/lib/libcuda.so.580.159.04", ContainerPath: "/x"}), nil},
		{"library with a version of its own", mount(specs.Mount{HostPath: "/usr/lib/libnvidia-egl-wayland.so.1.1.13", ContainerPath: "/x"}), nil},
		{"a library is gone", mount(specs.Mount{HostPath: "/usr/lib/libnvidia-ml.so.580.159.04", ContainerPath: "/x"}), []string{"/usr/lib/libnvidia-ml.so.580.159.04, which it mounts, is not on this host"}},
		{"an old library was left", mount(specs.Mount{HostPath: "/usr/lib/libcuda.so.550.54.15", ContainerPath: "/x"}), []string{"it is for the NVIDIA driver 550.54.15 (/usr/lib/libcuda.so.550.54.15), and 580.159.04 runs"}},
		{"no bind mount", mount(specs.Mount{HostPath: "tmpfs", ContainerPath: "/x", Type: "tmpfs"}), nil},
		{"hook", hook("/opt/hook", "hook", "enable-cuda-compat", "--host-driver-version=580.159.04"), nil},
		{"a hook is gone", hook("/usr/bin/nvidia-cdi-hook"), []string{"its hook /usr/bin/nvidia-cdi-hook is not on this host"}},
		{"a hook is no program", hook("/usr/lib/libcuda.so.550.54.15"), []string{"its hook /usr/lib/libcuda.so.550.54.15 cannot be executed"}},
		{"a hook for another driver", hook("/opt/hook", "hook", "enable-cuda-compat", "--host-driver-version", "550.54.15"), []string{"it is for the NVIDIA driver 550.54.15 (hook --host-driver-version), and 580.159.04 runs"}},
		{"a hook by a relative path", hook("hook"), []string{`its createContainer hook "hook" is not an absolute path`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Differences(host, &c.e)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestCheck(t *testing.T) {
	host := driverHost(t)
	doc := func(kind string, nodes ...*specs.DeviceNode) *specs.Spec {
		s := &specs.Spec{Kind: kind}
		for _, n := range nodes {
			s.Devices = append(s.Devices, specs.Device{Name: filepath.Base(n.Path), ContainerEdits: Edits{DeviceNodes: []*specs.DeviceNode{n}}})
		}
		return s
	}
	uvm := &specs.DeviceNode{Path: "/dev/nvidia-uvm", Major: 510}
	if _, err := Write(host, "/etc/cdi", "own", doc("acme.com/gpu", uvm, &specs.DeviceNode{Path: "/dev/nvidia0"})); err != nil {
		t.Fatal(err)
	}
	d := doc("nvidia.com/gpu", uvm)
	d.Version = "0.3.0"
	put(t, filepath.Join(host.Root, "etc/cdi/nvidia.yaml"), asJSON(t, d))

	c := NewCache(host)
	if err := c.Check("acme.com/gpu=nvidia0"); err != nil {
		t.Errorf("a device that nothing is wrong with: %v", err)
	}
	const what = " is stale: /dev/nvidia-uvm is 510:0 there and 511:0 on this host; write it anew: "
	for name, want := range map[string]string{
		"acme.com/gpu=nvidia-uvm":   "CDI spec /etc/cdi/own.yaml" + what + "berth cdi generate --vendor acme --output /etc/cdi/own.yaml",
		"nvidia.com/gpu=nvidia-uvm": "CDI spec /etc/cdi/nvidia.yaml" + what + "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml",
	} {
		err := c.Check("acme.com/gpu=nvidia0", name)
		var stale *StaleError
		if !errors.As(err, &stale) || !errors.Is(err, berth.ErrConflict) || err.Error() != want || stale.Own != (stale.File == "/etc/cdi/own.yaml") {
			t.Errorf("%s: %v, want %s", name, err, want)
		}
	}
	if err := c.Check("acme.com/gpu=9"); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("unknown: %v", err)
	}
}

func TestTranslate(t *testing.T) {
	host := Host{Node: nodes{"/dev/dri/renderD128": {Type: "c", Major: 226, Minor: 128, Mode: 0o660, GID: 44}, "/run/pipe": {Type: "p"}}.find}
	mode := os.FileMode(0o660)
	gid, other := uint32(44), uint32(45)
	e := &Edits{
		Env: []string{"A=b"},
		DeviceNodes: []*specs.DeviceNode{
			{Path: "/dev/dri/renderD128", Permissions: "rw"},
			{Path: "/dev/dri/renderD128", Type: "c", Major: 226, Minor: 128, FileMode: &mode, GID: &gid},
			{Path: "/dev/gpu", HostPath: "/dev/dri/renderD128"},
		},
		Mounts:         []*specs.Mount{{HostPath: "/a", ContainerPath: "/b", Options: []string{"ro", "nosuid", "nodev", "rbind", "rprivate"}}},
		AdditionalGIDs: []uint32{44, 0, 44},
	}
	got, err := Translate(e, host)
	if err != nil {
		t.Fatal(err)
	}
	want := &Translation{
		Devices: []TranslatedDevice{{"/dev/dri/renderD128", "/dev/dri/renderD128", "rwm"}, {"/dev/dri/renderD128", "/dev/gpu", "rwm"}},
		Mounts:  []TranslatedMount{{"/a", "/b", true, "rprivate"}},
		Env:     []string{"A=b"},
		GIDs:    []uint32{44},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, c := range []struct {
		e    Edits
		want string
	}{
		{Edits{Hooks: []*specs.Hook{{HookName: "createContainer", Path: "/h", Args: []string{"h", "do"}}}}, "the createContainer hook /h do"},
		{Edits{NetDevices: []*specs.LinuxNetDevice{{HostInterfaceName: "e", Name: "f"}}}, "the network device e"},
		{Edits{IntelRdt: &specs.IntelRdt{}}, "intelRdt"},
		{Edits{DeviceNodes: []*specs.DeviceNode{{Path: "/dev/dri/renderD128", Major: 225}}}, "the device node /dev/dri/renderD128: it is 226:128, not 225:0"},
		{Edits{DeviceNodes: []*specs.DeviceNode{{Path: "/dev/dri/renderD128", GID: &other}}}, "the device node /dev/dri/renderD128: its group is 44, not 45"},
		{Edits{DeviceNodes: []*specs.DeviceNode{{Path: "/dev/gone"}}}, "the device node /dev/gone: it is not on this host: lstat /dev/gone: file does not exist"},
		{Edits{DeviceNodes: []*specs.DeviceNode{{Path: "/run/pipe"}}}, "the device node /run/pipe: it is neither a character nor a block device"},
		{Edits{Mounts: []*specs.Mount{{HostPath: "tmpfs", ContainerPath: "/t", Type: "tmpfs"}}}, `the mount of type "tmpfs" on /t`},
		{Edits{Mounts: []*specs.Mount{{HostPath: "/a", ContainerPath: "/t", Options: []string{"noexec"}}}}, `the option "noexec" of the mount on /t`},
	} {
		want := "unsupported without CDI: " + c.want + "; use an engine that injects CDI devices"
		if _, err := Translate(&c.e, host); !errors.Is(err, berth.ErrUnsupported) || err.Error() != want {
			t.Errorf("%v\nwant %s", err, want)
		}
	}
}
