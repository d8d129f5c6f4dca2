//go:build cgo

package nvml

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"path"
	"slices"
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

// untold are answers of a library, driver or GPU that has no such thing to tell.
var untold = []nvml.Return{nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_INVALID_ARGUMENT, nvml.ERROR_FUNCTION_NOT_FOUND, nvml.ERROR_ARGUMENT_VERSION_MISMATCH}

// asked is what came of some questions.
type asked struct {
	known  bool   // one was answered
	failed bool   // one was not, that may be answered next time
	fault  string // the GPU is of no use any more
}

// told says whether an answer is one.
func (a *asked) told(ret nvml.Return) bool {
	switch {
	case ret == nvml.SUCCESS:
		a.known = true
		return true
	case useless[ret] != "":
		a.fault = useless[ret]
	case !slices.Contains(untold, ret):
		a.failed = true
	}
	return false
}

// askFault finds what keeps a GPU from being of use; nil if the library does not tell all of it: that it is well would undo what
// somebody was told before. Counts of the GPU's whole life say nothing of today. Rows of memory that wait for a reset to be remapped
// do no harm: nothing is put there meanwhile.
func askFault(lib nvml.Interface, dev nvml.Device) *string {
	has := func(function string) bool { return lib.Extensions().LookupSymbol(function) == nil }
	var says []string
	var a asked
	_, ret := dev.GetMemoryInfo()
	a.told(ret)
	if a.fault == "" && has("nvmlDeviceGetRemappedRows") {
		if _, _, _, failed, ret := dev.GetRemappedRows(); a.told(ret) && failed {
			says = append(says, "row remapping failed")
		}
	}
	if a.fault == "" && has("nvmlDeviceGetSramEccErrorStatus") {
		if e, ret := dev.GetSramEccErrorStatus(); a.told(ret) && e.BThresholdExceeded != 0 {
			says = append(says, "SRAM error threshold exceeded")
		}
	}
	if a.fault == "" {
		says = append(says, a.errors(dev)...)
	}
	if a.fault != "" {
		return &a.fault
	}
	if says == nil && (a.failed || !a.known) {
		return nil
	}
	fault := strings.Join(says, "; ")
	return &fault
}

// errors asks what the driver wants done with a GPU: that is its own word on the errors that it has counted, most of which do not
// outlive the process that met them. Of one that does not tell that, as older ones, the errors count.
func (a *asked) errors(dev nvml.Device) []string {
	values := []nvml.FieldValue{{FieldId: nvml.FI_DEV_GET_GPU_RECOVERY_ACTION}}
	ret := dev.GetFieldValues(values)
	if ret == nvml.SUCCESS {
		ret = nvml.Return(values[0].NvmlReturn)
	}
	switch {
	case a.told(ret):
		action := nvml.DeviceGpuRecoveryAction(binary.NativeEndian.Uint32(values[0].Value[:]))
		if action == nvml.GPU_RECOVERY_ACTION_NONE {
			return nil
		}
		return []string{"recovery action: " + cmp.Or(recoveries[action], strconv.Itoa(int(action)))}
	case !slices.Contains(untold, ret):
		return nil
	}
	n, ret := dev.GetTotalEccErrors(nvml.MEMORY_ERROR_TYPE_UNCORRECTED, nvml.VOLATILE_ECC)
	if a.told(ret) && n > 0 {
		return []string{fmt.Sprintf("%d volatile uncorrectable ECC errors", n)}
	}
	return nil
}
