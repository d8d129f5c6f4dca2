package device

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
)

// The programs whose presence tells dockerd which drivers there are.
const (
	nvidiaHook    = "nvidia-container-runtime-hook"
	nvidiaCDIHook = "nvidia-cdi-hook"
	amdRuntime    = "amd-container-runtime"
)

// Capabilities is a set of words that a device driver serves. A nil set serves nothing that is asked for by
// capabilities.
type Capabilities []string

// Match finds the first list of which the set holds every word; an empty list is such. It is nil if there is none.
func (c Capabilities) Match(lists [][]string) []string {
	if c == nil {
		return nil
	}
	for _, list := range lists {
		if !slices.ContainsFunc(list, func(word string) bool { return !slices.Contains(c, word) }) {
			if list == nil {
				list = []string{}
			}
			return list
		}
	}
	return nil
}

// nvidiaWords are the capabilities that dockerd hands on to NVIDIA's hook; ngx is not among them.
var nvidiaWords = Capabilities{"compute", "compat32", "graphics", "utility", "video", "display"}

// RegistryConfig says what of dockerd's device drivers a host has.
type RegistryConfig struct {
	CDI      *cdi.Cache                        // nil where CDI is disabled
	LookPath func(name string) (string, error) // finds programs, as exec.LookPath does
	Env      []string                          // of hooks
	Log      *slog.Logger                      // of failures of drivers beside which another succeeded; nil is none
}

// Registry serves Docker's device requests as dockerd 29.3 does: which drivers there are, which one a request
// selects, and what that does to an OCI spec. Where dockerd chooses at random it chooses by name, and a driver
// that fails changes nothing.
type Registry struct {
	cfg     RegistryConfig
	drivers map[string]driver
}

// driver is a device driver of dockerd.
type driver struct {
	words   Capabilities
	updates []update // the first that succeeds wins
}

// update edits a spec for a request, of whose capabilities selected are those that the driver serves.
type update func(spec *oci.Spec, req DockerRequest, selected []string) error

// NewRegistry finds the drivers of a host.
func NewRegistry(cfg RegistryConfig) *Registry {
	r := &Registry{cfg: cfg, drivers: map[string]driver{}}
	if cfg.CDI != nil {
		r.drivers["cdi"] = driver{updates: []update{r.injectCDI}}
	}
	has := func(program string) bool {
		_, err := cfg.LookPath(program)
		return err == nil
	}
	var nvidia []update
	if has(nvidiaCDIHook) {
		r.drivers["nvidia.cdi"] = driver{updates: []update{r.injectNVIDIA}}
		nvidia = append(nvidia, r.injectNVIDIA)
	}
	if has(nvidiaHook) {
		r.drivers["nvidia.runtime-hook"] = driver{updates: []update{r.hookNVIDIA}}
		nvidia = append(nvidia, r.hookNVIDIA)
	}
	if nvidia != nil {
		r.drivers["nvidia"] = driver{append(Capabilities{"gpu", "nvidia"}, nvidiaWords...), nvidia}
		return r // a host with NVIDIA's programs has no driver for AMD's devices
	}
	var amd []update
	if cfg.CDI != nil {
		amd = append(amd, r.injectAMD)
	}
	if has(amdRuntime) {
		amd = append(amd, variableAMD)
	}
	if amd != nil {
		r.drivers["amd"] = driver{Capabilities{"gpu", "amd"}, amd}
	}
	return r
}

// Drivers are the names of the drivers, sorted.
func (r *Registry) Drivers() []string { return slices.Sorted(maps.Keys(r.drivers)) }

// Apply edits an OCI spec for a request: wholly, or not at all. ErrInvalid if no driver serves it.
func (r *Registry) Apply(spec *oci.Spec, req DockerRequest) error {
	d, selected, ok := r.choose(req)
	if !ok {
		return r.incompatible(req)
	}
	var failed []string
	var errs []error
	for _, u := range d.updates {
		edited := editable(spec)
		if err := u(edited, req, selected); err != nil {
			failed, errs = append(failed, err.Error()), append(errs, err)
			continue
		}
		if len(failed) > 0 && r.cfg.Log != nil {
			r.cfg.Log.Warn("a device driver failed before another succeeded", "errors", failed)
		}
		*spec = *edited
		return nil
	}
	if len(errs) == 1 {
		return errs[0]
	}
	return &joined{strings.Join(failed, "; "), errs}
}

func (r *Registry) choose(req DockerRequest) (d driver, selected []string, ok bool) {
	if req.Driver != "" {
		d, ok = r.drivers[req.Driver]
		return d, d.words.Match(req.Capabilities), ok
	}
	for _, name := range r.Drivers() {
		d = r.drivers[name]
		if selected = d.words.Match(req.Capabilities); selected != nil {
			return d, selected, true
		}
	}
	return driver{}, nil, false
}

func (r *Registry) incompatible(req DockerRequest) error {
	have := "none"
	if names := r.Drivers(); len(names) > 0 {
		have = strings.Join(names, ", ")
	}
	var asked []string // one of these sets
	for _, set := range req.Capabilities {
		asked = append(asked, strings.Join(set, ","))
	}
	return fmt.Errorf("device request: %w: no device driver %q with capabilities %q; there are: %s", berth.ErrInvalid, req.Driver, strings.Join(asked, " or "), have)
}

// joined is several errors in one line.
type joined struct {
	text string
	errs []error
}

func (e *joined) Error() string   { return e.text }
func (e *joined) Unwrap() []error { return e.errs }

// editable copies of a spec what the drivers change themselves.
func editable(spec *oci.Spec) *oci.Spec {
	s := *spec
	if s.Process != nil {
		process := *s.Process
		process.Env = slices.Clip(process.Env)
		s.Process = &process
	}
	if s.Hooks != nil {
		hooks := *s.Hooks
		hooks.Prestart = slices.Clip(hooks.Prestart) //nolint:staticcheck // deprecated, and what dockerd uses
		s.Hooks = &hooks
	}
	return &s
}

func addEnv(spec *oci.Spec, name string, values []string) {
	if spec.Process == nil {
		spec.Process = &oci.Process{}
	}
	spec.Process.Env = append(spec.Process.Env, name+"="+strings.Join(values, ","))
}

// IDs are the devices that a request names: its ids, "0" to "n-1" for a count of n, "all" for a negative one.
func (r DockerRequest) IDs() ([]string, error) {
	switch {
	case r.Count != 0 && len(r.DeviceIDs) > 0:
		return nil, fmt.Errorf("device request: %w: a count and devices; give one of them", berth.ErrInvalid)
	case r.Count < 0:
		return []string{"all"}, nil
	case r.Count > maxCount:
		return nil, fmt.Errorf("device request: %w: a count of %d", berth.ErrInvalid, r.Count)
	case r.Count == 0:
		return r.DeviceIDs, nil
	}
	ids := make([]string, r.Count)
	for i := range ids {
		ids[i] = strconv.Itoa(i)
	}
	return ids, nil
}

// maxCount bounds counts, so that a wrong one does not become a list that fills memory.
const maxCount = 1 << 16

// injectCDI is dockerd's driver "cdi".
func (r *Registry) injectCDI(spec *oci.Spec, req DockerRequest, _ []string) error {
	switch {
	case req.Count != 0:
		return fmt.Errorf("device request: %w: a count of CDI devices; name them", berth.ErrInvalid)
	case len(req.Options) > 0:
		return fmt.Errorf("device request: %w: options for CDI devices, which have none", berth.ErrInvalid)
	case len(req.DeviceIDs) == 0:
		return nil
	}
	_, err := r.cfg.CDI.Inject(spec, req.DeviceIDs...)
	return err
}

// injectKind injects the devices of a request by CDI; ids without a kind are of the given one.
func (r *Registry) injectKind(spec *oci.Spec, req DockerRequest, kind string) error {
	ids, err := req.IDs()
	if err != nil || len(ids) == 0 {
		return err
	}
	if r.cfg.CDI == nil {
		return fmt.Errorf("device request: %w: CDI is disabled", berth.ErrUnsupported)
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = CDIName(kind, id)
	}
	return r.injectCDI(spec, DockerRequest{DeviceIDs: names}, nil)
}

// CDIName makes an id a CDI name of a kind ("nvidia.com/gpu"), if it is none.
func CDIName(kind, id string) string {
	if strings.Contains(id, "=") {
		return id
	}
	return kind + "=" + id
}

func (r *Registry) injectNVIDIA(spec *oci.Spec, req DockerRequest, _ []string) error {
	return r.injectKind(spec, req, "nvidia.com/gpu")
}

func (r *Registry) injectAMD(spec *oci.Spec, req DockerRequest, _ []string) error {
	vendor, err := FirstVendor(r.cfg.CDI.Vendors())
	if err != nil {
		return err
	}
	if vendor != "amd.com" {
		return fmt.Errorf("CDI: %w: the specs are of %s, and the driver is AMD's", berth.ErrNotFound, vendor)
	}
	return r.injectKind(spec, req, vendor+"/gpu")
}

// hookNVIDIA has NVIDIA's prestart hook inject the devices.
func (r *Registry) hookNVIDIA(spec *oci.Spec, req DockerRequest, selected []string) error {
	ids, err := req.IDs()
	if err != nil || len(ids) == 0 {
		return err
	}
	hook, err := r.cfg.LookPath(nvidiaHook)
	if err != nil {
		return fmt.Errorf("device request: %w: %w", berth.ErrUnavailable, err)
	}
	addEnv(spec, "NVIDIA_VISIBLE_DEVICES", ids)
	var words []string
	for _, word := range selected {
		if slices.Contains(nvidiaWords, word) {
			words = append(words, word)
		}
	}
	if words != nil {
		addEnv(spec, "NVIDIA_DRIVER_CAPABILITIES", words)
	}
	if spec.Hooks == nil {
		spec.Hooks = &oci.Hooks{}
	}
	//nolint:staticcheck // deprecated, and what dockerd uses
	spec.Hooks.Prestart = append(spec.Hooks.Prestart, oci.Hook{Path: hook, Args: []string{nvidiaHook, "prestart"}, Env: r.cfg.Env})
	return nil
}

// variableAMD leaves the injection to AMD's runtime, which reads the variable. Any other runtime ignores it: who
// starts the container must look whether it has its device.
func variableAMD(spec *oci.Spec, req DockerRequest, _ []string) error {
	ids, err := req.IDs()
	if err != nil {
		return err
	}
	if len(ids) == 0 {
		ids = []string{"void"}
	}
	addEnv(spec, "AMD_VISIBLE_DEVICES", ids)
	return nil
}

// DockerSpecDirs are the directories in which dockerd looks for CDI specs: those of its flag, else the standard
// ones, and of a rootless daemon those of its user. None if the feature is off or the flag is one empty text.
// Directories that exist and cannot be read are left out.
func DockerSpecDirs(flag []string, feature *bool, configHome, runtimeDir string, readDir func(string) error) []string {
	if feature != nil && !*feature || len(flag) == 1 && flag[0] == "" {
		return nil
	}
	dirs := slices.Clone(flag)
	if len(dirs) == 0 {
		dirs = slices.Clone(cdi.DefaultDirs)
		for _, home := range []string{configHome, runtimeDir} {
			if home != "" {
				dirs = append(dirs, filepath.Join(home, "cdi"))
			}
		}
	}
	return slices.DeleteFunc(dirs, func(dir string) bool {
		err := readDir(dir)
		return err != nil && !errors.Is(err, fs.ErrNotExist)
	})
}
