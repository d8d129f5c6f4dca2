package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/inject"
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
	return a.newPool(h, dir, l, injectors(h, filepath.Join(dir, "gpu"), hookHere), a.renewer(h)), nil
}

// renewer writes specs of berth's anew that no longer fit the host, as root; another may not.
func (a *app) renewer(h *device.Host) func(ctx context.Context, file string) error {
	if h.Root() != "/" || os.Geteuid() != 0 {
		return nil
	}
	return func(ctx context.Context, file string) error { return a.renewSpec(ctx, h, file) }
}

// renewSpec writes a spec of all GPUs of one vendor anew, with groups if it had any. Other engines read it, too: it is left as it is
// where not all of these GPUs answer just now.
func (a *app) renewSpec(ctx context.Context, h *device.Host, file string) error {
	var old *cdi.Spec
	for _, s := range cdi.NewCache(h.CDI()).Specs() {
		if s.Path == file {
			old = s
		}
	}
	vendor, known := "", false
	if old != nil {
		vendor, known = strings.CutSuffix(old.Vendor, ".com")
	}
	if !known || old.Class != "gpu" || !old.Own {
		return fmt.Errorf("CDI spec %s: %w: it is no longer one of GPUs that berth wrote", file, berth.ErrConflict)
	}
	doc := old.Document()
	host := inject.Host{Host: h, NoGroups: !hasGroups(doc)}
	var err error
	if vendor == nvidia.Vendor {
		if host.Hooks.Path, err = renewedHook(h, doc); err != nil {
			return fmt.Errorf("CDI spec %s: %w", file, err)
		}
	}
	// Before drivers are asked, which takes long.
	if err := unix.Access(filepath.Join(h.Root(), filepath.Dir(file)), unix.W_OK); err != nil {
		return fmt.Errorf("CDI spec %s: %w: its directory: %w", file, berth.ErrDenied, err)
	}
	found, err := a.findGPUs(ctx, h)
	if err != nil {
		return err
	}
	host.Devices = found.devices
	switch bad := found.unfound[vendor]; {
	case bad != nil:
		first, _, _ := strings.Cut(bad.Error(), "\n")
		return fmt.Errorf("CDI spec %s: %w: not all of its GPUs can be used just now: %s", file, berth.ErrUnavailable, first)
	case vendor == nvidia.Vendor && found.facts == nil && slices.ContainsFunc(host.Of(vendor), func(d device.Device) bool { return len(d.Slices) > 0 }):
		return fmt.Errorf("CDI spec %s: %w: only NVIDIA's library, which this berth cannot ask, knows the UUIDs of MIG slices", file, berth.ErrUnavailable)
	}
	if doc, err = device.Within(ctx, a.patience, "the driver of "+vendor, func() (*specs.Spec, error) { return host.Generate(vendor) }); err != nil {
		return err
	}
	_, err = cdi.Write(h.CDI(), filepath.Dir(file), strings.TrimSuffix(filepath.Base(file), ".yaml"), doc)
	return err
}

// renewedHook is the program of the hooks of a spec that is written anew: the one that it names, as long as that is there, or this
// berth's where that is root's alone. Every engine of the host runs it, as root: it must not be one in a user's directory.
func renewedHook(h *device.Host, old *specs.Spec) (string, error) {
	hooks := old.ContainerEdits.Hooks
	for _, d := range old.Devices {
		hooks = append(hooks, d.ContainerEdits.Hooks...)
	}
	for _, hook := range hooks {
		if st, err := h.Stat(hook.Path); err == nil && st.Mode().IsRegular() {
			return hook.Path, nil
		}
	}
	here, err := hookHere()
	if err != nil {
		return "", err
	}
	return ofRootAlone(here)
}

// ofRootAlone is where a program really lies, which nobody but root can change. ErrDenied if others can, or could put another in its place.
func ofRootAlone(program string) (string, error) {
	file, err := filepath.EvalSymlinks(program)
	if err != nil {
		return "", fmt.Errorf("%s: %w: %w", program, berth.ErrUnavailable, err)
	}
	const others = 0o022 // may write
	for at := file; ; at = filepath.Dir(at) {
		var st unix.Stat_t
		if err := unix.Lstat(at, &st); err != nil {
			return "", fmt.Errorf("%s: %w: %w", at, berth.ErrUnavailable, err)
		}
		if st.Uid != 0 || st.Mode&others != 0 {
			return "", fmt.Errorf("hook %s: %w: others than root can change %s, and the whole host would run it; install %s where only root can write, or name one with --hook", file, berth.ErrDenied, at, hookName)
		}
		if at == "/" {
			return file, nil
		}
	}
}

func hasGroups(doc *specs.Spec) bool {
	return len(doc.ContainerEdits.AdditionalGIDs) > 0 ||
		slices.ContainsFunc(doc.Devices, func(d specs.Device) bool { return len(d.ContainerEdits.AdditionalGIDs) > 0 })
}

// newPool is the pool of a host whose devices these vendors find.
func (a *app) newPool(h *device.Host, dir string, l *ledger.Ledger, vendors []device.Injector, renew func(context.Context, string) error) *device.Pool {
	env := map[string]string{}
	for _, e := range a.env {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	return device.NewPool(device.PoolConfig{
		Host: h, Vendors: vendors, Specs: cdi.NewCache(h.CDI()), Env: env, Dir: filepath.Join(dir, "gpu"), Ledger: l, Logger: a.logger(),
		Quarantine: device.QuarantineOf(h, dir), Preflight: hookHere, Renew: renew,
	})
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
