//go:build cgo

package nvml

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// Built says whether this build can ask the library.
const Built = true

const soname = "libnvidia-ml.so.1"

// more are where the library lies in hosts whose linker does not know of it.
var more = []string{"/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/run/opengl-driver/lib", "/opt/nvidia/lib64"}

// Main asks the library and writes the answer, in the process that Asker.Command starts.
func Main(h *device.Host, w io.Writer) error {
	var said answer
	lib := nvml.New(nvml.WithLibraryPath(libraryOf(h)))
	var err error
	if said.Facts, err = query(lib, addressesOf(h)); err != nil {
		said.Error = err.Error()
	}
	return json.NewEncoder(w).Encode(said)
}

// libraryOf is what to open: the name, for the linker to find, unless the library is only where the linker does
// not look.
func libraryOf(h *device.Host) string {
	for _, dir := range more {
		if _, err := h.Stat(dir + "/" + soname); err == nil {
			return dir + "/" + soname
		}
	}
	return soname
}

// query asks the library; nil if there is none, or no driver for it. The addresses are those of the GPUs that the driver
// has, by its files: it has no other name for one that it has lost.
func query(lib nvml.Interface, addresses []string) (*Facts, error) {
	switch ret := lib.Init(); ret {
	case nvml.SUCCESS:
	case nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED:
		return nil, nil //nolint:nilnil // that is the answer
	case nvml.ERROR_LIB_RM_VERSION_MISMATCH:
		return nil, fmt.Errorf("%w: its version is not that of the loaded driver: reboot, or load the driver anew", berth.ErrUnavailable)
	default:
		return nil, failed("initialise", ret)
	}
	defer func() { _ = lib.Shutdown() }() // the process ends
	f := &Facts{}
	f.Driver, _ = lib.SystemGetDriverVersion()
	if v, ret := lib.SystemGetCudaDriverVersion(); ret == nvml.SUCCESS {
		f.CUDA = fmt.Sprintf("%d.%d", v/1000, v%1000/10)
	}
	n, ret := lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		return nil, failed("count GPUs", ret)
	}
	for i := range n {
		dev, ret := lib.DeviceGetHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // one that has failed: see lost
		}
		if gpu, ok := ask(lib, dev); ok {
			f.GPUs = append(f.GPUs, gpu)
		}
	}
	if len(f.GPUs) < n {
		f.GPUs = append(f.GPUs, lost(lib, addresses)...)
	}
	return f, nil
}

func failed(what string, ret nvml.Return) error {
	return fmt.Errorf("%s: %w: NVML error %d", what, berth.ErrUnavailable, int(ret))
}

func ask(lib nvml.Interface, dev nvml.Device) (gpu GPU, ok bool) {
	uuid, ret := dev.GetUUID()
	if ret != nvml.SUCCESS {
		return gpu, false
	}
	gpu.UUID = uuid
	if m, ret := dev.GetMemoryInfo(); ret == nvml.SUCCESS {
		gpu.Memory, gpu.Used = int64(m.Total), int64(m.Used)
	}
	if major, minor, ret := dev.GetCudaComputeCapability(); ret == nvml.SUCCESS {
		gpu.Arch = fmt.Sprintf("%d.%d", major, minor)
	}
	if brand, ret := dev.GetBrand(); ret == nvml.SUCCESS {
		gpu.Brand = brands[brand]
	}
	mode, _, ret := dev.GetMigMode()
	gpu.HasMIG = ret != nvml.ERROR_NOT_SUPPORTED
	if ret == nvml.SUCCESS && mode == nvml.DEVICE_MIG_ENABLE {
		gpu.MIG = true
		gpu.Slices = askSlices(dev, gpu.Memory)
	} else if u, ret := dev.GetUtilizationRates(); ret == nvml.SUCCESS {
		busy := int(u.Gpu)
		gpu.Busy = &busy
	}
	gpu.Links, gpu.Fault = askLinks(dev), askFault(lib, dev)
	return gpu, true
}

// brands are the words that images use in their requirements.
var brands = map[nvml.BrandType]string{
	nvml.BRAND_QUADRO: "Quadro", nvml.BRAND_TESLA: "Tesla", nvml.BRAND_NVS: "NVS", nvml.BRAND_GRID: "GRID",
	nvml.BRAND_GEFORCE: "GeForce", nvml.BRAND_TITAN: "TITAN", nvml.BRAND_NVIDIA_VAPPS: "NvidiaVApps",
	nvml.BRAND_NVIDIA_VPC: "NvidiaVPC", nvml.BRAND_NVIDIA_VCS: "NvidiaVCS", nvml.BRAND_NVIDIA_VWS: "NvidiaVWS",
	nvml.BRAND_NVIDIA_CLOUD_GAMING: "NvidiaCloudGaming", nvml.BRAND_QUADRO_RTX: "QuadroRTX",
	nvml.BRAND_NVIDIA_RTX: "NvidiaRTX", nvml.BRAND_NVIDIA: "Nvidia", nvml.BRAND_GEFORCE_RTX: "GeForceRTX",
	nvml.BRAND_TITAN_RTX: "TitanRTX",
}

func askSlices(dev nvml.Device, memory int64) []MIG {
	n, ret := dev.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS {
		return nil
	}
	var all []MIG
	for i := range n {
		mig, ret := dev.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // the places of slices that are not made
		}
		var m MIG
		var rets [3]nvml.Return
		m.UUID, rets[0] = mig.GetUUID()
		m.GI, rets[1] = mig.GetGpuInstanceId()
		m.CI, rets[2] = mig.GetComputeInstanceId()
		if slices.ContainsFunc(rets[:], func(r nvml.Return) bool { return r != nvml.SUCCESS }) {
			continue
		}
		if a, ret := mig.GetAttributes(); ret == nvml.SUCCESS {
			m.Memory = int64(a.MemorySizeMB) << 20
			m.Profile = profile(int(a.GpuInstanceSliceCount), int(a.ComputeInstanceSliceCount), m.Memory, memory)
		}
		all = append(all, m)
	}
	return all
}

// profile is the name of a kind of slice: its share of the engines, and of the memory in eighths of the GPU's,
// rounded up to GB as NVIDIA does.
func profile(gi, ci int, memory, whole int64) string {
	if whole <= 0 || memory <= 0 {
		return ""
	}
	const eighths, gib = 8, 1 << 30
	share := (memory*eighths + whole - 1) / whole
	gb := (share*((whole+gib-1)/gib) + eighths - 1) / eighths
	name := fmt.Sprintf("%dg.%dgb", gi, gb)
	if ci != gi {
		name = fmt.Sprintf("%dc.%s", ci, name)
	}
	return name
}

// askLinks counts the NVLinks that are up, by where they lead.
func askLinks(dev nvml.Device) []Link {
	count := map[string]int{}
	for i := range nvml.NVLINK_MAX_LINKS {
		if state, ret := dev.GetNvLinkState(i); ret != nvml.SUCCESS || state != nvml.FEATURE_ENABLED {
			continue
		}
		to := Switch
		if kind, ret := dev.GetNvLinkRemoteDeviceType(i); ret != nvml.SUCCESS || kind != nvml.NVLINK_DEVICE_TYPE_SWITCH {
			pci, ret := dev.GetNvLinkRemotePciInfo(i)
			if ret != nvml.SUCCESS {
				continue
			}
			to = address(pci.BusId[:])
		}
		count[to]++
	}
	var links []Link
	for to, n := range count {
		links = append(links, Link{To: to, Count: n})
	}
	slices.SortFunc(links, func(a, b Link) int { return strings.Compare(a.To, b.To) })
	return links
}

// address writes a bus id of the library's, 00000000:06:00.0, as the kernel does.
func address(id []int8) string {
	var b strings.Builder
	for _, c := range id {
		if c == 0 {
			break
		}
		b.WriteByte(byte(c))
	}
	text := strings.ToLower(b.String())
	domain, rest, ok := strings.Cut(text, ":")
	if n, err := strconv.ParseUint(domain, 16, 32); ok && err == nil {
		return fmt.Sprintf("%04x:%s", n, rest)
	}
	return text
}
