//go:build cgo

package nvml

import (
	"encoding/binary"
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/berth-project/berth/device"
)

// useless are answers of a GPU that is of no use any more.
var useless = map[nvml.Return]string{nvml.ERROR_GPU_IS_LOST: "GPU is lost", nvml.ERROR_RESET_REQUIRED: "GPU requires a reset"}

// recoveries are what the driver wants done before a GPU is used again, in NVIDIA's words.
var recoveries = map[nvml.DeviceGpuRecoveryAction]string{
	nvml.GPU_RECOVERY_ACTION_GPU_RESET: "GPU reset", nvml.GPU_RECOVERY_ACTION_NODE_REBOOT: "node reboot",
	nvml.GPU_RECOVERY_ACTION_DRAIN_P2P: "drain P2P", nvml.GPU_RECOVERY_ACTION_DRAIN_AND_RESET: "drain and reset",
	nvml.GPU_RECOVERY_ACTION_RECOVER_IMEX_DOMAIN: "recover IMEX domain", nvml.GPU_RECOVERY_ACTION_BUS_RESET: "bus reset",
	nvml.GPU_RECOVERY_ACTION_SYSTEM_REBOOT: "system reboot",
}

// addressesOf are the PCI addresses of all GPUs that the driver has, also of those that it has lost.
func addressesOf(h *device.Host) (all []string) {
	for _, dir := range h.Glob("/proc/driver/nvidia/gpus/*") {
		all = append(all, path.Base(dir))
	}
	return all
}

// lost finds the GPUs of these that are of no use any more, so that nothing else is known of them.
func lost(lib nvml.Interface, addresses []string) (gpus []GPU) {
	for _, pci := range addresses {
		dev, ret := lib.DeviceGetHandleByPciBusId(pci)
		if ret == nvml.SUCCESS {
			_, ret = dev.GetUUID()
		}
		if fault := useless[ret]; fault != "" {
			gpus = append(gpus, GPU{PCI: pci, Fault: &fault})
		}
	}
	return gpus
}

// askFault finds what keeps a GPU from being of use; nil if the library tells nothing of it. Counts of the GPU's whole life
// say nothing of today. Rows of memory that wait for a reset to be remapped do no harm: nothing is put there meanwhile.
func askFault(lib nvml.Interface, dev nvml.Device) *string {
	has := func(function string) bool { return lib.Extensions().LookupSymbol(function) == nil }
	var says []string
	_, ret := dev.GetMemoryInfo()
	known := ret == nvml.SUCCESS
	if fault := useless[ret]; fault != "" {
		return &fault
	}
	if has("nvmlDeviceGetRemappedRows") {
		if _, _, _, failed, ret := dev.GetRemappedRows(); ret == nvml.SUCCESS {
			known = true
			if failed {
				says = append(says, "row remapping failed")
			}
		}
	}
	if has("nvmlDeviceGetSramEccErrorStatus") {
		if e, ret := dev.GetSramEccErrorStatus(); ret == nvml.SUCCESS && e.BThresholdExceeded != 0 {
			says = append(says, "SRAM error threshold exceeded")
		}
	}
	if action, ok := recovery(dev); ok {
		// That is the driver's own word on the errors that it has counted: most do not outlive the process that met them.
		if action != nvml.GPU_RECOVERY_ACTION_NONE {
			what := recoveries[action]
			if what == "" {
				what = strconv.Itoa(int(action))
			}
			says = append(says, "recovery action: "+what)
		}
	} else if n, ret := dev.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC); ret == nvml.SUCCESS && n > 0 {
		says = append(says, fmt.Sprintf("%d volatile uncorrectable ECC errors", n))
	}
	if !known && says == nil {
		return nil
	}
	fault := strings.Join(says, "; ")
	return &fault
}

// recovery is what the driver wants done with a GPU; false if it does not tell, as older ones do not.
func recovery(dev nvml.Device) (nvml.DeviceGpuRecoveryAction, bool) {
	values := []nvml.FieldValue{{FieldId: nvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
	if ret := dev.GetFieldValues(values); ret != nvml.SUCCESS || nvml.Return(values[0].NvmlReturn) != nvml.SUCCESS {
		return 0, false
	}
	return nvml.DeviceGpuRecoveryAction(binary.NativeEndian.Uint32(values[0].Value[:])), true
}
