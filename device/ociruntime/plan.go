package ociruntime

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/userns"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/inject"
	"github.com/berth-project/berth/device/intel"
	"github.com/berth-project/berth/device/nvidia"
)

// plan is what a container is to get.
type plan struct {
	units []device.Unit // to be lent
	edits *cdi.Edits    // in terms of this machine; nil where the container asks for nothing
	notes []string      // what was asked for and does not count, and why
}

// planner finds out what a container asks for, and what brings it there.
type planner struct {
	cfg  Config
	host *device.Host
	// more adds to NVIDIA's devices what only the driver's library knows; nil adds nothing.
	more func(context.Context, []device.Device) ([]device.Device, error)
	// patience is how long a driver may take to answer; 0 is device.AnswerTimeout.
	patience time.Duration
	// data are the data directories of berth in which faults are noted, too.
	data []string
}

func (p Process) planner(cfg Config) (*planner, error) {
	h, err := device.OpenHost(cfg.Root)
	if err != nil {
		return nil, err
	}
	pl := &planner{cfg: cfg, host: h, data: dataDirs(cfg, p.Env, os.Geteuid(), userns.RunningInUserNS())}
	if p.More != nil {
		pl.more = p.More(h)
	}
	return pl, nil
}

// dataDirs are those that a berth of this user may have. Root of a user namespace is a user who has entered one, as Podman
// has, or root of a container of the system.
func dataDirs(cfg Config, environ []string, uid int, namespace bool) (dirs []string) {
	env := map[string]string{}
	for _, e := range environ {
		name, value, _ := strings.Cut(e, "=")
		env[name] = value
	}
	if dir := cmp.Or(cfg.DataDir, env["BERTH_DATA_DIR"]); filepath.IsAbs(dir) {
		return []string{dir}
	}
	if uid == 0 {
		dirs = append(dirs, "/var/lib/berth")
	}
	if uid == 0 && !namespace {
		return dirs
	}
	switch {
	case filepath.IsAbs(env["XDG_DATA_HOME"]):
		dirs = append(dirs, filepath.Join(env["XDG_DATA_HOME"], "berth"))
	case filepath.IsAbs(env["HOME"]):
		dirs = append(dirs, filepath.Join(env["HOME"], ".local", "share", "berth"))
	}
	return dirs
}

// mayAsk reports whether a configuration can ask for devices at all. Most do not, and need not be read.
func (cfg Config) mayAsk(spec []byte) bool {
	words := []string{"NVIDIA_VISIBLE_DEVICES", "CUDA_VERSION", "AMD_VISIBLE_DEVICES", "DOCKER_RESOURCE_", path.Base(nvidia.MountRoot)}
	words = append(words, cfg.NVIDIA.Runtime.Modes.CDI.AnnotationPrefixes...)
	words = append(words, strings.Split(cfg.NVIDIA.SwarmResource, ",")...)
	return slices.ContainsFunc(words, func(w string) bool {
		w = strings.TrimSpace(w)
		return w != "" && bytes.Contains(spec, []byte(w))
	})
}

// plan reads a configuration and decides. Errors say what cannot be given and why: nothing is left out in silence.
func (p *planner) plan(ctx context.Context, spec []byte) (*plan, error) {
	if !p.cfg.mayAsk(spec) {
		return &plan{}, nil
	}
	c, err := inject.ParseBundle(spec)
	if err != nil {
		return nil, err
	}
	if p.cfg.asksNothing(c) {
		return &plan{}, nil
	}
	program, err := p.cfg.cdiHook()
	if err != nil {
		return nil, err
	}
	h := inject.Host{
		Host: p.host, Config: p.cfg.NVIDIA, NoGroups: p.cfg.NVIDIA.Features.NoAdditionalGIDs,
		Hooks: nvidia.Hooks{Path: program, Disabled: p.cfg.NVIDIA.Runtime.Modes.JIT.DisableHooks},
	}
	if root := p.cfg.NVIDIA.CLI.Root; root != "" && root != "/" {
		if h.Files, err = device.OpenHost(root); err != nil {
			return nil, err
		}
	}
	var unusable []error
	for _, v := range p.vendors() {
		devices, err := device.Ask(ctx, v, p.patience)
		h.Devices = append(h.Devices, devices...)
		unusable = append(unusable, err)
	}
	d, err := device.Within(ctx, p.patience, "a driver of GPUs", func() (*inject.Decision, error) { return h.Decide(c), nil })
	if err != nil {
		return nil, errors.Join(append(unusable, err)...)
	}
	if err := d.Err(); err != nil {
		return nil, errors.Join(append([]error{err}, unusable...)...) // what is not usable may be what is not found
	}
	to := &plan{notes: d.Errors}
	if d.Strategy == inject.None {
		return to, nil
	}
	to.edits = p.onThisMachine(d.All())
	if to.units, err = p.unitsOf(h.Devices, to.edits); err != nil {
		return nil, err
	}
	to.edits.Env = append(to.edits.Env, p.after(c, to.units)...)
	return to, nil
}

// asksNothing is a look at what asks most often, before any device is looked at.
func (cfg Config) asksNothing(c inject.Container) bool {
	_, amd := amd.VisibleOf(c.Environ)
	v := cfg.NVIDIA.VisibleDevices(c.Container)
	return !amd && len(v.IDs) == 0 && v.Ignored == ""
}

func (p *planner) vendors() []device.Vendor {
	n := nvidia.NewDriver(p.host)
	n.More = p.more
	return []device.Vendor{n, amd.NewDriver(p.host), intel.NewDriver(p.host)}
}

// after is the environment of a container that has its devices: what named them does not name them again, to a hook
// that comes after, and the command can see which it has.
func (p *planner) after(c inject.Container, units []device.Unit) []string {
	env := []string{"NVIDIA_VISIBLE_DEVICES=void"}
	names := []string{"AMD_VISIBLE_DEVICES"}
	for name := range strings.SplitSeq(p.cfg.NVIDIA.SwarmResource, ",") {
		names = append(names, strings.TrimSpace(name))
	}
	for name := range c.Env {
		if slices.Contains(names, name) || strings.HasPrefix(name, "DOCKER_RESOURCE_") {
			env = append(env, name+"=void")
		}
	}
	slices.Sort(env)
	var uuids []string
	for _, u := range units {
		uuids = append(uuids, u.UUID())
	}
	if uuids != nil {
		env = append(env, "BERTH_GPUS="+strings.Join(uuids, ","))
	}
	return env
}

// onThisMachine puts edits in the words of a host with another root into those of this machine, and drops nodes
// whose path is there already: each would add a device rule.
func (p *planner) onThisMachine(e *cdi.Edits) *cdi.Edits {
	inside := func(name string) bool { return p.host.Root() == "/" || strings.HasPrefix(name, p.host.Root()+"/") }
	var nodes []*specs.DeviceNode
	for _, n := range e.DeviceNodes {
		if slices.ContainsFunc(nodes, func(o *specs.DeviceNode) bool { return o.Path == n.Path }) {
			continue
		}
		if at := cmp.Or(n.HostPath, n.Path); !inside(at) {
			n.HostPath = cmp.Or(p.host.HostPath(at), n.HostPath)
		}
		nodes = append(nodes, n)
	}
	e.DeviceNodes = nodes
	for _, m := range e.Mounts {
		if !inside(m.HostPath) {
			m.HostPath = cmp.Or(p.host.HostPath(m.HostPath), m.HostPath)
		}
	}
	return e
}

// unitsOf finds the devices and slices whose nodes edits bring, whatever names they were asked for by.
func (p *planner) unitsOf(devices []device.Device, edits *cdi.Edits) ([]device.Unit, error) {
	var units []device.Unit
	for _, u := range device.Units(devices) {
		own, err := p.nodes(u)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(edits.DeviceNodes, func(n *specs.DeviceNode) bool { return slices.Contains(own, n.Path) }) {
			units = append(units, u)
		}
	}
	return units, nil
}

// nodes are the nodes that are one device's, or one slice's, alone.
func (p *planner) nodes(u device.Unit) ([]string, error) {
	switch {
	case u.Slice != nil:
		edits, err := nvidia.Generator{Host: p.host}.Slice(u.Device, *u.Slice)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", u, err)
		}
		var own []string
		for _, n := range edits.DeviceNodes[1:] { // the first is that of the whole GPU
			own = append(own, n.Path)
		}
		return own, nil
	case u.Device.Vendor == nvidia.Vendor:
		return []string{fmt.Sprintf("/dev/nvidia%d", u.Device.Minor)}, nil
	}
	return []string{fmt.Sprintf("/dev/dri/renderD%d", u.Device.Minor)}, nil
}
