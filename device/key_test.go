package device_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/ledger"
)

// A slice is lent to one, whether who asks knows its UUID, which only the driver's library tells, or not.
func TestSliceHasOneKey(t *testing.T) {
	const root = "nvidia/testdata/a100x8-mig"
	plain, err := nvidia.NewDriver(openHost(t, root)).Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var more []device.Device // as the library names slices
	for i, d := range plain {
		d.Slices = append([]device.Slice(nil), d.Slices...)
		for k := range d.Slices {
			d.Slices[k].UUID = fmt.Sprintf("MIG-00000000-0000-0000-000%d-00000000000%d", i, k)
		}
		more = append(more, d)
	}
	l, err := ledger.New(ledger.Config{Dirs: ledger.Dirs{Shared: t.TempDir() + "/ledger"}})
	if err != nil {
		t.Fatal(err)
	}
	of := func(devices []device.Device) *device.Pool {
		return pool(t, root, func(cfg *device.PoolConfig) { cfg.Vendors = []device.Injector{fixed{cfg.Vendors[0], devices}} })
	}
	acquire := func(devices []device.Device, request string) (*ledger.Lease, error) {
		choose, err := of(devices).Choose(t.Context(), asks(request))
		if err != nil {
			t.Fatal(err)
		}
		return l.Acquire(t.Context(), ledger.Request{Task: "t", Choose: choose, NoWait: true})
	}
	for name, by := range map[string]struct{ first, then []device.Device }{"with, then without": {more, plain}, "without, then with": {plain, more}} {
		t.Run(name, func(t *testing.T) {
			lease, err := acquire(by.first, "device=1:1")
			if err != nil {
				t.Fatal(err)
			}
			defer lease.Release()
			if lent := lease.Devices(); len(lent) != 1 || lent[0].ID != "MIG-GPU-5d5ba0d6-d33d-2b2c-524d-9e3d8d2b8a01/2/0" {
				t.Errorf("%v", lent)
			}
			if twice, err := acquire(by.then, "device=1:1"); !errors.Is(err, berth.ErrUnavailable) {
				t.Errorf("it is lent twice: %v, %v", twice, err)
			}
			// A process that knows less goes on with the task.
			grants, _, err := of(by.then).Grants(t.Context(), asks("device=1:1"), lease.Devices(), nil)
			if err != nil || len(grants) != 1 || grants[0].UUID != by.then[1].Slices[1].UUID {
				t.Errorf("%v, %v", grants, err)
			}
		})
	}
	// What a berth of before has lent by its UUID is still lent.
	old, err := l.Acquire(t.Context(), ledger.Request{Task: "old", Devices: []ledger.Device{{ID: more[0].Slices[2].UUID}}})
	if err != nil {
		t.Fatal(err)
	}
	defer old.Release()
	if twice, err := acquire(more, "device=0:2"); !errors.Is(err, berth.ErrUnavailable) {
		t.Errorf("it is lent twice: %v, %v", twice, err)
	}
}
