package amd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/device"
)

// put writes a file of a copy of a recorded host.
func put(t *testing.T, root, name, text string) {
	t.Helper()
	file := filepath.Join(root, name)
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if err == nil {
		err = os.WriteFile(file, []byte(text), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// The whole GPU has gauges of its own; of a partition, or of a share, the compute driver tells which process has how much
// memory, and nobody how busy it is.
func TestGauge(t *testing.T) {
	root := copyHost(t, "mi300x-cpx")
	put(t, root, "sys/bus/pci/devices/0000:26:00.0/gpu_busy_percent", "87\n")
	put(t, root, "sys/bus/pci/devices/0000:26:00.0/mem_info_vram_used", "123456789\n")
	put(t, root, "sys/bus/pci/devices/0000:26:00.0/hwmon/hwmon7/power1_average", "700000000\n")
	put(t, root, "sys/bus/pci/devices/0000:05:00.0/gpu_busy_percent", "11\n")
	h := host(t, root)
	gpus, err := Find(h)
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{3, 8} {
		put(t, root, topology+"/"+gpus[i].node.number+"/gpu_id", fmt.Sprintln(1000+i))
	}
	for pid, n := range map[int]int{os.Getpid(): 7, 1: 100} {
		for _, i := range []int{3, 8} {
			put(t, root, fmt.Sprintf("/sys/class/kfd/kfd/proc/%d/vram_%d", pid, 1000+i), fmt.Sprintln(n+i))
		}
	}
	devices, err := NewDriver(h).Devices(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	of := func(i int, shared bool) device.Gauged {
		return device.Gauged{Unit: device.Unit{Device: devices[i]}, Shared: shared, PID: os.Getpid()}
	}
	for name, c := range map[string]struct {
		of    device.Gauged
		want  device.Reading
		lacks string
	}{
		"whole":     {of(8, false), device.Reading{Busy: new(87.0), Memory: new(int64(123456789)), Power: new(700.0)}, ""},
		"share":     {of(8, true), device.Reading{Memory: new(int64(15))}, "of how busy it is and of its energy, " + wholeOnly},
		"partition": {of(3, false), device.Reading{Memory: new(int64(10))}, "of how busy it is and of its energy, " + wholeOnly},
		"no id":     {of(4, false), device.Reading{}, "of how busy it is and of its energy, " + wholeOnly},
	} {
		t.Run(name, func(t *testing.T) {
			g := NewDriver(h).Gauge(c.of)
			if diff := cmp.Diff(c.want, g.Read()); diff != "" || g.Lacks() != c.lacks {
				t.Error(diff, g.Lacks())
			}
		})
	}
	bare := NewDriver(host(t, copyHost(t, "mi300x-cpx"))).Gauge(of(8, false))
	if bare.Read() != (device.Reading{}) || bare.Lacks() != notTold {
		t.Errorf("%+v, %q", bare.Read(), bare.Lacks())
	}
}
