package inject

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/nvidia"
)

// Granted says what grants bring into a container. rule says who asked for them; specs, which may be nil, are where
// those lie that grants name.
func Granted(grants []berth.Grant, rule string, specs *cdi.Cache) (*Decision, error) {
	d := newDecision()
	for _, g := range grants {
		d.lent(g.Vendor, g.UUID)
		e := Edits{Device: g.UUID, Name: cmp.Or(g.CDI, g.UUID), Rule: rule, From: Generator}
		if g.CDI != "" {
			e.From = "a CDI spec"
			if specs != nil {
				if dev, ok := specs.Device(g.CDI); ok {
					e.From = dev.Spec.Path
				}
			}
		}
		if len(g.Edits) > 0 {
			if err := json.Unmarshal(g.Edits, &e.ContainerEdits); err != nil {
				return nil, fmt.Errorf("grant of %s: %w: %w", g.UUID, berth.ErrInvalid, err)
			}
		}
		d.Edits = append(d.Edits, e)
	}
	return d, nil
}

// lent notes a device that is lent.
func (d *Decision) lent(vendor, uuid string) {
	d.Strategy = Lent
	d.Devices = append(d.Devices, uuid)
	if !slices.Contains(strings.Split(d.Vendor, ","), vendor) {
		d.Vendor = both(d.Vendor, vendor)
	}
}

// Lend says what a container gets that is lent devices by berth's own request: of its image only what it requires of
// the driver counts, and which parts of the driver it uses where the request does not say. refused, if it is not
// nil, is why it gets nothing.
func (h Host) Lend(c Container, uuids []string, grants []berth.Grant, capabilities []string, rule string, refused error) (*Decision, error) {
	d, err := Granted(grants, rule, cdi.NewCache(h.CDI()))
	if err != nil {
		return nil, err
	}
	var of []device.Device // of NVIDIA's
	for _, u := range device.Units(h.Devices) {
		if !slices.Contains(uuids, u.UUID()) {
			continue
		}
		if !slices.Contains(d.Devices, u.UUID()) {
			d.lent(u.Device.Vendor, u.UUID())
		}
		if u.Device.Vendor == nvidia.Vendor {
			of = append(of, u.Device)
		}
	}
	if of != nil {
		h.requireOf(d, c, of, capabilities)
	}
	if len(d.errs) == 0 { // else it is the same
		d.refuse(refused)
	}
	if len(d.errs) > 0 {
		d.Edits = []Edits{}
	}
	return d, nil
}

// requireOf checks what an image requires of the driver, and says which parts of it the container gets.
func (h Host) requireOf(d *Decision, c Container, of []device.Device, capabilities []string) {
	named := nvidia.ParseCapabilities(capabilities...).Intersect(nvidia.AllCapabilities)
	if len(named) == 0 {
		var err error
		named, err = h.Config.CapabilitiesOf(c.Container)
		d.refuse(err)
	}
	d.DriverCapabilities = named.String()
	requirements, err := c.Requirements()
	d.refuse(err)
	h.require(d, requirements, of)
}
