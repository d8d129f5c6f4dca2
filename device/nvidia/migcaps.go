package nvidia

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// MIGCaps are the minor numbers of the nodes that grant access to MIG slices, by the names of
// /proc/driver/nvidia-caps/mig-minors: "config", "monitor", "gpu0/gi1/access" and "gpu0/gi1/ci0/access", where
// the GPU is named by its minor number.
type MIGCaps map[string]uint32

// isCap reports whether a name is one of an access: as upstream, by how it begins.
func isCap(name string) bool {
	if name == "config" || name == "monitor" {
		return true
	}
	var gpu, gi, ci int
	n, _ := fmt.Sscanf(name, "gpu%d/gi%d/ci%d/access", &gpu, &gi, &ci)
	return n >= 2
}

// ParseMIGCaps reads mig-minors. Lines that it does not understand are left out.
func ParseMIGCaps(text string) MIGCaps {
	caps := MIGCaps{}
	for line := range strings.SplitSeq(text, "\n") {
		if name, minor, err := parseMIGCap(line); err == nil {
			caps[name] = minor
		}
	}
	return caps
}

// parseMIGCap reads one line, "gpu0/gi1/access 3".
func parseMIGCap(line string) (name string, minor uint32, err error) {
	name, number, _ := strings.Cut(line, " ")
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil || !isCap(name) {
		return "", 0, fmt.Errorf("mig-minors: %w: %q is not of the form: gpu0/gi1/access 3", berth.ErrInvalid, line)
	}
	return name, uint32(n), nil
}

// Node returns the path of the node that grants an access.
func (m MIGCaps) Node(name string) (string, error) {
	minor, ok := m[name]
	if !ok {
		return "", fmt.Errorf("MIG access %s: %w: mig-minors does not list it", name, berth.ErrNotFound)
	}
	return capNode(minor), nil
}

func capNode(minor uint32) string { return fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", minor) }

// SliceNode returns the path of the node that users of one slice open, and of no other: its compute instance's.
func SliceNode(h *device.Host, d device.Device, s device.Slice) (string, error) {
	text, err := h.ReadFile("/proc/driver/nvidia-caps/mig-minors")
	if err != nil {
		return "", fmt.Errorf("%w: %w", berth.ErrUnavailable, err)
	}
	return ParseMIGCaps(string(text)).Node(fmt.Sprintf("gpu%d/gi%d/ci%d/access", d.Minor, s.GI, s.CI))
}

// CapFile returns the path of the file in /proc that stands for an access.
func CapFile(name string) string {
	if gpu, rest, ok := strings.Cut(name, "/"); ok {
		name = gpu + "/mig/" + rest
	} else {
		name = "mig/" + name
	}
	return capabilities + "/" + name
}

const capabilities = "/proc/driver/nvidia/capabilities"
