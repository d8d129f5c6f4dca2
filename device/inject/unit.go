package inject

import (
	"fmt"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
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

// addGPU adds a GPU or slice of NVIDIA's.
func (h Host) addGPU(d *Decision, u device.Unit, name, rule string) {
	edits, err := h.gpu(u)
	if err != nil {
		d.refuse(fmt.Errorf("%s: %w", u, err))
		return
	}
	d.Edits = append(d.Edits, Edits{Device: u.UUID(), Name: name, Rule: rule, From: Generator, ContainerEdits: *edits})
}

func (h Host) gpu(u device.Unit) (*cdi.Edits, error) {
	if u.Slice != nil {
		return h.nvidia(nvidia.JITKind).Slice(u.Device, *u.Slice)
	}
	return h.nvidia(nvidia.JITKind).GPU(u.Device)
}
