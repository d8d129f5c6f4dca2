package nvidia

import (
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
)

func devNull(names ...string) (mounts []oci.Mount) {
	for _, n := range names {
		mounts = append(mounts, oci.Mount{Source: "/dev/null", Destination: MountRoot + "/" + n})
	}
	return mounts
}

// Who names devices where several do, and what is said of the others.
func TestVisibleDevices(t *testing.T) {
	accepting := DefaultConfig()
	accepting.AcceptMounts = true
	refusing := DefaultConfig()
	refusing.AcceptEnvUnprivileged = false
	swarm := DefaultConfig()
	swarm.SwarmResource = "DOCKER_RESOURCE_GPU, OTHER"

	env := map[string]string{"NVIDIA_VISIBLE_DEVICES": "0,1"}
	for _, c := range []struct {
		name string
		cfg  Config
		c    Container
		want Visible
	}{
		{"nothing", DefaultConfig(), Container{}, Visible{}},
		{"environment", DefaultConfig(), Container{Env: env}, Visible{IDs: []string{"0", "1"}, From: "NVIDIA_VISIBLE_DEVICES"}},
		{
			"annotations first", accepting,
			Container{Env: env, Mounts: devNull("2"), Annotations: map[string]string{"cdi.k8s.io/b": "v/c=2", "cdi.k8s.io/a": "v/c=1,v/c=3"}},
			Visible{IDs: []string{"v/c=1", "v/c=3", "v/c=2"}, From: "annotations"},
		},
		{"mounts then", accepting, Container{Env: env, Mounts: devNull("2", "cdi/v.com/c/3", "cdi/v.com/c=4", "cdi/broken", "imex/0")}, Visible{IDs: []string{"2", "v.com/c=3", "v.com/c=4"}, From: "mounts"}},
		{
			"mounts that do not count", DefaultConfig(),
			Container{Env: env, Mounts: devNull("2")},
			Visible{IDs: []string{"0", "1"}, From: "NVIDIA_VISIBLE_DEVICES", Ignored: "mounts below " + MountRoot + ": accept-nvidia-visible-devices-as-volume-mounts is false"},
		},
		{"an environment that does not count", refusing, Container{Env: env}, Visible{Ignored: "NVIDIA_VISIBLE_DEVICES: " + notAccepted}},
		{"an environment that counts", refusing, Container{Env: env, Privileged: true}, Visible{IDs: []string{"0", "1"}, From: "NVIDIA_VISIBLE_DEVICES"}},
		{"void does not count as ignored", refusing, Container{Env: map[string]string{"NVIDIA_VISIBLE_DEVICES": "void"}}, Visible{}},
		{"legacy image", DefaultConfig(), Container{Env: map[string]string{"CUDA_VERSION": "9.0"}}, Visible{IDs: []string{"all"}, From: "legacy image"}},
		{
			"all swarm variables that are set", swarm,
			Container{Env: map[string]string{"NVIDIA_VISIBLE_DEVICES": "all", "OTHER": "7", "DOCKER_RESOURCE_GPU": "GPU-1,7"}},
			Visible{IDs: []string{"GPU-1", "7"}, From: "DOCKER_RESOURCE_GPU,OTHER"},
		},
		{"an empty swarm variable is none", swarm, Container{Env: map[string]string{"NVIDIA_VISIBLE_DEVICES": "all", "OTHER": ""}}, Visible{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, c.cfg.VisibleDevices(c.c)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestRequest(t *testing.T) {
	env := map[string]string{
		"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_MIG_CONFIG_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "utility,compute",
		"NVIDIA_REQUIRE_CUDA": "cuda>=12", "NVIDIA_REQUIRE_A": "arch>=8", "NVIDIA_REQUIRE_JETPACK": "csv-mounts=all", "NVIDIA_IMEX_CHANNELS": "0",
	}
	r, err := DefaultConfig().Request(Container{Env: env, Privileged: true})
	want := &Request{
		Devices:   Visible{IDs: []string{"all"}, From: "NVIDIA_VISIBLE_DEVICES"},
		MIGConfig: "all", IMEXChannels: []string{"0"}, Capabilities: Capabilities{"compute", "utility"},
		Requirements: []string{"arch>=8", "cuda>=12"},
	}
	if diff := cmp.Diff(want, r); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if r, err := DefaultConfig().Request(Container{Env: env}); !errors.Is(err, berth.ErrDenied) {
		t.Errorf("MIG of an unprivileged container: %v, %v", r, err)
	}
	cfg := DefaultConfig()
	cfg.DisableRequire = true
	if r, err := cfg.Request(Container{Env: map[string]string{"NVIDIA_VISIBLE_DEVICES": "0", "NVIDIA_REQUIRE_CUDA": "cuda>=99"}}); err != nil || r.Requirements != nil {
		t.Errorf("disable-require: %v, %v", r, err)
	}
	env = map[string]string{"NVIDIA_VISIBLE_DEVICES": "0", "NVIDIA_DRIVER_CAPABILITIES": "compute,flying"}
	if r, err := DefaultConfig().Request(Container{Env: env}); !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "compute,flying") {
		t.Errorf("an unknown capability: %v, %v", r, err)
	}
}

func TestParseBundle(t *testing.T) {
	c, err := ParseBundle([]byte(`{"ociVersion":"1.2.0","process":{"env":["A=b=c","A=d"],"capabilities":{"bounding":["CAP_SYS_ADMIN"]}},
		"mounts":[{"source":"/dev/null","destination":"/x"}],"annotations":{"k":"v"}}`))
	want := Container{
		Env: map[string]string{"A": "d"}, Mounts: []oci.Mount{{Source: "/dev/null", Destination: "/x"}},
		Annotations: map[string]string{"k": "v"}, Privileged: true,
	}
	if diff := cmp.Diff(want, c); diff != "" || err != nil {
		t.Error(diff, err)
	}
	for name, text := range map[string]string{
		"no JSON":            `{`,
		"no version":         `{"process":{}}`,
		"no process":         `{"ociVersion":"1.0.0"}`,
		"environment":        `{"ociVersion":"1.0.0","process":{"env":["A"]}}`,
		"capabilities":       `{"ociVersion":"1.0.0","process":{"capabilities":["CAP_SYS_ADMIN"]}}`,
		"older capabilities": `{"ociVersion":"1.0.0-rc4","process":{"capabilities":{"bounding":[]}}}`,
	} {
		if c, err := ParseBundle([]byte(text)); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%s: %v, %v", name, c, err)
		}
	}
}

func TestPrivileged(t *testing.T) {
	for version, want := range map[string]bool{
		"1.0.0-rc1": true, "1.0.0-rc4": true, "1.0.0-rc4-dev": true, "1.0.0-rc2.1+build": true,
		"1.0.0-beta": false, "1.0.0-rc5": false, "1.0.0-rc5-dev": false, "1.0.0": false, "1.1.0-rc2": false,
		"v1.0.0-rc2": false, "1.0.0-rc2..1": false, "1.0.0-rc2.01": false, "1.0.0-rc2+": false, // not semantic versions
	} {
		privileged, err := Privileged(version, []byte(`["CAP_SYS_ADMIN"]`))
		if privileged != want || (err == nil) != want {
			t.Errorf("%s: %v, %v", version, privileged, err)
		}
	}
}

func TestJIT(t *testing.T) {
	c := Container{Env: map[string]string{"NVIDIA_GDS": "enabled", "NVIDIA_MOFED": "true", "NVIDIA_NVSWITCH": "enabled", "NVIDIA_IMEX_CHANNELS": "0,1,0"}}
	cfg := DefaultConfig()
	names, err := cfg.JIT(c, Qualify([]string{"0", "1", "0"}, JITKind))
	want := []string{JITKind + "=0", JITKind + "=1", "mode=gds", "mode=nvswitch", "mode=imex,id=1", "mode=imex,id=0"}
	if diff := cmp.Diff(want, names); diff != "" || err != nil {
		t.Error(diff, err)
	}
	modes := ByMode(names)
	if diff := cmp.Diff(Modes{
		Order: []string{"auto", "gds", "nvswitch", "imex"},
		IDs:   map[string][]string{"auto": {"0", "1"}, "imex": {"1", "0"}},
	}, modes); diff != "" {
		t.Error(diff)
	}
	if names, err := cfg.JIT(c, []string{"nvidia.com/gpu=0"}); names != nil || err != nil {
		t.Errorf("nothing to generate: %v, %v", names, err)
	}
	if names, err := cfg.JIT(c, []string{"nvidia.com/gpu=0", JITKind + "=1"}); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("mixed: %v, %v", names, err)
	}
}

func TestJITMIGControl(t *testing.T) {
	for _, c := range []struct {
		name       string
		value      string
		privileged bool
		devices    []string
		want       error
	}{
		{"all", "ALL", true, []string{"all"}, nil},
		{"a GPU", "all", true, []string{"0"}, nil},
		{"a slice", "all", true, []string{"0:1"}, berth.ErrInvalid},
		{"a slice by UUID", "all", true, []string{"1", "MIG-b1028956-cfa2-0990-bf4a-5da9abb51763"}, berth.ErrInvalid},
		{"a slice, and all", "all", true, []string{"0:1", "all"}, nil},
		{"single", "0", true, []string{"all"}, berth.ErrInvalid},
		{"not privileged", "all", false, []string{"all"}, berth.ErrDenied},
	} {
		t.Run(c.name, func(t *testing.T) {
			names, err := DefaultConfig().JIT(Container{Privileged: c.privileged, Env: map[string]string{"NVIDIA_MIG_MONITOR_DEVICES": c.value}}, Qualify(c.devices, JITKind))
			var want []string
			if c.want == nil {
				want = append(Qualify(c.devices, JITKind), "mode=mig-caps,id=monitor")
			}
			if diff := cmp.Diff(want, names); diff != "" || !errors.Is(err, c.want) {
				t.Error(diff, err)
			}
		})
	}
}

func TestSelectMIGControl(t *testing.T) {
	all, single := Selection{All: true, GPUs: []int{0, 1}, Slices: [][2]int{{0, 0}}}, Selection{GPUs: []int{0}, Slices: [][2]int{{0, 0}}}
	for _, c := range []struct {
		s     Selection
		value string
		want  []int
		fails bool
	}{
		{all, "ALL", []int{0, 1}, false},
		{all, ",", nil, false},
		{all, "0", nil, true},
		{single, "all", nil, true},
		{Selection{GPUs: []int{1}}, "all", []int{1}, false},
	} {
		got, err := SelectMIGControl(c.s, "NVIDIA_MIG_CONFIG_DEVICES", c.value)
		if diff := cmp.Diff(c.want, got); diff != "" || errors.Is(err, berth.ErrInvalid) != c.fails {
			t.Errorf("%q of %+v: %s %v", c.value, c.s, diff, err)
		}
	}
}

func FuzzParseBundle(f *testing.F) {
	f.Add([]byte(`{"ociVersion":"1.0.0","process":{"env":["NVIDIA_VISIBLE_DEVICES=all"],"capabilities":{"bounding":["CAP_SYS_ADMIN"]}}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseBundle(data)
		if err != nil {
			return
		}
		if r, err := DefaultConfig().Request(c); err == nil && r != nil && len(r.Devices.IDs) == 0 {
			t.Errorf("a request of no devices: %+v", r)
		}
	})
}
