package device

import "strings"

// Nearness is how two devices reach each other, in the words of nvidia-smi.
type Nearness string

// From the nearest on. Links of their own, as in NV12 or XGMI, come before all of them.
const (
	SamePackage Nearness = "PART" // partitions of one GPU
	OneSwitch   Nearness = "PIX"  // through one PCI switch at most
	Switches    Nearness = "PXB"  // through several PCI switches
	HostBridge  Nearness = "PHB"  // through the bridge of the processor
	SameNode    Nearness = "NODE" // through several bridges of one NUMA node
	System      Nearness = "SYS"  // through the link between NUMA nodes
	Unknown     Nearness = "?"
)

// Place is where a device is.
type Place struct {
	UUID     string   `json:"uuid"`
	Vendor   string   `json:"vendor"`
	Index    int      `json:"index"`
	PCI      string   `json:"pci,omitempty"`
	NUMA     int      `json:"numa"` // -1 if unknown
	Root     string   `json:"root,omitempty"`
	Switches []string `json:"switches"` // PCI bridges between root and device, from the root on
	Island   string   `json:"island,omitempty"`
}

// Pair is how two devices reach each other.
type Pair struct {
	A    string   `json:"a"` // UUIDs
	B    string   `json:"b"`
	Near Nearness `json:"near"`
}

// Topology is where devices are, and how each two of them reach each other.
type Topology struct {
	Devices []Place `json:"gpus"`
	Pairs   []Pair  `json:"pairs"`
}

// FindTopology finds out where devices of a host are. links says of two how they reach each other by links of their
// own; "" where they have none.
func FindTopology(h *Host, devices []Device, links func(a, b Device) Nearness) Topology {
	t := Topology{Devices: []Place{}, Pairs: []Pair{}}
	for i, d := range devices {
		t.Devices = append(t.Devices, h.place(d))
		for j, o := range devices[:i] {
			near := links(o, d)
			if near == "" {
				near = t.Devices[j].near(t.Devices[i])
			}
			t.Pairs = append(t.Pairs, Pair{A: o.UUID, B: d.UUID, Near: near})
		}
	}
	return t
}

// place finds a device in the tree of PCI devices, which /sys shows as the path of its directory:
// /sys/devices/pci0000:00/0000:00:01.0/0000:06:00.0. A recorded host may not have it.
func (h *Host) place(d Device) Place {
	p := Place{UUID: d.UUID, Vendor: d.Vendor, Index: d.Index, PCI: d.PCI, NUMA: d.NUMA, Switches: []string{}, Island: d.Island}
	at, err := h.Resolve("/sys/bus/pci/devices/" + d.PCI)
	_, below, ok := strings.Cut(at, "/devices/pci")
	if d.PCI == "" || err != nil || !ok {
		return p
	}
	parts := strings.Split("pci"+below, "/")
	if len(parts) < 2 {
		return p
	}
	p.Root, p.Switches = parts[0], parts[1:len(parts)-1]
	return p
}

// near compares two places.
func (p Place) near(o Place) Nearness {
	switch {
	case p.PCI != "" && p.PCI == o.PCI:
		return SamePackage
	case p.Root != "" && p.Root == o.Root:
		common := 0
		for common < min(len(p.Switches), len(o.Switches)) && p.Switches[common] == o.Switches[common] {
			common++
		}
		switch {
		case common == 0:
			return HostBridge
		case len(p.Switches)-common <= 1 && len(o.Switches)-common <= 1:
			return OneSwitch
		}
		return Switches
	case p.NUMA < 0 || o.NUMA < 0:
		return Unknown
	case p.NUMA == o.NUMA:
		return SameNode
	}
	return System
}

// Near says how two devices reach each other; "" for one and itself.
func (t Topology) Near(a, b string) Nearness {
	for _, p := range t.Pairs {
		if p.A == a && p.B == b || p.A == b && p.B == a {
			return p.Near
		}
	}
	return ""
}
