package inject

import (
	"cmp"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/intel"
	"github.com/berth-project/berth/device/nvidia"
)

// open finds the GPUs of a recorded host: VENDOR/NAME.
func open(t *testing.T, name string) Host {
	t.Helper()
	root := name
	if vendor, rest, ok := strings.Cut(name, "/"); ok && vendor != "" {
		root = filepath.Join("..", vendor, "testdata", rest)
	}
	h, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	host := Host{Host: h, Hooks: nvidia.Hooks{Path: "/opt/berth-cdi-hook"}, Config: nvidia.DefaultConfig()}
	for _, v := range []device.Vendor{nvidia.NewDriver(h), amd.NewDriver(h), intel.NewDriver(h)} {
		devices, _ := v.Devices(t.Context()) // what cannot be used is not of interest here
		host.Devices = append(host.Devices, devices...)
	}
	return host
}

func image(t *testing.T, env ...string) Container {
	t.Helper()
	c, err := Image(env, false)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// units are the devices that a decision's edits are for, and nodes their nodes that are not common.
func units(d *Decision) (uuids, nodes []string) {
	for _, e := range d.Edits {
		if e.Device == "" {
			continue
		}
		uuids = append(uuids, e.Device)
		for _, n := range e.DeviceNodes {
			if !strings.Contains(n.Path, "/dri/") && n.Path != "/dev/kfd" || strings.Contains(n.Path, "render") {
				nodes = append(nodes, n.Path)
			}
		}
	}
	return uuids, nodes
}

// The option that bounds NVIDIA's variables bounds AMD's too.
func TestDecideUntrustedImage(t *testing.T) {
	h := open(t, "amd/mi300x-cpx")
	h.Config.AcceptEnvUnprivileged = false
	c := image(t, "AMD_VISIBLE_DEVICES=all")
	if d := h.Decide(c); d.Strategy != None || len(d.Edits) > 0 || len(d.Errors) != 1 || !strings.Contains(d.Errors[0], "not accepted") {
		t.Errorf("unprivileged: %+v; want nothing, and why", d)
	}
	c.Privileged = true
	if d := h.Decide(c); d.Strategy != Generated || len(d.Edits) == 0 {
		t.Errorf("privileged: %+v; want the GPUs", d)
	}
}

func TestDecide(t *testing.T) {
	const a100 = "GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a0"
	for name, c := range map[string]struct {
		host     string
		env      []string
		devices  []string
		vendor   string
		strategy string
		nodes    []string
		kind     error
		errors   []string // parts of them
	}{
		"nothing":  {host: "nvidia/h200", env: []string{"A=1"}, strategy: None},
		"void":     {host: "nvidia/h200", env: []string{"NVIDIA_VISIBLE_DEVICES=void"}, strategy: None},
		"all":      {host: "nvidia/h200", env: []string{"NVIDIA_VISIBLE_DEVICES=all"}, devices: []string{"all"}, vendor: "nvidia", strategy: Generated, nodes: []string{"/dev/nvidia0", "/dev/dri/renderD128"}},
		"none":     {host: "nvidia/h200", env: []string{"NVIDIA_VISIBLE_DEVICES=none"}, devices: []string{""}, vendor: "nvidia", strategy: Generated},
		"minors":   {host: "nvidia/minor-differs", env: []string{"NVIDIA_VISIBLE_DEVICES=0,3,0"}, devices: []string{"3", "0"}, vendor: "nvidia", strategy: Generated, nodes: []string{"/dev/nvidia1", "/dev/nvidia2"}},
		"UUID":     {host: "nvidia/a100x8-mig", env: []string{"NVIDIA_VISIBLE_DEVICES=" + a100 + "3,3"}, devices: []string{a100 + "3", "3"}, vendor: "nvidia", strategy: Generated, nodes: []string{"/dev/nvidia3"}},
		"slice":    {host: "nvidia/a100x8-mig", env: []string{"NVIDIA_VISIBLE_DEVICES=1:2"}, devices: []string{"1:2"}, vendor: "nvidia", strategy: Generated, nodes: []string{"/dev/nvidia1", "/dev/nvidia-caps/nvidia-cap156", "/dev/nvidia-caps/nvidia-cap158"}},
		"divided":  {host: "nvidia/a100x8-mig", env: []string{"NVIDIA_VISIBLE_DEVICES=1"}, devices: []string{"1"}, vendor: "nvidia", strategy: Generated, kind: berth.ErrInvalid, errors: []string{"divided into MIG slices; name one of them, as in 1:0"}},
		"unknown":  {host: "nvidia/h200", env: []string{"NVIDIA_VISIBLE_DEVICES=0,1,nonsense"}, devices: []string{"0", "1", "nonsense"}, vendor: "nvidia", strategy: Generated, kind: berth.ErrNotFound, errors: []string{`"1"`, `"nonsense"`}},
		"upgraded": {host: "nvidia/upgraded", env: []string{"NVIDIA_VISIBLE_DEVICES=all"}, devices: []string{"all"}, vendor: "nvidia", strategy: Generated, kind: berth.ErrUnavailable, errors: []string{"those of 550.90.07 are"}},
		"no driver": {
			host: "nvidia/none", env: []string{"NVIDIA_VISIBLE_DEVICES=all"}, devices: []string{"all"}, vendor: "nvidia", strategy: Generated, kind: berth.ErrUnavailable, errors: []string{"not loaded"},
		},
		"capability": {
			host: "nvidia/h200", env: []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=fly"}, devices: []string{"all"}, vendor: "nvidia", strategy: Generated, kind: berth.ErrInvalid, errors: []string{"fly"},
		},
		"MIG config": {
			host: "nvidia/a100x8-mig", env: []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_MIG_CONFIG_DEVICES=all"}, devices: []string{"all"}, vendor: "nvidia", strategy: Generated, kind: berth.ErrDenied, errors: []string{"only a privileged container"},
		},
		"AMD":         {host: "amd/mi300x-cpx", env: []string{"AMD_VISIBLE_DEVICES=8,0-1,1"}, devices: []string{"8", "0-1", "1"}, vendor: "amd", strategy: Generated, nodes: []string{"/dev/dri/renderD128", "/dev/dri/renderD129", "/dev/dri/renderD135"}},
		"AMD void":    {host: "amd/mi300x-cpx", env: []string{"AMD_VISIBLE_DEVICES=void"}, strategy: None},
		"AMD unknown": {host: "amd/mi300x-cpx", env: []string{"AMD_VISIBLE_DEVICES=0,99"}, devices: []string{"0", "99"}, vendor: "amd", strategy: Generated, kind: berth.ErrNotFound, errors: []string{`AMD GPU "99"`}},
		"AMD absent":  {host: "nvidia/none", env: []string{"AMD_VISIBLE_DEVICES=0"}, devices: []string{"0"}, vendor: "amd", strategy: Generated, kind: berth.ErrNotFound, errors: []string{"AMD's driver"}},
		// An image that says all for both vendors works on a host of one.
		"both": {
			host: "intel/amd-and-intel", env: []string{"NVIDIA_VISIBLE_DEVICES=all", "AMD_VISIBLE_DEVICES=all"}, devices: []string{"all"}, vendor: "amd", strategy: Generated, nodes: []string{"/dev/dri/renderD129"}, errors: []string{"not loaded"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := open(t, c.host).Decide(image(t, c.env...))
			_, nodes := units(d)
			if !slices.Equal(d.Devices, c.devices) || d.Vendor != c.vendor || d.Strategy != c.strategy || !slices.Equal(nodes, c.nodes) {
				t.Errorf("devices %q, vendor %q, strategy %q, nodes %q, errors %q", d.Devices, d.Vendor, d.Strategy, nodes, d.Errors)
			}
			if !errors.Is(d.Err(), c.kind) || c.kind == nil && d.Err() != nil {
				t.Error(d.Err())
			}
			if d.Err() != nil && len(d.Edits) > 0 {
				t.Errorf("%d edits of a container that must not start", len(d.Edits))
			}
			if len(d.Errors) != len(c.errors) {
				t.Errorf("errors %q", d.Errors)
			}
			for i, part := range c.errors {
				if i < len(d.Errors) && !strings.Contains(d.Errors[i], part) {
					t.Errorf("errors %q", d.Errors)
				}
			}
		})
	}
}

// What is decided of a container's words is what NVIDIA's toolkit decides, whatever the host.
func TestDecideVectors(t *testing.T) {
	data, err := os.ReadFile("../testdata/vectors/nct.config.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Cases []struct {
			Name  string
			Input struct {
				Env        map[string]string
				Privileged bool
				Supported  string `json:"supported_driver_capabilities"`
				Swarm      string `json:"swarm_resource"`
			}
			Expected struct {
				Error        any
				GPU          bool `json:"gpu_container"`
				Devices      []string
				Capabilities string   `json:"driver_capabilities"`
				MIGConfig    string   `json:"mig_config_devices"`
				MIGMonitor   string   `json:"mig_monitor_devices"`
				Requirements []string `json:"requirements_unordered"`
			}
		}
	}
	if err := json.Unmarshal(data, &vectors); err != nil || len(vectors.Cases) < 10 {
		t.Fatal(err, len(vectors.Cases))
	}
	for _, v := range vectors.Cases {
		h := open(t, "nvidia/h200")
		h.Config.SupportedCapabilities, h.Config.SwarmResource = v.Input.Supported, v.Input.Swarm
		var env []string
		for k, val := range v.Input.Env {
			env = append(env, k+"="+val)
		}
		c, err := Image(env, v.Input.Privileged)
		if err != nil {
			t.Fatal(err)
		}
		d := h.Decide(c)
		if v.Expected.Error != nil && v.Expected.Error != false {
			if d.Err() == nil {
				t.Errorf("%s: it is not refused", v.Name)
			}
			continue
		}
		if !v.Expected.GPU {
			if d.Strategy != None {
				t.Errorf("%s: %+v", v.Name, d)
			}
			continue
		}
		var required []string
		for _, r := range d.Requirements {
			required = append(required, r.Expression)
		}
		slices.Sort(required)
		got := []any{d.Devices, d.DriverCapabilities, d.MIGConfig, d.MIGMonitor, cmp.Or(strings.Join(required, "|"), "-")}
		want := []any{v.Expected.Devices, v.Expected.Capabilities, v.Expected.MIGConfig, v.Expected.MIGMonitor, cmp.Or(strings.Join(v.Expected.Requirements, "|"), "-")}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", v.Name, diff)
		}
	}
}

func TestDecideRequirements(t *testing.T) {
	h := open(t, "nvidia/h200")
	h.Devices[0].Arch, h.Devices[0].Brand = "9.0", "Nvidia"
	d := h.Decide(image(t, "NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_REQUIRE_CUDA=cuda>=13.0 brand=nvidia,driver>=570", "NVIDIA_REQUIRE_X=arch>=10"))
	want := []bool{true, false}
	for i, r := range d.Requirements {
		if r.Satisfied != want[i] || r.Host.Brand != "Nvidia" || r.Host.Driver != "570.124.06" {
			t.Errorf("%+v", r)
		}
	}
	if !errors.Is(d.Err(), berth.ErrExhausted) || len(d.Requirements) != 2 || len(d.Edits) != 0 {
		t.Error(d.Err(), d.Requirements)
	}
	d = h.Decide(image(t, "NVIDIA_VISIBLE_DEVICES=0", "NVIDIA_REQUIRE_X=arch>=10", "NVIDIA_DISABLE_REQUIRE=1"))
	if d.Err() != nil || len(d.Requirements) != 0 {
		t.Error(d.Err(), d.Requirements)
	}
}

func TestDecideNotAccepted(t *testing.T) {
	h := open(t, "nvidia/h200")
	h.Config.AcceptEnvUnprivileged = false
	c := image(t, "NVIDIA_VISIBLE_DEVICES=all")
	d := h.Decide(c)
	if d.Strategy != None || d.Err() != nil || len(d.Errors) != 1 || !strings.Contains(d.Errors[0], "accept-nvidia-visible-devices-envvar-when-unprivileged") {
		t.Errorf("%+v", d)
	}
	c.Privileged = true
	if d := h.Decide(c); d.Strategy != Generated {
		t.Errorf("%+v", d)
	}
}

// Qualified names are injected from the specs on disk, if these are true.
func TestDecideOnDisk(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("device-nodes", "c 10:229 0666 0:0 /dev/x\n")
	write("proc/devices", "Character devices:\n 10 misc\n")
	write("etc/cdi/x.json", `{"cdiVersion":"0.5.0","kind":"acme.com/gpu","containerEdits":{"env":["COMMON=1"]},"devices":[
		{"name":"a","containerEdits":{"deviceNodes":[{"path":"/dev/x","type":"c","major":10,"minor":229}]}},{"name":"b","containerEdits":{"env":["B=1"]}}]}`)
	h := open(t, dir)
	d := h.Decide(image(t, "NVIDIA_VISIBLE_DEVICES=acme.com/gpu=b,acme.com/gpu=a,acme.com/gpu=b"))
	if d.Err() != nil || d.Strategy != OnDisk || d.Vendor != "acme" || len(d.Edits) != 3 || d.Edits[0].From != "/etc/cdi/x.json" || d.Edits[2].Name != "acme.com/gpu=b" {
		t.Errorf("%+v", d)
	}
	if diff := gocmp.Diff(&cdi.Edits{Env: []string{"COMMON=1", "B=1"}, DeviceNodes: d.Edits[1].DeviceNodes}, d.All()); diff != "" {
		t.Error(diff)
	}
	if d := h.Decide(image(t, "NVIDIA_VISIBLE_DEVICES=acme.com/gpu=c")); !errors.Is(d.Err(), berth.ErrNotFound) {
		t.Error(d.Err())
	}
	write("device-nodes", "c 10:230 0666 0:0 /dev/x\n")
	d = open(t, dir).Decide(image(t, "NVIDIA_VISIBLE_DEVICES=acme.com/gpu=a"))
	if stale, ok := errors.AsType[*cdi.StaleError](d.Err()); !ok || stale.File != "/etc/cdi/x.json" || len(d.Edits) != 0 {
		t.Error(d.Err())
	}
}

// What the image says of devices counts for nothing, and what it requires counts.
func TestLend(t *testing.T) {
	h := open(t, "nvidia/a100x8-mig")
	gpu := h.Devices[3]
	grants := []berth.Grant{{Vendor: "nvidia", UUID: gpu.UUID, Edits: json.RawMessage(`{"env":["BERTH_GPUS=x"],"deviceNodes":[{"path":"/dev/nvidia3"}]}`)}}
	c := image(t, "NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_REQUIRE_CUDA=cuda>=12.0", "NVIDIA_DRIVER_CAPABILITIES=video,compute")
	d, err := h.Lend(c, []string{gpu.UUID}, grants, nil, "--gpus 1", nil)
	if err != nil || d.Err() != nil || !slices.Equal(d.Devices, []string{gpu.UUID}) || d.DriverCapabilities != "compute,video" || d.Strategy != Lent || !d.Requirements[0].Satisfied {
		t.Errorf("%+v, %v", d, err)
	}
	if diff := gocmp.Diff(&cdi.Edits{Env: []string{"BERTH_GPUS=x"}, DeviceNodes: []*specs.DeviceNode{{Path: "/dev/nvidia3"}}}, d.All()); diff != "" {
		t.Error(diff)
	}
	d, err = h.Lend(image(t, "NVIDIA_REQUIRE_CUDA=cuda>=13"), []string{gpu.UUID}, nil, []string{"utility", "gpu"}, "", berth.ErrExhausted)
	if err != nil || !errors.Is(d.Err(), berth.ErrExhausted) || len(d.Errors) != 1 || d.DriverCapabilities != "utility" || d.Vendor != "nvidia" || len(d.Edits) != 0 {
		t.Errorf("%+v, %v", d, err)
	}
	d, err = h.Lend(Container{}, nil, nil, nil, "", berth.ErrUnavailable)
	if err != nil || !errors.Is(d.Err(), berth.ErrUnavailable) || d.Strategy != None {
		t.Errorf("%+v, %v", d, err)
	}
	if _, err := Granted([]berth.Grant{{Edits: json.RawMessage("[")}}, "", nil); !errors.Is(err, berth.ErrInvalid) {
		t.Error(err)
	}
}

func TestReadConfig(t *testing.T) {
	dir := t.TempDir()
	h, err := device.OpenHost(dir)
	if err != nil {
		t.Fatal(err)
	}
	getenv := func(string) string { return "/etc" } // of this machine: it must not count for another
	if cfg, file, err := ReadConfig(h, getenv); err != nil || file != "" || !cfg.AcceptEnvUnprivileged {
		t.Error(cfg, file, err)
	}
	path := filepath.Join(dir, "etc/nvidia-container-runtime/config.toml")
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	for text, ok := range map[string]bool{"accept-nvidia-visible-devices-envvar-when-unprivileged = false\n": true, "= 3": false} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		cfg, file, err := ReadConfig(h, getenv)
		if ok && (err != nil || cfg.AcceptEnvUnprivileged || file != "/etc/nvidia-container-runtime/config.toml") || !ok && !errors.Is(err, berth.ErrInvalid) {
			t.Error(cfg.AcceptEnvUnprivileged, file, err)
		}
	}
}
