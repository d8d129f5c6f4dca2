package amd

import (
	"strconv"

	"github.com/berth-project/berth/device"
)

// Use says how busy a GPU is, as the driver does. Of a partition it says nothing: the driver counts the whole
// GPU.
func (d *Driver) Use(dev device.Device) device.Use {
	dir := "/sys/bus/pci/devices/" + dev.PCI
	if mode := partition(d.host, dir); mode != "" && mode[0] != 's' {
		return device.Use{}
	}
	var u device.Use
	if n, err := strconv.Atoi(text(d.host, dir+"/gpu_busy_percent")); err == nil {
		u.Busy = &n
	}
	if n, err := strconv.ParseInt(text(d.host, dir+"/mem_info_vram_used"), 10, 64); err == nil {
		u.Memory = &n
	}
	return u
}
