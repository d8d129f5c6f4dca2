package inject

import (
	"fmt"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/nvidia"
)

// Decide says what a container gets by the conventions of NVIDIA's and AMD's toolkits. An image that names
// devices of a vendor that the host has none of goes without them if it gets devices of the other.
func (h Host) Decide(c Container) *Decision {
	d := newDecision()
	n, a := h.decideNVIDIA(c), h.decideAMD(c)
	if len(n.errs) > 0 && len(h.Of(nvidia.Vendor)) == 0 && len(a.Edits) > 0 {
		n = &Decision{Strategy: None, Errors: n.Errors}
	}
	if n.Strategy != None {
		d.DriverCapabilities, d.MIGConfig, d.MIGMonitor = n.DriverCapabilities, n.MIGConfig, n.MIGMonitor
	}
	d.join(n)
	d.join(a)
	if len(d.errs) > 0 {
		d.Edits = []Edits{}
	}
	return d
}

// decideAMD follows AMD_VISIBLE_DEVICES. What ROCm's toolkit ignores with a warning is refused here, except the
// words for no devices: a container must not start without the GPU that it names.
func (h Host) decideAMD(c Container) *Decision {
	d := newDecision()
	value, ok := amd.VisibleOf(c.Environ)
	_, own := c.Env["AMD_VISIBLE_DEVICES"]
	if !ok || value == "" || value == "void" || value == "none" || !own && len(h.Of(amd.Vendor)) == 0 {
		return d // without GPUs of AMD's, swarm's variables are for others
	}
	if !c.Privileged && !h.Config.AcceptEnvUnprivileged {
		// The one option for all vendors' variables: who does not trust images trusts none of theirs.
		d.passOver("not accepted: AMD's variables: the container is not privileged, and accept-nvidia-visible-devices-envvar-when-unprivileged is false")
		return d
	}
	d.Vendor, d.Strategy = amd.Vendor, Generated
	for part := range strings.SplitSeq(value, ",") {
		if !slices.Contains(d.Devices, part) {
			d.Devices = append(d.Devices, part)
		}
	}
	gpus, err := amd.Find(h.Host)
	if err != nil {
		d.refuse(err)
		return d
	}
	visible := amd.ParseVisible(value, len(gpus), amd.UniqueIDs(gpus))
	for _, id := range append(visible.IgnoredIDs, visible.IgnoredRanges...) {
		if id != "void" && id != "none" {
			d.refuse(fmt.Errorf("AMD GPU %q: %w: this host has %d, by index or unique id", id, berth.ErrNotFound, len(gpus)))
		}
	}
	uuids := amd.UUIDs(gpus)
	for _, i := range slices.Compact(visible.Indices) {
		edits, err := h.amd().Edits(gpus[i].DRM)
		if err != nil {
			d.refuse(fmt.Errorf("AMD GPU %d: %w", i, err))
			continue
		}
		d.Edits = append(d.Edits, Edits{
			Device: uuids[i], Name: fmt.Sprintf("%s=%d", amd.Kind, i), Rule: "AMD_VISIBLE_DEVICES=" + value, From: Generator, ContainerEdits: *edits,
		})
	}
	if len(d.Edits) == 0 && len(d.errs) == 0 {
		d.Strategy = None
	}
	return d
}

func (h Host) amd() amd.Generator { return amd.Generator{Host: h.Host, Groups: !h.NoGroups} }
