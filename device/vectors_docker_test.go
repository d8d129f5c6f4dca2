package device_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
)

// dockerSuites are the suites of device: the languages in which GPUs are asked for, moby's drivers, and masks.
var dockerSuites = map[string]suite{
	"docker.gpus_flag": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Values []string }](t, input)
		requests, _, err := device.ParseDockerRun(in.Values, nil)
		out := []any{}
		for _, r := range requests {
			m := requestOf(r)
			m["options"] = r.Options
			out = append(out, m)
		}
		if err != nil {
			return nil, err
		}
		return map[string]any{"requests": out}, nil
	},
	"docker.run_flags": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Args []string }](t, input)
		gpus, devices := runFlags(t, in.Args)
		requests, mappings, err := device.ParseDockerRun(gpus, devices)
		if err != nil {
			return nil, err
		}
		var rs, ms []any
		for _, r := range requests {
			rs = append(rs, requestOf(r))
		}
		for _, m := range mappings {
			ms = append(ms, map[string]string{"host": m.Host, "container": m.Container, "permissions": m.Permissions})
		}
		return map[string]any{"device_requests": rs, "device_mappings": ms}, nil
	},
	"nerdctl.gpus_flag": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Value string }](t, input)
		r, err := device.ParseNerdctlGPUs(in.Value)
		if err != nil {
			return nil, err
		}
		return map[string]any{"count": r.Count, "device_ids": r.DeviceIDs, "capabilities": slices.Concat(r.Capabilities...)}, nil
	},
	"podman.gpus_to_cdi": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			GPUs    []string
			Vendors []string `json:"cdi_vendors"`
		}](t, input)
		names, err := device.PodmanGPUs(in.GPUs, in.Vendors)
		return map[string]any{"devices": names}, err
	},
	"moby.capability_match": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Set     []string `json:"driver_set"`
			Request [][]string
		}](t, input)
		return map[string]any{"selected": device.Capabilities(in.Set).Match(in.Request)}, nil
	},
	"moby.cdi_spec_dirs": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Flag    []string `json:"flag_cdi_spec_dir"`
			Feature *bool    `json:"feature_cdi"`
		}](t, input)
		readable := func(string) error { return nil }
		return map[string]any{"dirs": device.DockerSpecDirs(in.Flag, in.Feature, "", "", readable)}, nil
	},
	"moby.first_vendor": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Vendors []string }](t, input)
		vendor, err := device.FirstVendor(in.Vendors)
		if err != nil {
			return nil, err
		}
		return map[string]any{"vendor": vendor}, nil
	},
	"moby.handle_device": mobyHandleDevice,
	"moby.normalize_cdi": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Kind string `json:"default_kind"`
			ID   string
		}](t, input)
		return map[string]any{"name": device.CDIName(in.Kind, in.ID)}, nil
	},
	"moby.request_ids": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct {
			Count int
			IDs   []string `json:"device_ids"`
		}](t, input)
		ids, err := device.DockerRequest{Count: in.Count, DeviceIDs: in.IDs}.IDs()
		return map[string]any{"ids": ids}, err
	},
	"rm.cuda_visible_devices": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Value *string }](t, input)
		ids, all := device.CUDAVisible(in.Value)
		return map[string]any{"devices": idsOrAll(ids, all)}, nil
	},
	"rm.host_gpu_mask": func(t *testing.T, input json.RawMessage) (any, error) {
		in := decode[struct{ Env map[string]string }](t, input)
		mask := device.HostMask(in.Env)
		out := map[string]any{"ids": idsOrAll(mask.IDs, !mask.Bounds())}
		if mask.Bounds() {
			out["source"] = mask.Source
		}
		return out, nil
	},
}

func idsOrAll(ids []string, all bool) any {
	if all {
		return "all"
	}
	return ids
}

func requestOf(r device.DockerRequest) map[string]any {
	return map[string]any{"driver": r.Driver, "count": r.Count, "device_ids": r.DeviceIDs, "capabilities": r.Capabilities}
}

// runFlags takes --gpus and --device out of arguments of docker run.
func runFlags(t *testing.T, args []string) (gpus, devices []string) {
	t.Helper()
	for i := 0; i < len(args); i++ {
		name, value, ok := strings.Cut(args[i], "=")
		if !ok && i+1 < len(args) {
			i++
			value = args[i]
		}
		switch name {
		case "--gpus":
			gpus = append(gpus, value)
		case "--device":
			devices = append(devices, value)
		default:
			t.Fatalf("argument %q: only --gpus and --device are known here", args[i])
		}
	}
	return gpus, devices
}

func mobyHandleDevice(t *testing.T, input json.RawMessage) (any, error) {
	in := decode[struct {
		Host struct {
			CDI         string
			Vendors     []string `json:"cdi_spec_vendors"`
			Executables []string `json:"executables_in_path"`
		}
		Request struct {
			Driver       string
			Count        int
			IDs          []string `json:"device_ids"`
			Capabilities [][]string
			Options      map[string]string
		}
	}](t, input)
	cfg := device.RegistryConfig{Env: []string{"PATH=/bin"}, LookPath: func(name string) (string, error) {
		if slices.Contains(in.Host.Executables, name) {
			return filepath.Join("/usr/bin", name), nil
		}
		return "", exec.ErrNotFound
	}}
	if in.Host.CDI == "enabled" {
		cfg.CDI = mobySpecs(t, in.Host.Vendors)
	}
	registry := device.NewRegistry(cfg)
	out := map[string]any{"registered_drivers": registry.Drivers()}
	spec := &oci.Spec{Process: &oci.Process{}}
	r := in.Request
	err := registry.Apply(spec, device.DockerRequest{
		Driver: r.Driver, Count: r.Count, DeviceIDs: r.IDs, Capabilities: r.Capabilities, Options: r.Options,
	})
	if err != nil {
		if len(spec.Process.Env) > 0 || spec.Hooks != nil {
			t.Errorf("a request that failed left %v and %v", spec.Process.Env, spec.Hooks)
		}
		return out, err
	}
	out["env_added"] = spec.Process.Env
	if spec.Hooks != nil {
		var hooks []any
		for _, h := range spec.Hooks.Prestart { //nolint:staticcheck // deprecated, and what dockerd uses
			hooks = append(hooks, map[string]any{"exe": filepath.Base(h.Path), "args": h.Args})
		}
		out["prestart_hooks"] = hooks
	}
	return out, nil
}

// mobySpecs are the specs that the cases of moby.handle_device know of.
func mobySpecs(t *testing.T, vendors []string) *cdi.Cache {
	dir := t.TempDir()
	for vendor, devices := range map[string]map[string]string{
		"nvidia.com": {"0": "NV0=1", "1": "NV1=1", "all": "NVALL=1"},
		"amd.com":    {"0": "AMD0=1", "all": "AMDALL=1"},
	} {
		if !slices.Contains(vendors, vendor) {
			continue
		}
		var list []any
		for name, env := range devices {
			list = append(list, map[string]any{"name": name, "containerEdits": map[string]any{"env": []string{env}}})
		}
		data, err := json.Marshal(map[string]any{"cdiVersion": "0.6.0", "kind": vendor + "/gpu", "devices": list})
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, vendor+".json"), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cdi.NewCache(cdi.Host{}, dir)
}
