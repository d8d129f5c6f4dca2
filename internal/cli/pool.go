package cli

import (
	"encoding/json"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/intel"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/ledger"
	"github.com/berth-project/berth/runner"
)

var _ runner.Devices = (*device.Pool)(nil)

// openPool opens the pool of this host's GPUs. It looks at none of them yet.
func (a *app) openPool(dir string, l *ledger.Ledger) (*device.Pool, error) {
	root := a.global.gpuRoot
	if root != "/" {
		root = a.abs(root)
	}
	h, err := device.OpenHost(root)
	if err != nil {
		return nil, err
	}
	return a.newPool(h, dir, l, injectors(h, filepath.Join(dir, "gpu"), hookHere)), nil
}

// newPool is the pool of a host whose devices these vendors find.
func (a *app) newPool(h *device.Host, dir string, l *ledger.Ledger, vendors []device.Injector) *device.Pool {
	env := map[string]string{}
	for _, e := range a.env {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	return device.NewPool(device.PoolConfig{
		Host: h, Vendors: vendors, Specs: cdi.NewCache(h.CDI()), Env: env, Dir: filepath.Join(dir, "gpu"), Ledger: l, Logger: a.logger(),
		Quarantine: quarantine(h, dir), Preflight: hookHere,
	})
}

// quarantine is where faults of a host's GPUs are noted: for the whole host where root writes, else in the data
// directory.
func quarantine(h *device.Host, dir string) device.Quarantine {
	return device.Quarantine{Dirs: []string{filepath.Join(h.Root(), "run/berth/quarantine"), filepath.Join(dir, "gpu", "quarantine")}}
}

// injectors are the vendors whose devices are lent, in the order in which tasks get them that name none. What takes long
// to find out is kept in dir; hook finds the program of the hooks that some need.
func injectors(h *device.Host, dir string, hook func() (string, error)) []device.Injector {
	n := nvidia.NewDriver(h)
	n.More = device.More(asker(h).More).Kept(filepath.Join(dir, "nvml.json"))
	return []device.Injector{
		&nvidia.Injector{Driver: n, Generator: nvidia.Generator{Host: h}, Hook: hook},
		&amd.Injector{Driver: amd.NewDriver(h)},
		&intel.Injector{Driver: intel.NewDriver(h)},
	}
}

// hookHere is the program of the hooks on this machine, whatever host's devices are lent.
func hookHere() (string, error) {
	h, err := device.OpenHost("/")
	if err != nil {
		return "", err
	}
	return hookProgram("", h)
}

// applyGPUs sets the GPUs that a task asks for.
func applyGPUs(o *runOptions, t *berth.Task) error {
	if len(o.gpus) > 0 && (t.Resources.GPUs == nil || o.changed("gpus")) {
		for _, value := range o.gpus {
			if _, err := device.ParseRequest(value); err != nil {
				return invalid("run: --gpus: %s", strings.Replace(err.Error(), berth.ErrInvalid.Error()+": ", "", 1))
			}
		}
		t.Resources.GPUs = texts(o.gpus)
	}
	if !o.allowBusy && !o.preflight {
		return nil
	}
	requests, err := device.ParseRequests(t.Resources.GPUs)
	if err != nil {
		return nil //nolint:nilerr // the check of the whole task tells it
	}
	if len(requests) == 0 {
		for _, name := range []string{"allow-busy", "gpu-preflight"} {
			if o.changed(name) {
				return invalid("run: --%s: the task asks for no GPUs", name)
			}
		}
		return nil
	}
	var values []string
	for _, r := range requests {
		r.AllowBusy, r.Preflight = r.AllowBusy || o.allowBusy, r.Preflight || o.preflight
		values = append(values, r.String())
	}
	t.Resources.GPUs = texts(values)
	return nil
}

// texts is how a document says requests: one as a text, several as a list.
func texts(values []string) json.RawMessage {
	var v any = values
	if len(values) == 1 {
		v = values[0]
	}
	data, _ := json.Marshal(v) // texts always can be
	return data
}
