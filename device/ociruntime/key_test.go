package ociruntime

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/ledger"
)

// A slice of which who lent it knew the UUID is not lent to a container too, whose runtime cannot ask the driver's library;
// nor is one whose GPU was lent before it was divided, or is in quarantine.
func TestSliceIsLentOnce(t *testing.T) {
	h, err := device.OpenHost("../nvidia/testdata/a100x8-mig")
	if err != nil {
		t.Fatal(err)
	}
	devices, err := nvidia.NewDriver(h).Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	plain := device.Unit{Device: devices[1], Slice: &devices[1].Slices[0]}
	slice := *plain.Slice
	slice.UUID = "MIG-00000000-0000-0000-0000-000000000001"
	named := device.Unit{Device: plain.Device, Slice: &slice}
	dirs := ledger.Dirs{Shared: t.TempDir() + "/ledger"}
	l, err := openLedger(dirs)
	if err != nil {
		t.Fatal(err)
	}
	p := &planner{host: h}
	for name, tt := range map[string]struct {
		has  string
		asks device.Unit
	}{
		"as berth lends it":          {plain.Key(), named},
		"of an old berth":            {named.UUID(), named},
		"the GPU, before it was cut": {plain.Device.UUID, plain},
	} {
		t.Run(name, func(t *testing.T) {
			lease, err := l.Acquire(t.Context(), ledger.Request{Task: "holder", Devices: []ledger.Device{{ID: tt.has}}})
			if err != nil {
				t.Fatal(err)
			}
			defer lease.Release()
			twice, err := p.lend(t.Context(), l, "oci-c", []device.Unit{tt.asks})
			if !errors.Is(err, berth.ErrUnavailable) || !strings.Contains(err.Error(), "lent to holder") {
				t.Errorf("%v, %v", twice, err)
			}
		})
	}
	for id, u := range map[string]device.Unit{devices[0].PCI: {Device: devices[0], Slice: &devices[0].Slices[0]}, devices[3].UUID: {Device: devices[3]}} {
		root := filepath.Join(t.TempDir(), "host")
		if err := os.CopyFS(root, os.DirFS(h.Root())); err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(root, device.FaultFile)
		err := os.MkdirAll(filepath.Dir(at), 0o755)
		if err == nil {
			err = os.WriteFile(at, []byte(id+" it burns\n"), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		other, err := device.OpenHost(root)
		if err != nil {
			t.Fatal(err)
		}
		burnt, err := (&planner{host: other}).lend(t.Context(), l, "oci-c", []device.Unit{u})
		if !errors.Is(err, berth.ErrUnavailable) || !strings.Contains(err.Error(), "it burns") || !strings.Contains(err.Error(), "berth gpu release "+u.Device.UUID) {
			t.Errorf("%s: %v, %v", id, burnt, err)
		}
	}
	lease, err := p.lend(t.Context(), l, "oci-c", []device.Unit{named})
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	if lent := lease.Devices(); len(lent) != 1 || lent[0].ID != plain.Key() {
		t.Errorf("%v", lent)
	}
}
