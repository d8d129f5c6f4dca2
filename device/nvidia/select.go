package nvidia

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// Selection is a choice among devices: indices into the list that was chosen from.
type Selection struct {
	All    bool
	GPUs   []int    // also the GPUs of chosen slices
	Slices [][2]int // GPU, slice
}

// Select chooses devices by names separated by commas, as libnvidia-container does: indices, UUIDs and PCI
// addresses of GPUs, UUIDs of MIG slices, GPU:SLICE, all. Letters may be in either case, and a device counts
// once. What a name means is decided in that order. The error names the first that means none.
func Select(devices []device.Device, names string) (Selection, error) {
	var s Selection
	for name := range strings.SplitSeq(names, ",") {
		switch {
		case name == "":
		case strings.EqualFold(name, "all"):
			s.all(devices)
			return s, nil
		default:
			if !s.gpu(devices, name) && !s.slice(devices, name) {
				return Selection{}, fmt.Errorf("GPU %q: %w: this host has %s", name, berth.ErrNotFound, inventory(devices))
			}
		}
	}
	return s, nil
}

func (s *Selection) all(devices []device.Device) {
	s.All = true
	for i := range devices {
		s.addGPU(i)
	}
	for i, d := range devices {
		for j := range d.Slices {
			s.addSlice(i, j)
		}
	}
}

func (s *Selection) addGPU(i int) {
	if !slices.Contains(s.GPUs, i) {
		s.GPUs = append(s.GPUs, i)
	}
}

func (s *Selection) addSlice(i, j int) {
	if at := [2]int{i, j}; !slices.Contains(s.Slices, at) {
		s.Slices = append(s.Slices, at)
	}
	s.addGPU(i)
}

func (s *Selection) gpu(devices []device.Device, name string) bool {
	address, isAddress := pciAddress(name)
	index, err := strconv.ParseUint(name, 10, 64)
	for i, d := range devices {
		if isAddress && address == fullAddress(d.PCI) || strings.EqualFold(d.UUID, name) && d.UUID != "" ||
			err == nil && index == uint64(i) {
			s.addGPU(i)
			return true
		}
	}
	return false
}

func (s *Selection) slice(devices []device.Device, name string) bool {
	gpu, slice, pair := strings.Cut(name, ":")
	g, errG := strconv.ParseUint(gpu, 10, 64)
	n, errN := strconv.ParseUint(slice, 10, 64)
	pair = pair && errG == nil && errN == nil
	for i, d := range devices {
		for j, m := range d.Slices {
			key := device.Unit{Device: d, Slice: &d.Slices[j]}.Key()
			if strings.EqualFold(m.UUID, name) && m.UUID != "" || strings.EqualFold(key, name) || pair && g == uint64(i) && n == uint64(j) {
				s.addSlice(i, j)
				return true
			}
		}
	}
	return false
}

var address = regexp.MustCompile(`^(?i:([0-9a-f]{1,8}):([0-9a-f]{1,2}):([0-9a-f]{1,2})(?:\.0)?)$`)

// pciAddress returns a PCI address with the digits that NVML gives it: 00000000:1b:00.0. Zeros in front may be
// missing.
func pciAddress(s string) (string, bool) {
	m := address.FindStringSubmatch(s)
	if m == nil {
		return "", false
	}
	pad := func(s string, n int) string { return strings.Repeat("0", n-len(s)) + strings.ToLower(s) }
	return pad(m[1], 8) + ":" + pad(m[2], 2) + ":" + pad(m[3], 2) + ".0", true
}

func fullAddress(s string) string {
	full, _ := pciAddress(s)
	return full
}

// inventory lists devices for an error.
func inventory(devices []device.Device) string {
	if len(devices) == 0 {
		return "no NVIDIA GPU"
	}
	var all []string
	for i, d := range devices {
		all = append(all, fmt.Sprintf("%d (%s)", i, d.UUID))
		for j, m := range d.Slices {
			all = append(all, fmt.Sprintf("%d:%d (%s)", i, j, m.UUID))
		}
	}
	return strings.Join(all, ", ")
}

// SelectMIGControl returns those of the chosen GPUs whose division into slices a container may change or watch,
// by the value of NVIDIA_MIG_CONFIG_DEVICES or NVIDIA_MIG_MONITOR_DEVICES. Only "all" is allowed, and only to
// containers that have no single slices.
func SelectMIGControl(s Selection, variable, value string) ([]int, error) {
	for word := range strings.SplitSeq(value, ",") {
		switch {
		case word == "":
		case !strings.EqualFold(word, "all"):
			return nil, fmt.Errorf("%s=%s: %w: only all is allowed", variable, value, berth.ErrInvalid)
		case !s.All && len(s.Slices) > 0:
			return nil, fmt.Errorf("%s=%s: %w: the container has single MIG slices", variable, value, berth.ErrInvalid)
		default:
			return s.GPUs, nil
		}
	}
	return nil, nil
}
