package devicetest

import (
	"fmt"
	"strings"

	"github.com/berth-project/berth/device"
)

const libraries = "/usr/lib/x86_64-linux-gnu/"

// driverNVIDIA makes what NVIDIA's driver has beside its GPUs.
func (h *Host) driverNVIDIA() {
	h.write("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  "+DriverVersion+"  Tue Mar  5 22:23:56 UTC 2024\n")
	for _, lib := range []string{"libcuda", "libnvidia-ml"} {
		h.write(libraries+lib+".so."+DriverVersion, "no library\n")
	}
	h.write("/usr/bin/nvidia-smi", "no program\n")
	h.node("/dev/nvidiactl", 234, 0)
	h.node("/dev/nvidia-uvm", 200, 0)
}

func (h *Host) addNVIDIA(i, of int) {
	pci := fmt.Sprintf("0000:%02x:00.0", 0x10+i)
	g := GPU{UUID: fmt.Sprintf("GPU-%08x-%04x-4000-8000-%012x", h.unique>>32, h.unique>>16&0xffff, h.unique&0xffff<<8|uint64(i)), Index: i}
	g.Node = h.node(fmt.Sprintf("/dev/nvidia%d", minor(i)), minor(i), 0)
	h.write("/proc/driver/nvidia/gpus/"+pci+"/information", fmt.Sprintf(
		"Model: \t\t NVIDIA H200\nGPU UUID: \t %s\nBus Type: \t PCIe\nBus Location: \t %s\nDevice Minor: \t %d\nGPU Excluded:\t No\n", g.UUID, pci, g.Node.Minor))
	h.write("/sys/bus/pci/devices/"+pci+"/vendor", "0x10de\n")
	h.write("/sys/bus/pci/devices/"+pci+"/class", "0x030200\n")
	h.write("/sys/bus/pci/devices/"+pci+"/numa_node", numa(i, of))
	h.NVIDIA = append(h.NVIDIA, g)
}

// sliceMinor is the number of the node of a slice: that of the last devices that can be opened on a plain host comes first, as the
// first are GPUs'. capMinor is that of its GPU instance, which has no driver.
func sliceMinor(i int) uint32 {
	if i < 2 {
		return minor(3 - i)
	}
	return uint32(160 + i)
}

func capMinor(i int) uint32 { return uint32(140 + i) }

// divide divides the first GPU into slices: each is a GPU instance with one compute instance.
func (h *Host) divide(n int) {
	gpu := &h.NVIDIA[0]
	var minors strings.Builder
	fmt.Fprintln(&minors, "config 1\nmonitor 2")
	for i := range n {
		instance := fmt.Sprintf("gi%d", i+1)
		s := Slice{UUID: fmt.Sprintf("MIG-%s/%d/0", gpu.UUID, i+1)}
		for _, access := range []struct {
			name  string
			minor uint32
			node  *device.Node
		}{{instance, capMinor(i), &s.Cap}, {instance + "/ci0", sliceMinor(i), &s.Node}} {
			*access.node = h.node(fmt.Sprintf("/dev/nvidia-caps/nvidia-cap%d", access.minor), access.minor, 0)
			fmt.Fprintf(&minors, "gpu%d/%s/access %d\n", gpu.Node.Minor, access.name, access.minor)
			h.write(fmt.Sprintf("/proc/driver/nvidia/capabilities/gpu%d/mig/%s/access", gpu.Node.Minor, access.name), fmt.Sprintf("DeviceFileMinor: %d\n", access.minor))
		}
		gpu.Slices = append(gpu.Slices, s)
	}
	h.write("/proc/driver/nvidia-caps/mig-minors", minors.String())
}

// renderGID is the group of AMD's nodes, which others may not open.
const renderGID = 105

func (h *Host) addAMD(i, of int) {
	pci := fmt.Sprintf("0000:%02x:00.0", 0x50+i)
	id := h.unique + uint64(i)
	g := GPU{UUID: fmt.Sprintf("GPU-%016x", id), Index: i}
	render := 128 + i
	g.Node = h.node(fmt.Sprintf("/dev/dri/renderD%d", render), minor(i), renderGID)

	driver := "/sys/module/amdgpu/drivers/pci:amdgpu/" + pci
	h.write("/sys/module/amdgpu/version", "6.10.5\n")
	h.write(driver+fmt.Sprintf("/drm/renderD%d/dev", render), fmt.Sprintf("226:%d\n", render))
	h.write("/sys/bus/pci/devices/"+pci+"/product_name", "AMD Instinct MI300X\n")
	h.write("/sys/bus/pci/devices/"+pci+"/mem_info_vram_total", fmt.Sprintln(int64(AMDMemory)))
	h.write("/sys/bus/pci/devices/"+pci+"/mem_info_vram_used", fmt.Sprintln(int64(AMDUsed)))
	h.write("/sys/bus/pci/devices/"+pci+"/gpu_busy_percent", fmt.Sprintln(AMDBusy))
	h.write("/sys/bus/pci/devices/"+pci+"/hwmon/hwmon3/energy1_input", "1000000\n")
	h.write("/sys/bus/pci/devices/"+pci+"/numa_node", numa(i, of))
	hive := 0
	if of-i <= h.hive {
		hive = 77
	}
	h.write(fmt.Sprintf("/sys/class/kfd/kfd/topology/nodes/%d/properties", 1+i), fmt.Sprintf(
		"hive_id %d\nsimd_count 304\ngfx_target_version 90402\nlocation_id %d\ndomain 0\ndrm_render_minor %d\nunique_id %d\n", hive, (0x50+i)<<8, render, id))
	h.AMD = append(h.AMD, g)
}
