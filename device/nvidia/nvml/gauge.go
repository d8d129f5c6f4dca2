//go:build cgo

package nvml

import (
	"slices"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/berth-project/berth/device"
)

// Gauges make gauges of GPUs from the library, for a process that may be left behind in a driver that hangs.
type Gauges struct {
	lib    nvml.Interface
	reason string // why there are none
}

// OpenGauges opens the library.
func OpenGauges(h *device.Host) *Gauges {
	if h.Root() != "/" {
		return &Gauges{reason: notHere}
	}
	return openGauges(nvml.New(nvml.WithLibraryPath(libraryOf(h))))
}

func openGauges(lib nvml.Interface) *Gauges {
	switch ret := lib.Init(); ret {
	case nvml.SUCCESS:
		return &Gauges{lib: lib}
	case nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED:
		return &Gauges{reason: "NVIDIA's management library is not there to be asked"}
	default:
		return &Gauges{reason: failed("initialise NVIDIA's management library", ret).Error()}
	}
}

// Gauge measures a GPU or a slice, or the share of one that the processes of a container have.
func (g *Gauges) Gauge(of device.Gauged) device.Gauge {
	if g.lib == nil {
		return device.Deaf(g.reason)
	}
	dev, ret := g.find(of.Unit)
	if ret != nvml.SUCCESS {
		return device.Deaf(failed("find "+of.UUID(), ret).Error())
	}
	return &gauge{dev: dev, of: of, has: g.has}
}

// find finds a GPU or a slice, by the GPU's address where that is known: one that is looked for by its UUID has the library
// open others on the way, which it then holds as long as the process runs.
func (g *Gauges) find(u device.Unit) (nvml.Device, nvml.Return) {
	if u.Device.PCI == "" {
		return g.lib.DeviceGetHandleByUUID(u.UUID())
	}
	dev, ret := g.lib.DeviceGetHandleByPciBusId(u.Device.PCI)
	if ret != nvml.SUCCESS {
		return g.lib.DeviceGetHandleByUUID(u.UUID())
	}
	if uuid, ret := dev.GetUUID(); ret != nvml.SUCCESS || uuid != u.Device.UUID {
		return g.lib.DeviceGetHandleByUUID(u.UUID())
	}
	if u.Slice == nil {
		return dev, nvml.SUCCESS
	}
	n, ret := dev.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil, ret
	}
	for i := range n {
		mig, ret := dev.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // the places of slices that are not made
		}
		gi, retG := mig.GetGpuInstanceId()
		ci, retC := mig.GetComputeInstanceId()
		if retG == nvml.SUCCESS && retC == nvml.SUCCESS && gi == u.Slice.GI && ci == u.Slice.CI {
			return mig, nvml.SUCCESS
		}
	}
	return nil, nvml.ERROR_NOT_FOUND
}

// has reports whether the library has a function: calling one that an old driver has not would end the process.
func (g *Gauges) has(function string) bool { return g.lib.Extensions().LookupSymbol(function) == nil }

type gauge struct {
	dev nvml.Device
	of  device.Gauged
	has func(function string) bool
}

// Read asks the library.
func (g *gauge) Read() (r device.Reading) {
	if g.of.Shared {
		r.Memory = g.ofProcesses()
		return r
	}
	r.Memory = g.memory()
	if g.of.Slice != nil {
		return r
	}
	if u, ret := g.dev.GetUtilizationRates(); ret == nvml.SUCCESS {
		busy := float64(u.Gpu)
		r.Busy = &busy
	}
	r.Energy, r.Power = g.energy()
	return r
}

// memory is what is in use of the whole; nil if the library does not say.
func (g *gauge) memory() *int64 {
	if g.has("nvmlDeviceGetMemoryInfo_v2") {
		if m, ret := g.dev.GetMemoryInfo_v2(); ret == nvml.SUCCESS {
			used := int64(m.Used)
			return &used
		}
	}
	m, ret := g.dev.GetMemoryInfo() // counts what the driver keeps for itself, too
	if ret != nvml.SUCCESS {
		return nil
	}
	used := int64(m.Used)
	return &used
}

func (g *gauge) energy() (energy, power *float64) {
	const milli = 1e3
	if g.has("nvmlDeviceGetTotalEnergyConsumption") {
		if e, ret := g.dev.GetTotalEnergyConsumption(); ret == nvml.SUCCESS {
			joules := float64(e) / milli
			return &joules, nil
		}
	}
	p, ret := g.dev.GetPowerUsage()
	if ret != nvml.SUCCESS {
		return nil, nil
	}
	watts := float64(p) / milli
	return nil, &watts
}

// ofProcesses is the memory that processes of the container have; nil if the library does not say.
func (g *gauge) ofProcesses() *int64 {
	compute, ret := g.dev.GetComputeRunningProcesses()
	if ret != nvml.SUCCESS {
		return nil
	}
	all := slices.Clone(compute)
	if graphics, ret := g.dev.GetGraphicsRunningProcesses(); ret == nvml.SUCCESS {
		all = append(all, graphics...)
	}
	var sum int64
	seen := map[uint32]bool{}
	for _, p := range all {
		const unknown = ^uint64(0)
		if seen[p.Pid] || !(device.Process{PID: int(p.Pid)}).Descends([]int{g.of.PID}) {
			continue
		}
		if p.UsedGpuMemory == unknown {
			return nil
		}
		seen[p.Pid] = true
		sum += int64(p.UsedGpuMemory)
	}
	return &sum
}

// Lacks says what Read leaves out.
func (g *gauge) Lacks() string {
	switch {
	case g.of.Shared:
		return "of how busy it is and of its energy, the driver counts the whole GPU, of which this is a share"
	case g.of.Slice != nil:
		return "of how busy it is and of its energy, the driver counts the whole GPU, of which this is a slice"
	}
	r := g.Read()
	if r.Memory == nil || r.Busy == nil || r.Energy == nil && r.Power == nil {
		return "the driver does not tell all of it for this GPU"
	}
	return ""
}
