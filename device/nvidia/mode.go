package nvidia

import "github.com/berth-project/berth/device/cdi"

// Mode is how devices get into a container.
type Mode string

// The modes of NVIDIA's container toolkit.
const (
	ModeLegacy Mode = "legacy"  // its own command line mounts driver and devices
	ModeCSV    Mode = "csv"     // lists of files on Tegra systems
	ModeCDI    Mode = "cdi"     // CDI specs on disk
	ModeJIT    Mode = "jit-cdi" // a CDI spec generated for the one container
)

// Platform is what of NVIDIA's driver stack a host has.
type Platform struct {
	DXCore     bool `json:"dxcore"`         // Windows, by WSL
	Integrated bool `json:"integrated_gpu"` // a GPU that is part of the chip
	NVML       bool `json:"nvml"`           // the management library
	Tegra      bool `json:"tegra"`          // the files of a Tegra system
}

// Resolve returns the mode in which devices are injected: the one that is configured, unless that is "auto";
// then by the devices and the platform. Where the platform decides nothing it is other.
func (p Platform) Resolve(configured string, devices []string, other Mode) Mode {
	switch {
	case configured != "auto":
		return Mode(configured)
	case onlyQualified(devices):
		return ModeCDI
	case p.DXCore:
		return other
	case p.Integrated, p.Tegra && !p.NVML:
		return ModeCSV
	}
	return other
}

// onlyQualified reports whether there are devices, all by qualified CDI names.
func onlyQualified(devices []string) bool {
	for _, d := range devices {
		if !cdi.IsQualified(d) {
			return false
		}
	}
	return len(devices) > 0
}
