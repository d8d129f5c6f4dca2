package device_test

import (
	"context"
	"errors"
	"fmt"
	"os"
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
	second := int(devicetest.New(t, devicetest.Options{AMD: 2}).AMD[1].Node.Minor)
	for _, c := range []struct {
		name, text string
		cdi        string
		says       string
	}{
		{"none", "", "", ""},
		{"one that fits", spec(1, 129, second), "amd.com/gpu=1", ""},
		{"a stale one", spec(1, 129, 99), "", "CDI spec /etc/cdi/amd.yaml is stale: /dev/dri/renderD129 is 10:99 there and " + fmt.Sprintf("10:%d", second) + " on this host; write it anew: amd-ctk cdi generate --output=/etc/cdi/amd.yaml"},
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

// TestRenew: a spec of berth's that does not fit the host is told, and written anew where that is to be done, once for all devices.
func TestRenew(t *testing.T) {
	const text = "# Written by berth, which may write it again.\ncdiVersion: 0.6.0\nkind: amd.com/gpu\ndevices: [{name: \"0\", containerEdits: {deviceNodes: [{path: /dev/kfd}, {path: /dev/dri/renderD128, type: c, major: 10, minor: %d}]}}, {name: \"1\", containerEdits: {deviceNodes: [{path: /dev/kfd}, {path: /dev/dri/renderD129, type: c, major: 10, minor: %d}]}}]\n"
	writes := func(minor, second int) func(*devicetest.Host, string) error {
		return func(h *devicetest.Host, file string) error {
			h.Write(file, fmt.Sprintf(text, minor, second))
			return nil
		}
	}
	gpus := devicetest.New(t, devicetest.Options{AMD: 2}).AMD
	for name, c := range map[string]struct {
		renew func(*devicetest.Host, string) error
		cdi   string
		says  string
	}{
		"told alone":      {nil, "", "/etc/cdi/amd.yaml is stale: /dev/dri/renderD128 is 10:99 there and 10:229 on this host; write it anew: berth cdi generate --vendor amd --output /etc/cdi/amd.yaml; until then it does not count"},
		"written anew":    {writes(int(gpus[0].Node.Minor), int(gpus[1].Node.Minor)), "amd.com/gpu=0", "on this host; berth has written it anew"},
		"not to be":       {func(*devicetest.Host, string) error { return errors.New("no hooks") }, "", "a CDI spec is not written anew: no hooks"},
		"and stale again": {writes(98, 101), "", "is 10:98 there"},
	} {
		t.Run(name, func(t *testing.T) {
			h := devicetest.New(t, devicetest.Options{AMD: 2, Recorded: true})
			h.Write("/etc/cdi/amd.yaml", fmt.Sprintf(text, 99, 102))
			calls := 0
			p := pool(t, h.Root, func(cfg *device.PoolConfig) {
				if c.renew != nil {
					cfg.Renew = func(_ context.Context, file string) error {
						calls++
						return c.renew(h, file)
					}
				}
			})
			grants, notes, err := p.Grants(t.Context(), asks("2"), []ledger.Device{{ID: h.AMD[0].UUID}, {ID: h.AMD[1].UUID}}, nil)
			if err != nil || len(grants) != 2 || grants[0].CDI != c.cdi || (grants[1].CDI != "") != (c.cdi != "") || !strings.Contains(strings.Join(notes, "\n"), c.says) {
				t.Errorf("%+v, %q, %v; want %q and %q", grants, notes, err, c.cdi, c.says)
			}
			if c.renew != nil && calls != 1 {
				t.Errorf("written anew %d times, want once", calls)
			}
		})
	}
}

// TestRenewAgain: a spec that could not be written anew is tried again at a later lease of the same pool, not at each, and
// the first error is told until it succeeds.
func TestRenewAgain(t *testing.T) {
	const text = "# Written by berth, which may write it again.\ncdiVersion: 0.6.0\nkind: amd.com/gpu\ndevices: [{name: \"0\", containerEdits: {deviceNodes: [{path: /dev/kfd}, {path: /dev/dri/renderD128, type: c, major: 10, minor: %d}]}}]\n"
	h := devicetest.New(t, devicetest.Options{AMD: 1, Recorded: true})
	h.Write("/etc/cdi/amd.yaml", fmt.Sprintf(text, 99))
	for name, again := range map[string]time.Duration{"soon": time.Nanosecond, "not yet": 0} {
		t.Run(name, func(t *testing.T) {
			h.Write("/etc/cdi/amd.yaml", fmt.Sprintf(text, 99))
			calls := 0
			p := pool(t, h.Root, func(cfg *device.PoolConfig) {
				cfg.RenewAgain = again
				cfg.Renew = func(_ context.Context, file string) error {
					switch calls++; calls {
					case 1:
						return errors.New("no hooks")
					case 2:
						return errors.New("the disk is full")
					}
					h.Write(file, fmt.Sprintf(text, 229))
					return nil
				}
			})
			type answer struct {
				cdi, says string
				calls     int
			}
			want := []answer{
				{"", "a CDI spec is not written anew: no hooks", 1},
				{"", "a CDI spec is not written anew: the disk is full (at first: no hooks)", 2},
				{"amd.com/gpu=0", "berth has written it anew", 3},
				{"amd.com/gpu=0", "", 3},
			}
			if again == 0 {
				want = []answer{want[0], want[0]}
			}
			for i, w := range want {
				grants, notes, err := p.Grants(t.Context(), asks("1"), []ledger.Device{{ID: h.AMD[0].UUID}}, nil)
				if err != nil || len(grants) != 1 || grants[0].CDI != w.cdi || calls != w.calls || !strings.Contains(strings.Join(notes, "\n"), w.says) || (w.says == "") != (len(notes) == 0) {
					t.Errorf("lease %d: %+v, %q, %v, %d tries; want %+v", i, grants, notes, err, calls, w)
				}
			}
		})
	}
}

// TestStaleIsKept: that a spec of berth's does not fit is known to the next process, as long as it differs in the same.
func TestStaleIsKept(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 1, Recorded: true})
	const text = "# Written by berth, which may write it again.\ncdiVersion: 0.6.0\nkind: amd.com/gpu\ndevices: [{name: \"0\", containerEdits: {deviceNodes: [{path: /dev/kfd}, {path: /dev/dri/renderD128, type: c, major: 10, minor: 99}]}}]\n"
	h.Write("/etc/cdi/amd.yaml", text)
	dir := t.TempDir()
	grant := func(cdi, says string) {
		t.Helper()
		p := pool(t, h.Root, func(cfg *device.PoolConfig) { cfg.Dir = dir })
		grants, notes, err := p.Grants(t.Context(), asks("1"), []ledger.Device{{ID: h.AMD[0].UUID}}, nil)
		if err != nil || len(grants) != 1 || grants[0].CDI != cdi || (says == "") != (len(notes) == 0) || !strings.Contains(strings.Join(notes, "\n"), says) {
			t.Errorf("%+v, %q, %v; want %q and %q", grants, notes, err, cdi, says)
		}
	}
	grant("", "is 10:99 there and 10:229 on this host")
	files, _ := filepath.Glob(filepath.Join(dir, "spec-*.json"))
	if len(files) != 1 {
		t.Fatalf("kept %v", files)
	}
	data, err := os.ReadFile(files[0])
	if err != nil {
		t.Fatal(err)
	}
	// What is kept is what is said, and not what a look at the file would say.
	if err := os.WriteFile(files[0], []byte(strings.Replace(string(data), "write it anew", "as was kept", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	grant("", "as was kept")
	h.Write(device.NodeList, "c 10:234 0666 0:0 /dev/kfd\nc 10:98 0666 0:0 /dev/dri/renderD128\n")
	grant("", "is 10:99 there and 10:98 on this host; write it anew")
	h.Write(device.NodeList, "c 10:234 0666 0:0 /dev/kfd\nc 10:99 0666 0:0 /dev/dri/renderD128\n")
	grant("amd.com/gpu=0", "")
}

// TestUnreadSpecs: a spec that makes no sense is told, by each process, and what was asked for by a name that it may have is refused.
func TestUnreadSpecs(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 1, Recorded: true})
	h.Write("/etc/cdi/amd.yaml", "cdiVersion: 0.6.0\nkind: amd.com/gpu\ndevises: []\n")
	dir := t.TempDir()
	grant := func(request string) ([]string, error) {
		p := pool(t, h.Root, func(cfg *device.PoolConfig) { cfg.Dir = dir })
		_, notes, err := p.Grants(t.Context(), asks(request), []ledger.Device{{ID: h.AMD[0].UUID}}, nil)
		return notes, err
	}
	for range 2 {
		if notes, err := grant("vendor=amd,count=1"); err != nil || len(notes) != 1 || !strings.Contains(notes[0], "/etc/cdi/amd.yaml") || !strings.Contains(notes[0], "berth cdi check") {
			t.Errorf("%q, %v", notes, err)
		}
	}
	for _, name := range []string{"amd.com/gpu=0", "amd.com/gpu=all"} {
		if _, err := grant(name); !errors.Is(err, berth.ErrConflict) || !strings.Contains(err.Error(), "/etc/cdi/amd.yaml") {
			t.Errorf("%s: %v", name, err)
		}
	}
	// One of others may not have it.
	h.Write("/etc/cdi/amd.yaml", "kind: nvidia.com/gpu\ndevises: []\n")
	if notes, err := grant("amd.com/gpu=0"); err != nil || len(notes) != 1 {
		t.Errorf("of another vendor: %q, %v", notes, err)
	}
}

// TestSpecsOfSandboxes: specs of tasks' sandboxes, which come and go, are not looked at, and what is known of others stays known.
func TestSpecsOfSandboxes(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 1, Recorded: true})
	h.Write("/etc/cdi/amd.yaml", "cdiVersion: 0.6.0\nkind: amd.com/gpu\ndevices: [{name: \"0\", containerEdits: {deviceNodes: [{path: /dev/kfd}, {path: /dev/dri/renderD128}]}}]\n")
	dir := t.TempDir()
	kept := ""
	for i := range 2 {
		if i > 0 {
			h.Write("/var/run/cdi/"+cdi.LentName("me", "task", "nvidia")+".yaml", "half of a sp")
		}
		p := pool(t, h.Root, func(cfg *device.PoolConfig) { cfg.Dir = dir })
		grants, notes, err := p.Grants(t.Context(), asks("1"), []ledger.Device{{ID: h.AMD[0].UUID}}, nil)
		if err != nil || len(notes) != 0 || len(grants) != 1 || grants[0].CDI != "amd.com/gpu=0" {
			t.Errorf("%d: %+v, %q, %v", i, grants, notes, err)
		}
		files, _ := filepath.Glob(filepath.Join(dir, "spec-*.json"))
		if len(files) != 1 {
			t.Fatalf("%d: kept %v", i, files)
		}
		data, err := os.ReadFile(files[0])
		if err != nil || i > 0 && string(data) != kept {
			t.Errorf("%d: kept %s, %v; was %s", i, data, err, kept)
		}
		kept = string(data)
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
	// What can be switched to work in slices is asked about again after a minute: no file tells that it was.
	for _, divisible := range []bool{true, false} {
		on, asked, file := false, 0, filepath.Join(t.TempDir(), "mig.json")
		mig := device.More(func(_ context.Context, devices []device.Device) ([]device.Device, error) {
			asked++
			return []device.Device{{UUID: devices[0].UUID, Memory: 1, MIG: on, Divisible: divisible}}, nil
		}).Kept(file)
		for i, c := range []struct {
			age   time.Duration
			on    bool
			asked int
		}{{0, false, 1}, {0, false, 1}, {50 * time.Second, true, 1}, {time.Minute, true, 2}, {time.Minute, true, 3}, {time.Minute, false, 4}, {0, false, 4}, {-time.Hour, false, 5}} {
			if on = c.on; c.age != 0 {
				then := time.Now().Add(-c.age)
				if err := os.Chtimes(file, then, then); err != nil {
					t.Fatal(err)
				}
			}
			want := c.asked
			if !divisible {
				want = 1
			}
			if all, err := mig(t.Context(), one); err != nil || len(all) != 1 || asked != want || all[0].MIG != (divisible && c.on && want > 1) {
				t.Errorf("divisible %t, %d: %+v, %v; asked %d times", divisible, i, all, err, asked)
			}
		}
	}
	failing := device.More(func(context.Context, []device.Device) ([]device.Device, error) { return nil, berth.ErrUnavailable }).Kept(filepath.Join(t.TempDir(), "f"))
	if _, err := failing(t.Context(), one); !errors.Is(err, berth.ErrUnavailable) {
		t.Error(err)
	}
}
