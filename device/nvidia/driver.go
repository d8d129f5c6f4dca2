package nvidia

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// Driver is NVIDIA's kernel driver on a host, as /proc and /sys show it.
type Driver struct {
	host *device.Host

	// More, if it is set, adds to devices what only the driver's library knows: memory, compute capability and
	// brand, and the UUIDs and profiles of slices. The library's absence is no error.
	More func(context.Context, []device.Device) ([]device.Device, error)
}

var _ device.Vendor = (*Driver)(nil)

// NewDriver returns the driver of a host; that the host has none is no error.
func NewDriver(h *device.Host) *Driver { return &Driver{host: h} }

// Name is the vendor's name.
func (d *Driver) Name() string { return Vendor }

// Version returns the version of the loaded driver, "" if none is.
func (d *Driver) Version() (string, error) {
	text, err := d.host.ReadFile("/proc/driver/nvidia/version")
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("NVIDIA driver: %w: %w", berth.ErrUnavailable, err)
	}
	return parseVersion(string(text))
}

// majors returns the major numbers of the driver's nodes.
func (d *Driver) majors() (Majors, error) {
	text, err := d.host.ReadFile("/proc/devices")
	if err != nil {
		return nil, fmt.Errorf("NVIDIA driver: %w: %w", berth.ErrUnavailable, err)
	}
	return ParseMajors(string(text))
}

// CheckLibraries looks whether the libraries of the loaded driver are installed, without which no container can
// use its GPUs: an upgrade takes them away from a driver that goes on running. ErrUnavailable if they are not.
func (d *Driver) CheckLibraries() error {
	version, err := d.Version()
	if err != nil || version == "" {
		return err
	}
	_, err = findLibraries(d.host, version, nil)
	return err
}

// Devices returns the GPUs that the driver has, in the order of their PCI addresses, which is that of NVML, with
// their MIG slices. Of a GPU of MIG slices the whole is not usable. The driver's files tell neither memory nor
// compute capability, so these are unknown.
//
// The error says which GPUs are there and cannot be used: those whose node is missing or not the driver's, and
// those that no or another driver holds.
func (d *Driver) Devices(ctx context.Context) ([]device.Device, error) {
	version, err := d.Version()
	if err != nil {
		return nil, err
	}
	known := map[string]bool{}
	var devices []device.Device
	var errs []error
	if version != "" {
		devices, known, errs = d.loaded(ctx, version)
	}
	if d.More != nil && len(devices) > 0 {
		more, err := d.More(ctx, devices)
		if err != nil {
			errs = append(errs, err)
		} else {
			devices = more
		}
	}
	return devices, errors.Join(append(errs, d.strangers(known)...)...)
}

// loaded returns the GPUs of a loaded driver, and the PCI addresses of all that it holds.
func (d *Driver) loaded(ctx context.Context, version string) (devices []device.Device, known map[string]bool, errs []error) {
	known = map[string]bool{}
	majors, err := d.majors()
	if err != nil {
		errs = append(errs, err)
	}
	var all []device.Device
	for _, file := range d.host.Glob("/proc/driver/nvidia/gpus/*/information") {
		if err := ctx.Err(); err != nil {
			return nil, known, []error{err}
		}
		known[path.Base(path.Dir(file))] = true
		gpu, excluded, err := d.gpu(file, version)
		switch {
		case err != nil:
			errs = append(errs, err)
		case !excluded:
			all = append(all, gpu)
		}
	}
	slices.SortFunc(all, func(a, b device.Device) int { return cmp.Compare(fullAddress(a.PCI), fullAddress(b.PCI)) })
	for i, gpu := range all {
		gpu.Index = i
		if _, err := gpuNode(d.host, majors, gpu.Minor); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", gpu, err))
			continue
		}
		devices = append(devices, gpu)
	}
	return devices, known, errs
}

// gpu reads one information file.
func (d *Driver) gpu(file, version string) (gpu device.Device, excluded bool, err error) {
	text, err := d.host.ReadFile(file)
	if err != nil {
		return gpu, false, fmt.Errorf("%w: %w", berth.ErrUnavailable, err)
	}
	info := ParseInformation(string(text))
	if info.Excluded {
		return gpu, true, nil
	}
	minor, err := strconv.ParseUint(info.Minor, 10, 31)
	if err != nil || KindOf(info.UUID) != GPUUUID || fullAddress(info.Bus) == "" {
		// A GPU that has fallen off the bus has no UUID but question marks.
		return gpu, false, fmt.Errorf("%s: %w: UUID %q, bus location %q, minor %q: the driver cannot reach the GPU", file, berth.ErrUnavailable, info.UUID, info.Bus, info.Minor)
	}
	return device.Device{
		Vendor: Vendor, UUID: info.UUID, PCI: strings.ToLower(info.Bus), Minor: int(minor), Model: info.Model,
		Driver: version, CUDA: CUDAOf(version), NUMA: d.numa(info.Bus), Slices: d.slices(int(minor), info.UUID),
	}, false, nil
}

func (d *Driver) numa(bus string) int {
	text, err := d.host.ReadFile("/sys/bus/pci/devices/" + strings.ToLower(bus) + "/numa_node")
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return -1
	}
	return n
}

// slices returns the MIG slices that exist, by their numbers. The driver's files do not tell their UUIDs, so
// they have the older form, made of the GPU's and the numbers.
func (d *Driver) slices(minor int, uuid string) []device.Slice {
	var all []device.Slice
	for _, file := range d.host.Glob(fmt.Sprintf("%s/gpu%d/mig/gi*/ci*/access", capabilities, minor)) {
		var s device.Slice
		ci := path.Dir(file)
		if !number(path.Base(path.Dir(ci)), "gi", &s.GI) || !number(path.Base(ci), "ci", &s.CI) {
			continue
		}
		s.UUID = fmt.Sprintf("MIG-%s/%d/%d", uuid, s.GI, s.CI)
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b device.Slice) int { return cmp.Or(cmp.Compare(a.GI, b.GI), cmp.Compare(a.CI, b.CI)) })
	for i := range all {
		all[i].Index = i
	}
	return all
}

func number(name, prefix string, n *int) bool {
	digits, ok := strings.CutPrefix(name, prefix)
	v, err := strconv.ParseUint(digits, 10, 31)
	*n = int(v)
	return ok && err == nil
}

// strangers returns an error for each of NVIDIA's GPUs on the PCI bus that the driver does not hold.
func (d *Driver) strangers(known map[string]bool) []error {
	var errs []error
	for _, dir := range d.host.Glob("/sys/bus/pci/devices/*") {
		bus := path.Base(dir)
		if known[bus] || !d.isGPU(dir) {
			continue
		}
		by := "no driver is bound to it; load the driver with: modprobe nvidia"
		if link, err := d.host.Readlink(dir + "/driver"); err == nil {
			by = "the driver " + path.Base(link) + " has it"
			if path.Base(link) == "nvidia" {
				by = "NVIDIA's driver has it and says nothing of it; look for its messages with: dmesg"
			}
		}
		errs = append(errs, fmt.Errorf("NVIDIA GPU %s: %w: %s", bus, berth.ErrUnavailable, by))
	}
	return errs
}

// isGPU reports whether a PCI device is a VGA or 3D controller of NVIDIA's.
func (d *Driver) isGPU(dir string) bool {
	vendor, err := d.host.ReadFile(dir + "/vendor")
	if err != nil || strings.TrimSpace(string(vendor)) != "0x10de" {
		return false
	}
	class, err := d.host.ReadFile(dir + "/class")
	return err == nil && (strings.HasPrefix(string(class), "0x0300") || strings.HasPrefix(string(class), "0x0302"))
}
