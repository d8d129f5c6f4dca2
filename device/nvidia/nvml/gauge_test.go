//go:build cgo

package nvml

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/dgxa100"
	"github.com/NVIDIA/go-nvml/pkg/nvml/mock/server"
	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/device"
)

// gaugedHost is a mock host whose first GPU can be measured; lacking are functions that its library has not.
func gaugedHost(lacking ...string) (*server.Server, *server.Device) {
	s := dgxa100.New()
	s.ExtensionsFunc = func() nvml.ExtendedInterface {
		return &mock.ExtendedInterface{LookupSymbolFunc: func(name string) error {
			if slices.Contains(lacking, name) {
				return errors.New("undefined symbol")
			}
			return nil
		}}
	}
	d := s.Devices[0].(*server.Device)
	d.GetMemoryInfo_v2Func = func() (nvml.Memory_v2, nvml.Return) {
		return nvml.Memory_v2{Total: 40 << 30, Reserved: 1 << 30, Used: 7 << 30}, nvml.SUCCESS
	}
	d.GetMemoryInfoFunc = func() (nvml.Memory, nvml.Return) {
		return nvml.Memory{Total: 40 << 30, Used: 8 << 30}, nvml.SUCCESS
	}
	d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) { return nvml.Utilization{Gpu: 42}, nvml.SUCCESS }
	d.GetTotalEnergyConsumptionFunc = func() (uint64, nvml.Return) { return 123456, nvml.SUCCESS }
	d.GetPowerUsageFunc = func() (uint32, nvml.Return) { return 250000, nvml.SUCCESS }
	return s, d
}

func unitOf(d *server.Device) device.Unit { return device.Unit{Device: device.Device{UUID: d.UUID}} }

func TestGauge(t *testing.T) {
	for name, c := range map[string]struct {
		lacking []string
		want    device.Reading
	}{
		"all":        {nil, device.Reading{Memory: new(int64(7 << 30)), Busy: new(42.0), Energy: new(123.456)}},
		"old driver": {[]string{"nvmlDeviceGetMemoryInfo_v2", "nvmlDeviceGetTotalEnergyConsumption"}, device.Reading{Memory: new(int64(8 << 30)), Busy: new(42.0), Power: new(250.0)}},
	} {
		t.Run(name, func(t *testing.T) {
			s, d := gaugedHost(c.lacking...)
			g := openGauges(s).Gauge(device.Gauged{Unit: unitOf(d)})
			if diff := cmp.Diff(c.want, g.Read()); diff != "" || g.Lacks() != "" {
				t.Error(diff, g.Lacks())
			}
		})
	}
}

// What a GPU does not tell is unknown, not zero.
func TestGaugeLacks(t *testing.T) {
	s, d := gaugedHost()
	d.GetUtilizationRatesFunc = func() (nvml.Utilization, nvml.Return) {
		return nvml.Utilization{}, nvml.ERROR_NOT_SUPPORTED
	}
	g := openGauges(s).Gauge(device.Gauged{Unit: unitOf(d)})
	if r := g.Read(); r.Busy != nil || r.Memory == nil || g.Lacks() == "" {
		t.Errorf("%+v, %q", r, g.Lacks())
	}
}

// Of a share, the memory of the container's processes counts, and no other's.
func TestGaugeOfShare(t *testing.T) {
	child := exec.Command("sleep", "100")
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = child.Process.Kill(); _ = child.Wait() }()
	s, d := gaugedHost()
	d.GetComputeRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{
			{Pid: uint32(child.Process.Pid), UsedGpuMemory: 3 << 20},
			{Pid: uint32(os.Getppid()), UsedGpuMemory: 50 << 20},
		}, nvml.SUCCESS
	}
	d.GetGraphicsRunningProcessesFunc = func() ([]nvml.ProcessInfo, nvml.Return) {
		return []nvml.ProcessInfo{{Pid: uint32(child.Process.Pid), UsedGpuMemory: 3 << 20}, {Pid: uint32(os.Getpid()), UsedGpuMemory: 4 << 20}}, nvml.SUCCESS
	}
	g := openGauges(s).Gauge(device.Gauged{Unit: unitOf(d), Shared: true, PID: os.Getpid()})
	if diff := cmp.Diff(device.Reading{Memory: new(int64(7 << 20))}, g.Read()); diff != "" || g.Lacks() == "" {
		t.Error(diff, g.Lacks())
	}
}

// A slice has memory of its own, and no counters.
func TestGaugeOfSlice(t *testing.T) {
	s, d := gaugedHost()
	s.DeviceGetHandleByUUIDFunc = func(uuid string) (nvml.Device, nvml.Return) {
		if uuid != "MIG-1" {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return d, nvml.SUCCESS
	}
	of := device.Gauged{Unit: device.Unit{Device: device.Device{UUID: d.UUID}, Slice: &device.Slice{UUID: "MIG-1"}}}
	g := openGauges(s).Gauge(of)
	if diff := cmp.Diff(device.Reading{Memory: new(int64(7 << 30))}, g.Read()); diff != "" || g.Lacks() == "" {
		t.Error(diff, g.Lacks())
	}
	of.Slice = &device.Slice{UUID: "MIG-2"}
	if g := openGauges(s).Gauge(of); g.Lacks() == "" || g.Read() != (device.Reading{}) {
		t.Error("a slice that is not there can be measured")
	}
}

// What is measured is found by its GPU's address: the library would open others in search of a UUID.
func TestGaugeByAddress(t *testing.T) {
	s, d := gaugedHost()
	s.DeviceGetHandleByUUIDFunc = func(string) (nvml.Device, nvml.Return) { return nil, nvml.ERROR_NOT_FOUND }
	whole := device.Unit{Device: device.Device{UUID: d.UUID, PCI: d.PciBusID}}
	if g := openGauges(s).Gauge(device.Gauged{Unit: whole}); g.Lacks() != "" || *g.Read().Memory != 7<<30 {
		t.Error(g.Lacks())
	}
	d.GetMaxMigDeviceCountFunc = func() (int, nvml.Return) { return 7, nvml.SUCCESS }
	d.GetMigDeviceHandleByIndexFunc = func(i int) (nvml.Device, nvml.Return) {
		if i == 0 {
			return nil, nvml.ERROR_NOT_FOUND
		}
		return &mock.Device{
			GetGpuInstanceIdFunc:     func() (int, nvml.Return) { return i, nvml.SUCCESS },
			GetComputeInstanceIdFunc: func() (int, nvml.Return) { return 0, nvml.SUCCESS },
			GetMemoryInfo_v2Func: func() (nvml.Memory_v2, nvml.Return) {
				return nvml.Memory_v2{Used: uint64(i) << 30}, nvml.SUCCESS
			},
		}, nvml.SUCCESS
	}
	slice := device.Unit{Device: whole.Device, Slice: &device.Slice{UUID: "MIG-1", GI: 3}}
	if r := openGauges(s).Gauge(device.Gauged{Unit: slice}).Read(); r.Memory == nil || *r.Memory != 3<<30 {
		t.Error(r)
	}
	// Another GPU has the address now.
	whole.Device.UUID = "GPU-another"
	if g := openGauges(s).Gauge(device.Gauged{Unit: whole}); g.Lacks() == "" || g.Read() != (device.Reading{}) {
		t.Error("another GPU is measured")
	}
}

func TestNoGauges(t *testing.T) {
	s, d := gaugedHost()
	s.InitFunc = func() nvml.Return { return nvml.ERROR_LIBRARY_NOT_FOUND }
	if g := openGauges(s).Gauge(device.Gauged{Unit: unitOf(d)}); g.Lacks() == "" || g.Read() != (device.Reading{}) {
		t.Error(g.Lacks())
	}
}
