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
	h.Require(d, []Container{c}, uuids, capabilities)
	if len(d.errs) == 0 { // else it is the same
		d.refuse(refused)
	}
	if len(d.errs) > 0 {
		d.Edits = []Edits{}
	}
	return d, nil
}

// Require adds what containers require of devices that are lent to them, what the host has of it now, and which parts of
// NVIDIA's driver they get. Of devices that are not here any more it says nothing.
func (h Host) Require(d *Decision, containers []Container, uuids, capabilities []string) {
	var of []device.Device // of NVIDIA's
	for _, u := range device.Units(h.Devices) {
		if !slices.ContainsFunc(uuids, u.Is) {
			continue
		}
		if !slices.ContainsFunc(d.Devices, u.Is) {
			d.lent(u.Device.Vendor, u.UUID())
		}
		if u.Device.Vendor == nvidia.Vendor {
			of = append(of, u.Device)
		}
	}
	if of == nil {
		return
	}
	for _, c := range containers {
		h.requireOf(d, c, of, capabilities)
	}
	seen := map[string]bool{} // several steps of one image
	d.Requirements = slices.DeleteFunc(d.Requirements, func(r Requirement) bool {
		again := seen[r.Expression]
		seen[r.Expression] = true
		return again
	})
}

// requireOf checks what an image requires of the driver, and says which parts of it the container gets.
func (h Host) requireOf(d *Decision, c Container, of []device.Device, capabilities []string) {
	named := nvidia.ParseCapabilities(capabilities...).Intersect(nvidia.AllCapabilities)
	if len(named) == 0 {
		var err error
		named, err = c.Capabilities()
		d.refuse(err)
	}
	for word := range strings.SplitSeq(named.String(), ",") {
		if !slices.Contains(strings.Split(d.DriverCapabilities, ","), word) {
			d.DriverCapabilities = both(d.DriverCapabilities, word)
		}
	}
	requirements, err := c.Requirements()
	d.refuse(err)
	h.require(d, requirements, of)
}
