package devicetest

import "fmt"

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
