package inject

import (
	"errors"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/require"
)

// The strategies by which devices get into a container.
const (
	None      = "none"    // it asks for none
	OnDisk    = "cdi"     // CDI specs on disk
	Generated = "jit-cdi" // specs generated for the one container
	Lent      = "lend"    // berth's own: chosen among what is free, and lent by UUID
)

// Generator is where edits come from that no file has.
const Generator = "generated"

// Decision is what a container gets of a host's GPUs, and why.
type Decision struct {
	// Devices are what the container asks for, in its words. One empty name stands for the driver's files without
	// a device.
	Devices            []string      `json:"devices"`
	Vendor             string        `json:"vendor"` // of several, separated by commas
	Strategy           string        `json:"strategy"`
	DriverCapabilities string        `json:"driver_capabilities"`
	MIGConfig          string        `json:"mig_config_devices"`
	MIGMonitor         string        `json:"mig_monitor_devices"`
	Requirements       []Requirement `json:"requirements"`
	Edits              []Edits       `json:"edits"` // in the order in which they are applied
	// Errors are what is refused, and why. Not all of it keeps the container from starting: what the options do
	// not accept is passed over.
	Errors []string `json:"errors"`

	errs []error
}

// Requirement is something that an image requires of the driver or of a GPU.
type Requirement struct {
	Expression string       `json:"expression"`
	Satisfied  bool         `json:"satisfied"`
	Host       require.Host `json:"host"` // of the first GPU that does not satisfy it, else of the first
}

// Edits are what one device, or what all devices of a vendor have in common, does to a container.
type Edits struct {
	Device string `json:"device,omitempty"` // UUID of the device; "" for what is common
	Name   string `json:"name"`             // as the container asked for it, or as CDI calls it
	Rule   string `json:"rule"`             // who asked, by what
	From   string `json:"from"`             // the file of the CDI spec, or Generator
	specs.ContainerEdits
}

func newDecision() *Decision {
	return &Decision{Strategy: None, Devices: []string{}, Requirements: []Requirement{}, Edits: []Edits{}, Errors: []string{}}
}

// Err says why the container must not start; nil if it may.
func (d *Decision) Err() error { return errors.Join(d.errs...) }

// All are the edits as one.
func (d *Decision) All() *cdi.Edits {
	all := &cdi.Edits{}
	for i := range d.Edits {
		cdi.Append(all, &d.Edits[i].ContainerEdits)
	}
	return all
}

// refuse notes something that keeps the container from starting.
func (d *Decision) refuse(err error) {
	if err != nil {
		d.errs = append(d.errs, err)
		d.Errors = append(d.Errors, err.Error())
	}
}

// passOver notes something that is not accepted, and that the container goes without.
func (d *Decision) passOver(why string) { d.Errors = append(d.Errors, why) }

// join adds what was decided of another vendor's devices.
func (d *Decision) join(o *Decision) {
	if o == nil || o.Strategy == None && len(o.Errors) == 0 {
		return
	}
	d.Devices = append(d.Devices, o.Devices...)
	d.Vendor = both(d.Vendor, o.Vendor)
	if d.Strategy == None || d.Strategy == o.Strategy {
		d.Strategy = o.Strategy
	} else if o.Strategy != None {
		d.Strategy = both(d.Strategy, o.Strategy)
	}
	d.Requirements = append(d.Requirements, o.Requirements...)
	d.Edits = append(d.Edits, o.Edits...)
	d.Errors = append(d.Errors, o.Errors...)
	d.errs = append(d.errs, o.errs...)
}

func both(a, b string) string {
	switch {
	case a == "" || a == b:
		return b
	case b == "":
		return a
	}
	return a + "," + b
}
