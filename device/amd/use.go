package amd

import (
	"fmt"
	"strconv"

	"github.com/berth-project/berth/device"
)

// Use says how busy a GPU is, as the driver does. Of a partition it says nothing: the driver counts the whole
// GPU.
func (d *Driver) Use(dev device.Device) device.Use {
	dir := "/sys/bus/pci/devices/" + dev.PCI
	if _, divided := d.again(dev); divided {
		return device.Use{Unknown: wholeOnly}
	}
	var u device.Use
	if n, err := strconv.Atoi(d.host.Text(dir + "/gpu_busy_percent")); err == nil {
		u.Busy = &n
	}
	if n, err := strconv.ParseInt(d.host.Text(dir+"/mem_info_vram_used"), 10, 64); err == nil {
		u.Memory = &n
	}
	if u.Busy == nil || u.Memory == nil {
		u.Unknown = notTold
	}
	return u
}

const (
	wholeOnly = "the driver counts the whole GPU, of which this is a part"
	notTold   = "the driver does not tell it"
)

// again finds a device again, the zero GPU if it is not there any more, and whether it is a part of one that is divided.
func (d *Driver) again(dev device.Device) (found GPU, divided bool) {
	gpus, _ := Find(d.host)
	for _, g := range gpus {
		if g.Render == dev.Minor {
			found = g
		}
	}
	for _, g := range gpus {
		if g.node.parent == found.node.parent && (g.Render != found.Render || g.Partition != "" && g.Partition[0] != 's') {
			divided = true
		}
	}
	return found, divided
}

// Gauge measures a GPU or a partition, or the share of it that the processes of a container have.
func (d *Driver) Gauge(of device.Gauged) device.Gauge {
	g := &gauge{host: d.host, of: of, dir: "/sys/bus/pci/devices/" + of.Device.PCI}
	gpu, divided := d.again(of.Device)
	g.part = of.Shared || divided
	if gpu.node.number != "" {
		g.id = d.host.Text(topology + "/" + gpu.node.number + "/gpu_id")
	}
	return g
}

type gauge struct {
	host *device.Host
	of   device.Gauged
	dir  string
	part bool   // of a GPU that others have parts of
	id   string // for the compute driver; "" if unknown
}

// Read reads the driver's files.
func (g *gauge) Read() (r device.Reading) {
	if g.part {
		r.Memory = g.ofProcesses()
		return r
	}
	if n, err := strconv.ParseFloat(g.host.Text(g.dir+"/gpu_busy_percent"), 64); err == nil {
		r.Busy = &n
	}
	if n, err := strconv.ParseInt(g.host.Text(g.dir+"/mem_info_vram_used"), 10, 64); err == nil {
		r.Memory = &n
	}
	r.Energy, r.Power = g.host.Power(g.dir)
	return r
}

// ofProcesses is the memory that the compute driver says the container's processes have; nil if it says nothing.
func (g *gauge) ofProcesses() *int64 {
	const processes = "/sys/class/kfd/kfd/proc"
	if _, err := g.host.Stat(processes); err != nil || g.id == "" {
		return nil
	}
	var sum int64
	for _, pid := range device.Tree("/proc", g.of.PID) {
		n, _ := strconv.ParseInt(g.host.Text(fmt.Sprintf("%s/%d/vram_%s", processes, pid, g.id)), 10, 64)
		sum += n
	}
	return &sum
}

// Lacks says what Read leaves out.
func (g *gauge) Lacks() string {
	if g.part {
		return "of how busy it is and of its energy, " + wholeOnly
	}
	if r := g.Read(); r.Busy == nil || r.Memory == nil || r.Energy == nil && r.Power == nil {
		return notTold
	}
	return ""
}
