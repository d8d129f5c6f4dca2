package device

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestTopology(t *testing.T) {
	root := t.TempDir()
	// Two behind a switch of one port each, one behind another switch of the same root, one at the root itself, one at
	// another root of the node, one of the other node, and one of which nothing is known.
	for _, at := range []string{
		"pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:01.0/0000:03:00.0",
		"pci0000:00/0000:00:01.0/0000:01:00.0/0000:02:02.0/0000:04:00.0",
		"pci0000:00/0000:00:01.0/0000:05:00.0/0000:06:01.0/0000:07:00.0",
		"pci0000:00/0000:08:00.0",
		"pci0000:20/0000:20:01.0/0000:21:00.0",
		"pci0000:80/0000:80:01.0/0000:81:00.0",
	} {
		link := filepath.Join(root, "sys/bus/pci/devices", filepath.Base(at))
		err := errors.Join(
			os.MkdirAll(filepath.Join(root, "sys/devices", at), 0o755), os.MkdirAll(filepath.Dir(link), 0o755),
			os.Symlink(filepath.Join("../../../devices", at), link),
		)
		if err != nil {
			t.Fatal(err)
		}
	}
	h, err := OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	devices := []Device{
		{UUID: "a", PCI: "0000:03:00.0"},
		{UUID: "b", PCI: "0000:04:00.0"},
		{UUID: "c", PCI: "0000:07:00.0"},
		{UUID: "d", PCI: "0000:08:00.0"},
		{UUID: "e", PCI: "0000:21:00.0"},
		{UUID: "f", PCI: "0000:81:00.0", NUMA: 1},
		{UUID: "g", NUMA: -1},
		{UUID: "f2", PCI: "0000:81:00.0", NUMA: 1},
	}
	topology := FindTopology(h, devices, func(a, b Device) Nearness {
		if a.UUID == "a" && b.UUID == "e" {
			return "NV4"
		}
		return ""
	})
	got := map[string]Nearness{}
	for _, p := range []string{"ab", "ac", "ad", "ae", "de", "af", "ag", "ba", "ff2", "aa"} {
		got[p] = topology.Near(p[:1], p[1:])
	}
	want := map[string]Nearness{
		"ab": OneSwitch, "ac": Switches, "ad": HostBridge, "ae": "NV4", "de": SameNode, "af": System, "ag": Unknown, "ba": OneSwitch, "ff2": SamePackage, "aa": "",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	place := Place{UUID: "a", PCI: "0000:03:00.0", Root: "pci0000:00", Switches: []string{"0000:00:01.0", "0000:01:00.0", "0000:02:01.0"}}
	if diff := cmp.Diff(place, topology.Devices[0]); diff != "" || len(topology.Pairs) != 28 {
		t.Error(diff, len(topology.Pairs))
	}
}
