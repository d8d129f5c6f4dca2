package inject

import (
	"fmt"
	"slices"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/intel"
	"github.com/berth-project/berth/device/nvidia"
)

// addCommon adds what all of NVIDIA's devices need. Without it no device is of use.
func (h Host) addCommon(d *Decision, rule string) (ok bool) {
	edits, err := h.nvidia(nvidia.JITKind).Common()
	if err != nil {
		d.refuse(err)
		return false
	}
	d.Edits = append(d.Edits, Edits{Name: "the driver", Rule: rule, From: Generator, ContainerEdits: *edits})
	return true
}

// addUnit adds a device or slice, whose vendor's common edits are there already.
func (h Host) addUnit(d *Decision, u device.Unit, name, rule string) {
	edits, err := h.unit(u)
	if err != nil {
		d.refuse(fmt.Errorf("%s: %w", u, err))
		return
	}
	d.Edits = append(d.Edits, Edits{Device: u.UUID(), Name: name, Rule: rule, From: Generator, ContainerEdits: *edits})
}

// unit generates the edits for a device or slice alone.
func (h Host) unit(u device.Unit) (*specs.ContainerEdits, error) {
	switch u.Device.Vendor {
	case nvidia.Vendor:
		if u.Slice != nil {
			return h.nvidia("").Slice(u.Device, *u.Slice)
		}
		return h.nvidia("").GPU(u.Device)
	case amd.Vendor:
		gpus, err := amd.Find(h.Host)
		if err != nil {
			return nil, err
		}
		if i := slices.Index(amd.UUIDs(gpus), u.UUID()); i >= 0 {
			return h.amd().Edits(gpus[i].DRM)
		}
	case intel.Vendor:
		for _, gpu := range intel.Find(h.Host) {
			if gpu.UID == u.UUID() {
				return intel.Generator{Host: h.Host, Groups: !h.NoGroups}.Edits(gpu)
			}
		}
	}
	return nil, fmt.Errorf("%w: this host has no such device any more", berth.ErrNotFound)
}
