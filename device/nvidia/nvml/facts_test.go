package nvml

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/device"
)

func TestIslands(t *testing.T) {
	link := func(to ...string) (links []Link) {
		for _, at := range to {
			links = append(links, Link{To: at, Count: 2})
		}
		return links
	}
	f := &Facts{GPUs: []GPU{
		{UUID: "a", Links: link("0000:03:00.0")},
		{UUID: "b"},
		{UUID: "c", Links: link("0000:01:00.0", "0000:04:00.0")},
		{UUID: "d", Links: link("0000:03:00.0")},
		{UUID: "e", Links: link(Switch)},
		{UUID: "f", Links: link(Switch)},
	}}
	var devices []device.Device
	for i, uuid := range []string{"a", "b", "c", "d", "e", "f", "unknown"} {
		devices = append(devices, device.Device{UUID: uuid, PCI: "0000:0" + string(rune('1'+i)) + ":00.0"})
	}
	got := map[string]string{}
	for _, d := range f.Add(devices) {
		got[d.UUID] = d.Island
	}
	want := map[string]string{"a": "a", "b": "", "c": "a", "d": "a", "e": "e", "f": "e", "unknown": ""}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
