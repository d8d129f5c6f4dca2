package inject

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/device/require"
)

// decideNVIDIA follows the conventions of NVIDIA's container toolkit.
func (h Host) decideNVIDIA(c Container) *Decision {
	d := newDecision()
	visible := h.Config.VisibleDevices(c.Container)
	if visible.Ignored != "" {
		d.passOver("not accepted: " + visible.Ignored)
	}
	if len(visible.IDs) == 0 {
		return d
	}
	d.Devices, d.Vendor = visible.IDs, nvidia.Vendor
	d.MIGConfig, d.MIGMonitor = c.Env["NVIDIA_MIG_CONFIG_DEVICES"], c.Env["NVIDIA_MIG_MONITOR_DEVICES"]
	mode := h.platform().Resolve(h.Config.Runtime.Mode, visible.IDs, nvidia.ModeJIT)
	d.Strategy = string(mode)
	if mode == nvidia.ModeLegacy {
		d.Strategy = Generated // which gives a container no less than NVIDIA's own command line would
	}
	req, err := h.Config.Request(c.Container)
	if err != nil {
		d.refuse(err)
		return d
	}
	d.DriverCapabilities = req.Capabilities.String()
	rule := cmp.Or(visible.From, "conventions of NVIDIA's toolkit")
	var of []device.Device
	switch d.Strategy {
	case OnDisk:
		of = h.onDisk(d, visible.IDs, rule)
	case Generated:
		of = h.generated(d, c, visible.IDs, rule)
	default:
		d.refuse(fmt.Errorf("mode %s of NVIDIA's toolkit: %w; set nvidia-container-runtime.mode to auto, cdi or jit-cdi", mode, berth.ErrUnsupported))
	}
	h.require(d, req.Requirements, of)
	return d
}

// platform is what of NVIDIA's driver stack the host has.
func (h Host) platform() nvidia.Platform {
	has := func(path string) bool { _, err := h.Stat(path); return err == nil }
	version, err := nvidia.NewDriver(h.Host).Version()
	return nvidia.Platform{DXCore: has("/dev/dxg"), Tegra: has("/etc/nv_tegra_release"), NVML: err == nil && version != ""}
}

// generated adds edits for what a container asks for, and returns the GPUs among that.
func (h Host) generated(d *Decision, c Container, ids []string, rule string) (of []device.Device) {
	names, err := h.Config.JIT(c.Container, nvidia.Qualify(ids, nvidia.JITKind))
	if err != nil {
		d.refuse(err)
		return nil
	}
	if names == nil {
		d.refuse(fmt.Errorf("devices %s: %w: they are CDI devices, which mode cdi injects", strings.Join(ids, ", "), berth.ErrInvalid))
		return nil
	}
	if !h.addCommon(d, rule) {
		return nil
	}
	modes := nvidia.ByMode(names)
	for _, mode := range modes.Order {
		if mode == "auto" {
			of = h.addGPUs(d, modes.IDs[mode], rule)
			continue
		}
		edits, err := h.nvidia(nvidia.JITKind).Special(mode, modes.IDs[mode]...)
		if err != nil {
			d.refuse(fmt.Errorf("%s: %w", mode, err))
			continue
		}
		if len(edits.DeviceNodes) > 0 {
			d.Edits = append(d.Edits, Edits{Name: "mode=" + mode, Rule: specialRule(mode), From: Generator, ContainerEdits: *edits})
		}
	}
	return of
}

// specialRule is the variable by which a container asks for something beside GPUs.
func specialRule(mode string) string {
	switch mode {
	case "imex":
		return "IMEX channels"
	case "mig-caps":
		return "NVIDIA_MIG_CONFIG_DEVICES, NVIDIA_MIG_MONITOR_DEVICES"
	}
	return "NVIDIA_" + strings.ToUpper(mode) + "=enabled"
}

// addGPUs adds the edits for GPUs and slices, each once, and returns the GPUs that they are or are of.
func (h Host) addGPUs(d *Decision, ids []string, rule string) (of []device.Device) {
	devices := h.Of(nvidia.Vendor)
	var units []device.Unit
	for _, id := range ids {
		found, err := unitsOf(devices, id)
		if err != nil {
			d.refuse(err)
			continue
		}
		for _, u := range found {
			if !slices.ContainsFunc(units, func(o device.Unit) bool { return o.Key() == u.Key() }) {
				units = append(units, u)
				h.addGPU(d, u, id, rule)
			}
			if !slices.ContainsFunc(of, func(o device.Device) bool { return o.UUID == u.Device.UUID }) {
				of = append(of, u.Device)
			}
		}
	}
	return of
}

// unitsOf finds what a container names: all GPUs that are not divided and all slices, or one of them.
func unitsOf(devices []device.Device, id string) ([]device.Unit, error) {
	switch id {
	case "none":
		return nil, nil
	case "all":
		if len(devices) == 0 {
			return nil, fmt.Errorf("GPU %q: %w: this host has no NVIDIA GPU", id, berth.ErrNotFound)
		}
		units := device.Units(devices)
		if len(units) == 0 {
			return nil, fmt.Errorf("GPU %q: %w", id, devices[0].Undivided())
		}
		return units, nil
	}
	chosen, err := nvidia.Select(devices, id)
	if err != nil {
		return nil, err
	}
	if len(chosen.Slices) > 0 {
		gpu := devices[chosen.Slices[0][0]]
		return []device.Unit{{Device: gpu, Slice: &gpu.Slices[chosen.Slices[0][1]]}}, nil
	}
	gpu := devices[chosen.GPUs[0]]
	if len(gpu.Slices) > 0 {
		return nil, fmt.Errorf("GPU %q: %w: %s is divided into MIG slices; name one of them, as in %d:0", id, berth.ErrInvalid, gpu, gpu.Index)
	}
	if err := gpu.Undivided(); err != nil {
		return nil, fmt.Errorf("GPU %q: %w", id, err)
	}
	return []device.Unit{{Device: gpu}}, nil
}

// onDisk adds the edits of CDI specs on disk, each spec compared with the host, and returns the GPUs that the
// names are of.
func (h Host) onDisk(d *Decision, ids []string, rule string) (of []device.Device) {
	modes := h.Config.Runtime.Modes
	cache := cdi.NewCache(h.CDI(), modes.CDI.SpecDirs...)
	names := nvidia.Qualify(ids, modes.CDI.DefaultKind)
	if _, _, err := cache.Resolve(names...); err != nil {
		d.refuse(err)
		return nil
	}
	if err := cache.Check(names...); err != nil {
		d.refuse(err)
	}
	var vendors []string
	seen := map[string]bool{}
	for _, name := range names {
		dev, ok := cache.Device(name)
		if !ok || seen[name] {
			continue
		}
		seen[name] = true
		if common := dev.Spec.Document().ContainerEdits; !seen[dev.Spec.Path] {
			seen[dev.Spec.Path] = true
			d.Edits = append(d.Edits, Edits{Name: dev.Spec.Vendor + "/" + dev.Spec.Class, Rule: rule, From: dev.Spec.Path, ContainerEdits: common})
		}
		vendor := strings.TrimSuffix(dev.Spec.Vendor, ".com")
		if !slices.Contains(vendors, vendor) {
			vendors = append(vendors, vendor)
		}
		e := Edits{Name: name, Rule: rule, From: dev.Spec.Path, ContainerEdits: *dev.Edits()}
		units, err := unitsOf(h.Of(nvidia.Vendor), cdi.SplitName(name).Device)
		if vendor == nvidia.Vendor && err == nil {
			for _, u := range units {
				of = append(of, u.Device)
			}
			if len(units) == 1 {
				e.Device = units[0].UUID()
			}
		}
		d.Edits = append(d.Edits, e)
	}
	d.Vendor = strings.Join(vendors, ",")
	return of
}

// require checks what an image requires, for every GPU; without any, for the driver.
func (h Host) require(d *Decision, requirements []string, of []device.Device) {
	hosts := []require.Host{h.driver()}
	for i, gpu := range of {
		if i == 0 {
			hosts = nil
		}
		host := require.Host{CUDA: gpu.CUDA, Driver: gpu.Driver, Arch: gpu.Arch, Brand: gpu.Brand}
		if !slices.Contains(hosts, host) {
			hosts = append(hosts, host)
		}
	}
	for _, expression := range requirements {
		r := Requirement{Expression: expression, Satisfied: true, Host: hosts[0]}
		for _, host := range hosts {
			if err := require.Check(expression, host); err != nil {
				r.Satisfied, r.Host = false, host
				d.refuse(err)
				break
			}
		}
		d.Requirements = append(d.Requirements, r)
	}
}

// driver is what is known of the driver by itself.
func (h Host) driver() require.Host {
	version, err := nvidia.NewDriver(h.Host).Version()
	if err != nil || version == "" {
		return require.Host{}
	}
	return require.Host{Driver: version, CUDA: nvidia.CUDAOf(version)}
}
