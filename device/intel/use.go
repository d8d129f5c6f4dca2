package intel

import (
	"time"

	"github.com/berth-project/berth/device"
)

// Use says how busy a GPU is: the driver tells it for each process alone, not for the GPU.
func (d *Driver) Use(device.Device) device.Use {
	return device.Use{Unknown: "the driver tells it for each process, not for the GPU"}
}

// Gauge measures what the processes of a container do on a GPU, and what it uses of energy.
func (d *Driver) Gauge(of device.Gauged) device.Gauge {
	return &gauge{host: d.host, of: of, dir: pciDevices + "/" + of.Device.PCI, proc: "/proc"}
}

type gauge struct {
	host *device.Host
	of   device.Gauged
	dir  string
	proc string

	at   time.Time // of the reading before
	last device.Clients
}

// Read reads what the driver says of the processes' descriptors, and of the GPU's energy.
func (g *gauge) Read() (r device.Reading) {
	now, found := time.Now(), device.FindClients(g.proc, device.Tree(g.proc, g.of.PID), g.of.Device.PCI)
	r.Memory = found.Memory
	if g.last.Seen && found.Seen {
		r.Busy = busy(g.last, found, now.Sub(g.at))
	}
	g.at, g.last = now, found
	if !g.of.Shared {
		r.Energy, r.Power = g.host.Power(g.dir)
	}
	return r
}

// busy is the work of the busiest kind of engine between two looks, in percent; nil if the driver does not say. Of
// clients that have come or gone meanwhile it does not know.
func busy(before, after device.Clients, passed time.Duration) *float64 {
	var most *float64
	for name, work := range after.Engines {
		base := float64(passed.Nanoseconds())
		if total, ok := after.Total[name]; ok {
			base = float64(total - before.Total[name])
		}
		if base <= 0 {
			continue
		}
		percent := min(100, max(0, 100*float64(work-before.Engines[name])/base))
		if most == nil || *most < percent {
			most = &percent
		}
	}
	return most
}

// Lacks says what Read leaves out.
func (g *gauge) Lacks() string {
	if g.of.Shared {
		return "of its energy, the driver counts the whole GPU, of which this is a part"
	}
	if energy, power := g.host.Power(g.dir); energy == nil && power == nil {
		return "the driver does not tell its energy"
	}
	return ""
}
