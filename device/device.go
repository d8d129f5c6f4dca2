package device

import (
	"context"
	"fmt"

	"github.com/berth-project/berth"
)

// Device is one accelerator of a host, as a vendor's package finds it.
type Device struct {
	Vendor string `json:"vendor"`           // "nvidia", "amd", "intel"
	Index  int    `json:"index"`            // in the vendor's own order; that of PCI addresses for NVIDIA
	UUID   string `json:"uuid"`             // what the device keeps when indices change
	PCI    string `json:"pci,omitempty"`    // 0000:06:00.0
	Minor  int    `json:"minor"`            // of its node in /dev, which need not be the index; -1 if it has none
	Model  string `json:"model,omitempty"`  // as the driver names it
	Memory int64  `json:"memory,omitempty"` // bytes; 0 if unknown
	Driver string `json:"driver,omitempty"` // version of the kernel driver
	CUDA   string `json:"cuda,omitempty"`   // the newest CUDA that the driver can run; "" if unknown
	Arch   string `json:"arch,omitempty"`   // compute capability, or the vendor's name of it; "" if unknown
	Brand  string `json:"brand,omitempty"`  // "" if unknown
	NUMA   int    `json:"numa"`             // node of the machine's memory that it is near to; -1 if unknown
	// Island: devices of the same one reach each other by links of their own, NVLink or xGMI; "" if unknown.
	Island string  `json:"island,omitempty"`
	Slices []Slice `json:"slices,omitempty"` // of a device that is divided: they are lent, not the whole
	// MIG is that the device works in slices alone, whether it has some or not, as far as is known.
	MIG bool `json:"mig,omitempty"`
	// Divisible is that MIG may change while the driver runs.
	Divisible bool `json:"-"`
	// Health is what the driver says of errors from which the device does not recover by itself, "" that there are none; nil
	// where it was not asked just now, or does not tell.
	Health *string `json:"-"`
}

// Slice is a part of a device with memory and engines of its own, such as a MIG device.
type Slice struct {
	Index   int    `json:"index"` // within its device
	UUID    string `json:"uuid"`
	Profile string `json:"profile,omitempty"` // "1g.18gb"; "" if unknown
	Memory  int64  `json:"memory,omitempty"`  // bytes; 0 if unknown
	GI      int    `json:"gi"`                // the GPU instance's number
	CI      int    `json:"ci"`                // the compute instance's number in it
}

// Vendor finds the devices of one vendor. That a host has none is no error. An error says why devices that are
// there cannot be used; it is of the kind berth.ErrUnavailable where the driver has failed, and comes with the
// devices that can be.
type Vendor interface {
	Name() string
	Devices(ctx context.Context) ([]Device, error)
}

// Undivided is an error, of the kind berth.ErrInvalid, for a device that works in slices alone and has none; else nil.
func (d Device) Undivided() error {
	if !d.MIG || len(d.Slices) > 0 {
		return nil
	}
	return fmt.Errorf("%w: %s is in MIG mode and has no slices; make some, as root: nvidia-smi mig -i %d -cgi PROFILE -C (nvidia-smi mig -lgip lists the profiles), or leave the mode: nvidia-smi -i %[3]d -mig 0",
		berth.ErrInvalid, d, d.Index)
}

// String names a device for people: "nvidia 0 (NVIDIA H200, GPU-…)".
func (d Device) String() string {
	return fmt.Sprintf("%s %d (%s, %s)", d.Vendor, d.Index, d.Model, d.UUID)
}
