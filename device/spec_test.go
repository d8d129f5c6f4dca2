package device_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/amd"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/devicetest"
	"github.com/berth-project/berth/ledger"
)

// Two specs of one directory that describe a device are told, both by name: none of them is taken, and none is made.
func TestGrantsOfSpecsThatClash(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 1, Recorded: true})
	const spec = "cdiVersion: 0.6.0\nkind: amd.com/gpu\ndevices: [{name: \"0\", containerEdits: {env: [A=1]}}]\n"
	h.Write("/etc/cdi/one.yaml", spec)
	h.Write("/etc/cdi/two.yaml", spec)
	_, _, err := pool(t, h.Root, nil).Grants(t.Context(), asks("1"), []ledger.Device{{ID: h.AMD[0].UUID}}, nil)
	if !errors.Is(err, berth.ErrConflict) || !strings.Contains(err.Error(), "both /etc/cdi/one.yaml and /etc/cdi/two.yaml describe it; remove it from one") {
		t.Error(err)
	}
}

// A spec on disk counts where it fits the host. One that does not is an error that names it, unless berth wrote it.
func TestGrantsOfSpecs(t *testing.T) {
	const own = "# Written by berth, which may write it again.\n"
	spec := func(index, render, minor int) string {
		return fmt.Sprintf(`cdiVersion: 0.6.0
kind: amd.com/gpu
devices:
- name: "%d"
  containerEdits:
    deviceNodes:
    - {path: /dev/kfd}
    - {path: /dev/dri/renderD%d, type: c, major: 10, minor: %d}
containerEdits:
  env: [FROM_DISK=1]
`, index, render, minor)
	}
	for _, c := range []struct {
		name, text string
		cdi        string
		says       string
	}{
		{"none", "", "", ""},
		{"one that fits", spec(1, 129, 232), "amd.com/gpu=1", ""},
		{"a stale one", spec(1, 129, 99), "", "CDI spec /etc/cdi/amd.yaml is stale: /dev/dri/renderD129 is 10:99 there and 10:232 on this host; write it anew: amd-ctk cdi generate --output=/etc/cdi/amd.yaml"},
		{"a stale one of berth's", own + spec(1, 129, 99), "", ""},
		{"one whose index is another device's", spec(1, 128, 229), "", ""},
		{"of another device", spec(0, 128, 99), "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := devicetest.New(t, devicetest.Options{AMD: 2, Recorded: true})
			if c.text != "" {
				h.Write("/etc/cdi/amd.yaml", c.text)
			}
			dir := t.TempDir()
			grant := func() ([]berth.Grant, error) {
				p := pool(t, h.Root, func(cfg *device.PoolConfig) { cfg.Dir = dir })
				grants, _, err := p.Grants(t.Context(), asks("1"), []ledger.Device{{ID: h.AMD[1].UUID}}, nil)
				return grants, err
			}
			grants, err := grant()
			if c.says != "" {
				if stale := (*cdi.StaleError)(nil); !errors.As(err, &stale) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%v, want %s", err, c.says)
				}
				return
			}
			if err != nil || len(grants) != 1 {
				t.Fatal(grants, err)
			}
			g := grants[0]
			if g.CDI != c.cdi || strings.Contains(string(g.Edits), "FROM_DISK") != (c.cdi != "") {
				t.Errorf("%q: %s", g.CDI, g.Edits)
			}
			// Another process says the same, and learns of changes.
			if again, err := grant(); err != nil || fmt.Sprint(again) != fmt.Sprint(grants) {
				t.Errorf("%v, %v; want %v", again, err, grants)
			}
			if last := g.Nodes[len(g.Nodes)-1]; len(g.Nodes) != 2 || last.Minor != h.AMD[1].Node.Minor {
				t.Errorf("%+v", g.Nodes)
			}
			if c.cdi == "" {
				return
			}
			h.Write("/etc/cdi/amd.yaml", strings.Replace(c.text, "FROM_DISK", "CHANGED", 1))
			if again, err := grant(); err != nil || !strings.Contains(string(again[0].Edits), "CHANGED") {
				t.Errorf("%v, %v; the spec has changed", again, err)
			}
			h.Write(device.NodeList, "c 10:9 0660 0:105 /dev/kfd\nc 10:3 0660 0:105 /dev/dri/renderD129\nc 10:4 0660 0:105 /dev/dri/renderD128\n")
			if _, err := grant(); err == nil || !strings.Contains(err.Error(), "is stale") {
				t.Errorf("%v; the nodes have changed", err)
			}
		})
	}
}

// stuck is a vendor whose driver does not answer.
type stuck struct {
	device.Injector
	until chan struct{}
}

func (s stuck) Devices(context.Context) ([]device.Device, error) {
	<-s.until
	return nil, nil
}

func TestDriverThatDoesNotAnswer(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{NVIDIA: 1, AMD: 1, Recorded: true})
	until := make(chan struct{})
	defer close(until)
	p := pool(t, h.Root, func(cfg *device.PoolConfig) {
		cfg.Timeout = 20 * time.Millisecond
		cfg.Vendors = []device.Injector{stuck{&amd.Injector{Driver: amd.NewDriver(openHost(t, h.Root))}, until}, cfg.Vendors[0]}
	})
	err := p.Check(t.Context(), asks("vendor=amd,count=1"))
	if want := "the driver of amd: unavailable: it has not answered for 20ms; look for its messages with: dmesg"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
	// Others' devices are lent all the same.
	if err := p.Check(t.Context(), asks("vendor=nvidia,count=1")); err != nil {
		t.Error(err)
	}
}

func TestMoreIsKept(t *testing.T) {
	asked := 0
	more := device.More(func(_ context.Context, devices []device.Device) ([]device.Device, error) {
		asked++
		all := append([]device.Device{}, devices...)
		for i := range all {
			all[i].Memory = 1 << 30
		}
		return all, nil
	}).Kept(filepath.Join(t.TempDir(), "dir", "more.json"))
	one := []device.Device{{UUID: "a"}}
	two := []device.Device{{UUID: "a"}, {UUID: "b"}}
	divided := []device.Device{{UUID: "a", Slices: []device.Slice{{UUID: "s"}}}}
	for i, c := range []struct {
		devices []device.Device
		asked   int
	}{{one, 1}, {one, 1}, {two, 2}, {two, 2}, {one, 3}, {divided, 4}, {divided, 5}} {
		all, err := more(t.Context(), c.devices)
		if err != nil || len(all) != len(c.devices) || all[0].Memory != 1<<30 || asked != c.asked {
			t.Errorf("%d: %v, %v; asked %d times", i, all, err, asked)
		}
	}
	failing := device.More(func(context.Context, []device.Device) ([]device.Device, error) { return nil, berth.ErrUnavailable }).Kept(filepath.Join(t.TempDir(), "f"))
	if _, err := failing(t.Context(), one); !errors.Is(err, berth.ErrUnavailable) {
		t.Error(err)
	}
}
