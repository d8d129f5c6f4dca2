package device

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
)

// Mask is the set of devices that a resource manager, or who started berth, allows. Masks bound what is lent and
// are never passed into a container, where indices begin at 0 again.
type Mask struct {
	Source string   // the variable that says so; "" for a mask that allows everything
	Vendor string   // whose devices it bounds; "" is all vendors'
	IDs    []string // UUIDs, beginnings of UUIDs, or indices
	Global bool     // indices count all devices of the host, not those that this process may open
	// ByPCI says that indices follow PCI addresses; else they may follow speed, as CUDA likes it.
	ByPCI bool
}

// Bounds says whether the mask allows less than everything.
func (m Mask) Bounds() bool { return m.Source != "" }

// vendorMasks are the variables in which indices count the devices of one vendor, in the order in which they
// are looked at. Those of one vendor are applied one after another, each to what the one before has left.
var vendorMasks = []struct{ name, vendor string }{
	{"CUDA_VISIBLE_DEVICES", "nvidia"},
	{"ROCR_VISIBLE_DEVICES", "amd"},
	{"HIP_VISIBLE_DEVICES", "amd"},
	{"GPU_DEVICE_ORDINAL", "amd"},
	{"ZE_AFFINITY_MASK", "intel"},
}

// HostMask finds the mask that an environment says first: UUIDs, then Slurm's global indices of the step and of
// the job, then a vendor's indices. A job of Slurm without any has no devices.
func HostMask(env map[string]string) Mask {
	if masks := HostMasks(env); len(masks) > 0 {
		return masks[0]
	}
	return Mask{}
}

// HostMasks finds all masks that an environment says, to be applied one after another. Without any, everything
// is allowed.
func HostMasks(env map[string]string) []Mask {
	slurm := inSlurm(env)
	for _, v := range vendorMasks {
		if value, ok := env[v.name]; ok && slurm {
			// Slurm sets all vendors' variables, whoever made the devices.
			if ids, uuids := maskIDs(v.name, value); uuids {
				return []Mask{{Source: v.name, IDs: ids}}
			}
		}
	}
	for _, name := range []string{"SLURM_STEP_GPUS", "SLURM_JOB_GPUS"} {
		if value, ok := env[name]; ok {
			return []Mask{{Source: name, IDs: ranges(value), Global: true, ByPCI: true}}
		}
	}
	var masks, indices []Mask
	for _, v := range vendorMasks {
		value, ok := env[v.name]
		if !ok {
			continue
		}
		ids, uuids := maskIDs(v.name, value)
		m := Mask{Source: v.name, Vendor: v.vendor, IDs: ids, ByPCI: v.vendor != "nvidia" || env["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"}
		if uuids {
			masks = append(masks, m)
		} else {
			indices = append(indices, m)
		}
	}
	if masks = append(masks, indices...); len(masks) == 0 && slurm {
		return []Mask{{Source: slurmJob(env)}}
	}
	return masks
}

func inSlurm(env map[string]string) bool { return slurmJob(env) != "" }

func slurmJob(env map[string]string) string {
	for _, name := range []string{"SLURM_JOB_ID", "SLURM_JOBID", "SLURM_STEP_GPUS", "SLURM_JOB_GPUS"} {
		if _, ok := env[name]; ok {
			return name
		}
	}
	return ""
}

// maskIDs reads a vendor's variable, and says whether it names UUIDs.
func maskIDs(name, value string) (ids []string, uuids bool) {
	if name == "ZE_AFFINITY_MASK" {
		// Sub-devices ("0.1") are parts of devices that are lent whole.
		for id := range strings.SplitSeq(value, ",") {
			id, _, _ = strings.Cut(strings.TrimSpace(id), ".")
			if isIndex(id) && !slices.Contains(ids, id) {
				ids = append(ids, id)
			}
		}
		return ids, false
	}
	ids, _ = CUDAVisible(&value)
	return ids, len(ids) > 0 && !isIndex(ids[0])
}

var (
	indexForm = regexp.MustCompile(`^[0-9]{1,6}$`)
	uuidForm  = regexp.MustCompile(`^(GPU-|MIG-|MIG-GPU-)[0-9A-Fa-f][0-9A-Fa-f/-]*$`)
	rangeForm = regexp.MustCompile(`^([0-9]{1,6})-([0-9]{1,6})$`)
)

func isIndex(id string) bool { return indexForm.MatchString(id) }

// CUDAVisible reads the value of CUDA_VISIBLE_DEVICES as CUDA does: no value is all devices, an empty one none,
// and what follows the first entry that is neither an index nor the beginning of a UUID does not count.
func CUDAVisible(value *string) (ids []string, all bool) {
	if value == nil {
		return nil, true
	}
	for id := range strings.SplitSeq(*value, ",") {
		id = strings.TrimSpace(id)
		if !isIndex(id) && !uuidForm.MatchString(id) {
			break
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids, false
}

// ranges reads indices and ranges of them, as in 0,2-3. What is neither stays as it is, and names no device.
func ranges(value string) []string {
	var ids []string
	for part := range strings.SplitSeq(value, ",") {
		part = strings.TrimSpace(part)
		if m := rangeForm.FindStringSubmatch(part); m != nil {
			from, _ := strconv.Atoi(m[1])
			to, _ := strconv.Atoi(m[2])
			for i := from; i <= to && i-from < maxCount; i++ {
				ids = append(ids, strconv.Itoa(i))
			}
		} else if part != "" {
			ids = append(ids, part)
		}
	}
	return ids
}

// Allow returns those of a host's devices that the mask allows, in its order; devices of vendors that it does not
// bound come after them. canOpen says whether this process may open a device: local indices count those. It is
// nil where that cannot be found out.
//
// ErrDenied if an index cannot be told to mean one device: a local index is never taken for a global one.
func (m Mask) Allow(devices []Device, canOpen func(Device) bool) ([]Device, error) {
	if !m.Bounds() {
		return devices, nil
	}
	var bound, others []Device
	for _, d := range devices {
		if m.Vendor == "" || d.Vendor == m.Vendor {
			bound = append(bound, d)
		} else {
			others = append(others, d)
		}
	}
	bound = m.ofOneVendor(bound, canOpen)
	var allowed []Device
	for _, id := range m.IDs {
		d, err := m.find(id, bound, canOpen)
		if err != nil {
			if all := m.exactly(bound, canOpen); all != nil {
				return append(all, others...), nil
			}
			return nil, fmt.Errorf("%s=%s: %w", m.Source, strings.Join(m.IDs, ","), err)
		}
		allowed = merge(allowed, d)
	}
	return append(allowed, others...), nil
}

// ofOneVendor leaves of the devices of several vendors those of the one whose indices a resource manager can only mean,
// where there is such: of a GPU that is part of the processor it lends nothing, and it keeps from a job what it has not lent
// to it, which it can only do to devices that it knows.
func (m Mask) ofOneVendor(devices []Device, canOpen func(Device) bool) []Device {
	if !m.Global || vendors(devices) < 2 {
		return devices
	}
	rest := slices.DeleteFunc(slices.Clone(devices), integrated)
	if vendors(rest) < 2 || canOpen == nil {
		return rest
	}
	var kept []Device // from this process
	for _, d := range rest {
		if !canOpen(d) {
			kept = append(kept, d)
		}
	}
	if vendors(kept) != 1 {
		return rest
	}
	return slices.DeleteFunc(rest, func(d Device) bool { return d.Vendor != kept[0].Vendor })
}

// integrated reports whether a device is a GPU within a processor of Intel's: on the bus that begins at it.
func integrated(d Device) bool { return d.Vendor == "intel" && strings.HasPrefix(d.PCI, "0000:00:") }

// exactly returns the devices that this process may use where a resource manager has lent it as many: AMD's compute driver
// says nothing of the others, so that indices which count them too may not be told apart. Else nil.
func (m Mask) exactly(devices []Device, canOpen func(Device) bool) []Device {
	if !m.Global || canOpen == nil || len(devices) == 0 || vendors(devices) > 1 || devices[0].Vendor != "amd" {
		return nil
	}
	var ids []string
	for _, id := range m.IDs {
		if !isIndex(id) {
			return nil
		}
		if !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	open := slices.DeleteFunc(slices.Clone(devices), func(d Device) bool { return !canOpen(d) })
	if len(open) != len(ids) {
		return nil
	}
	return open
}

// merge adds a device; of one that is there already it adds the slices.
func merge(devices []Device, d Device) []Device {
	for i, have := range devices {
		if have.Vendor == d.Vendor && have.UUID == d.UUID {
			for _, s := range d.Slices {
				if !slices.Contains(have.Slices, s) {
					devices[i].Slices = append(slices.Clip(devices[i].Slices), s)
				}
			}
			return devices
		}
	}
	return append(devices, d)
}

func (m Mask) find(id string, devices []Device, canOpen func(Device) bool) (Device, error) {
	if !isIndex(id) {
		return byUUID(id, devices)
	}
	index, _ := strconv.Atoi(id)
	if vendors(devices) > 1 {
		return Device{}, fmt.Errorf("%w: the host has devices of several vendors, so that %d may be several devices; name UUIDs, as in CUDA_VISIBLE_DEVICES=GPU-…", berth.ErrDenied, index)
	}
	if m.Global {
		for _, d := range devices {
			if d.Index == index {
				if canOpen != nil && !canOpen(d) {
					return d, fmt.Errorf("%w: the resource manager keeps %s from this process, so its %d is another device", berth.ErrDenied, d, index)
				}
				return d, nil
			}
		}
		return Device{}, fmt.Errorf("%w: this host has no device %d", berth.ErrNotFound, index)
	}
	if canOpen == nil {
		return Device{}, fmt.Errorf("%w: whether %d counts all devices of the host or those of the job cannot be found out here; name UUIDs", berth.ErrDenied, index)
	}
	var open []Device
	for _, d := range devices {
		if canOpen(d) {
			open = append(open, d)
		}
	}
	if !m.ByPCI && models(open) > 1 {
		return Device{}, fmt.Errorf("%w: the devices differ, and CUDA counts the fastest first; set CUDA_DEVICE_ORDER=PCI_BUS_ID, or name UUIDs", berth.ErrDenied)
	}
	if index >= len(open) {
		return Device{}, fmt.Errorf("%w: this process may open %d devices, and there is no %d among them", berth.ErrNotFound, len(open), index)
	}
	return open[index], nil
}

// byUUID finds the one device, or slice of a device, whose UUID begins with id.
func byUUID(id string, devices []Device) (Device, error) {
	begins := func(uuid string) bool {
		return len(uuid) >= len(id) && strings.EqualFold(uuid[:len(id)], id)
	}
	var found []Device
	for _, d := range devices {
		if begins(d.UUID) {
			found = append(found, d)
		}
		for _, s := range d.Slices {
			if begins(s.UUID) || begins(d.key(s)) {
				one := d
				one.Slices = []Slice{s}
				found = append(found, one)
			}
		}
	}
	switch len(found) {
	case 0:
		return Device{}, fmt.Errorf("%w: this host has no device %s", berth.ErrNotFound, id)
	case 1:
		return found[0], nil
	default:
		return Device{}, fmt.Errorf("%w: %d devices begin with %s", berth.ErrDenied, len(found), id)
	}
}

func vendors(devices []Device) int {
	return distinct(devices, func(d Device) string { return d.Vendor })
}

func models(devices []Device) int { return distinct(devices, func(d Device) string { return d.Model }) }

func distinct(devices []Device, of func(Device) string) int {
	set := map[string]bool{}
	for _, d := range devices {
		set[of(d)] = true
	}
	return len(set)
}
