package nvml

import (
	"testing"

	"github.com/berth-project/berth/device"
)

func TestNVLinks(t *testing.T) {
	f := &Facts{GPUs: []GPU{
		{UUID: "a", Links: []Link{{To: "0000:02:00.0", Count: 4}, {To: "switch", Count: 2}}},
		{UUID: "b", Links: []Link{{To: "0000:01:00.0", Count: 4}}},
		{UUID: "c", Links: []Link{{To: "switch", Count: 6}}},
	}}
	d := func(uuid, pci string) device.Device { return device.Device{UUID: uuid, PCI: pci} }
	a, b, c := d("a", "0000:01:00.0"), d("b", "0000:02:00.0"), d("c", "0000:03:00.0")
	for _, p := range []struct {
		x, y device.Device
		n    int
	}{{a, b, 4}, {b, a, 4}, {a, c, 2}, {b, c, 0}, {a, d("x", "0000:09:00.0"), 0}} {
		if n := f.NVLinks(p.x, p.y); n != p.n {
			t.Errorf("%s and %s: %d, want %d", p.x.UUID, p.y.UUID, n, p.n)
		}
	}
	if n := (*Facts)(nil).NVLinks(a, b); n != 0 {
		t.Error(n)
	}
}
