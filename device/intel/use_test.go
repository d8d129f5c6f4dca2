package intel

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/device"
)

func put(t *testing.T, file, text string) {
	t.Helper()
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = os.WriteFile(file, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// What the processes of a container have open counts once, however often; what they have of other GPUs, and what other
// processes have, does not.
func TestGauge(t *testing.T) {
	root, proc := t.TempDir(), t.TempDir()
	const pci = "0000:03:00.0"
	put(t, root+"/sys/bus/pci/devices/"+pci+"/hwmon/hwmon2/energy1_input", "5000000\n")
	put(t, root+"/device-nodes", "")
	info := func(pid, fd, client int, pci string, kib, work int64, unit string) {
		put(t, fmt.Sprintf("%s/%d/fdinfo/%d", proc, pid, fd), fmt.Sprintf(
			"pos:\t0\ndrm-driver:\ti915\ndrm-client-id:\t%d\ndrm-pdev:\t%s\ndrm-resident-vram0:\t%d KiB\ndrm-resident-system0:\t9 KiB\n%s", client, pci, kib, fmt.Sprintf(unit, work)))
	}
	const ns, cycles = "drm-engine-render:\t%d ns\ndrm-engine-capacity-render:\t1\n", "drm-cycles-ccs:\t%d\ndrm-total-cycles-ccs:\t1000\n"
	put(t, proc+"/10/task/10/children", "11 ")
	put(t, proc+"/10/task/12/children", "13")
	info(10, 3, 1, pci, 1024, 0, ns)
	info(10, 4, 1, pci, 1024, 0, ns)
	info(13, 3, 2, pci, 1, 0, ns)
	info(11, 3, 3, "0000:04:00.0", 1<<20, 0, ns)
	info(99, 3, 4, pci, 1<<20, 0, ns)
	put(t, proc+"/10/fdinfo/0", "pos:\t0\n")
	h, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	g := NewDriver(h).Gauge(device.Gauged{Unit: device.Unit{Device: device.Device{PCI: pci}}, PID: 10}).(*gauge)
	g.proc = proc
	if diff := cmp.Diff(device.Reading{Memory: new(int64(1025 << 10)), Energy: new(5.0)}, g.Read()); diff != "" || g.Lacks() != "" {
		t.Error(diff, g.Lacks())
	}
	info(10, 3, 1, pci, 1024, int64(time.Hour), ns)
	info(10, 4, 1, pci, 1024, int64(time.Hour), ns)
	if r := g.Read(); r.Busy == nil || *r.Busy != 100 {
		t.Errorf("busy %v", r.Busy)
	}
	before, after := device.Clients{Engines: map[string]int64{"ccs": 100, "bcs": 5}, Total: map[string]int64{"ccs": 1000, "bcs": 1000}}, device.Clients{Engines: map[string]int64{"ccs": 400, "bcs": 6}, Total: map[string]int64{"ccs": 2000, "bcs": 2000}}
	if b := busy(before, after, time.Second); b == nil || *b != 30 {
		t.Errorf("busy %v", b)
	}
	info(10, 3, 1, pci, 1024, 77, cycles)
	if c := device.FindClients(proc, []int{10}, pci); c.Engines["ccs"] != 77 || c.Total["ccs"] != 1000 {
		t.Errorf("%+v", c)
	}
	share := NewDriver(h).Gauge(device.Gauged{Unit: device.Unit{Device: device.Device{PCI: pci}}, PID: 10, Shared: true})
	if r := share.Read(); r.Energy != nil || share.Lacks() == "" {
		t.Errorf("%+v, %q", r, share.Lacks())
	}
}
