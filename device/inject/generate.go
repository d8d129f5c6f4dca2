package inject

import (
	"errors"
	"fmt"
	"slices"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/intel"
	"github.com/berth-project/berth/device/nvidia"
)

// Host is a host with its GPUs, as the vendors' packages find them.
type Host struct {
	*device.Host
	Files   *device.Host // of NVIDIA's driver's files, where it is installed in a root of its own; nil for Host
	Devices []device.Device
	Hooks   nvidia.Hooks  // of specs of NVIDIA's devices
	Config  nvidia.Config // of NVIDIA's container toolkit; see ReadConfig
	// NoGroups leaves the groups of nodes out of specs, which readers of CDI before 0.7 do not know.
	NoGroups bool
}

// Vendors are the vendors of the host's devices, in the order of the devices.
func (h Host) Vendors() []string {
	var all []string
	for _, d := range h.Devices {
		if !slices.Contains(all, d.Vendor) {
			all = append(all, d.Vendor)
		}
	}
	return all
}

// Of returns the devices of one vendor.
func (h Host) Of(vendor string) []device.Device {
	var all []device.Device
	for _, d := range h.Devices {
		if d.Vendor == vendor {
			all = append(all, d)
		}
	}
	return all
}

// Generate writes a CDI spec of all devices of one vendor. ErrNotFound if there are none; ErrUnavailable if they
// could not be used.
func (h Host) Generate(vendor string) (*specs.Spec, error) {
	switch vendor {
	case nvidia.Vendor:
		return h.nvidia(nvidia.Kind).Spec(h.Of(vendor))
	case amd.Vendor:
		gpus, err := amd.Find(h.Host)
		if err != nil && !errors.Is(err, berth.ErrNotFound) {
			return nil, err
		}
		return h.amd().Spec(gpus)
	case intel.Vendor:
		return intel.Generator{Host: h.Host, Groups: !h.NoGroups}.Spec(intel.Find(h.Host))
	}
	return nil, fmt.Errorf("CDI spec: %w: there is no vendor %q; there are nvidia, amd and intel", berth.ErrInvalid, vendor)
}

func (h Host) nvidia(kind string) nvidia.Generator {
	return nvidia.Generator{Host: h.Host, Files: h.Files, Hooks: h.Hooks, Kind: kind, NoAdditionalGIDs: h.NoGroups}
}
