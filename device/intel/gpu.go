package intel

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// GPU is one of Intel's GPUs. Lists of them are in the order of PCI addresses.
type GPU struct {
	UID    string // of address and device: 0000-03-00-0-0x56c0; its name in CDI specs
	PCI    string // 0000:03:00.0
	ID     string // 0x56c0
	Driver string // i915, xe, vfio-pci; "" if none has it

	Card, Render string   // /dev/dri/cardN and renderDM; "" if there is none
	VFIO         []string // nodes, of a GPU for virtual machines
	MEI          string   // meiN; "" if it has none
}

const pciDevices = "/sys/bus/pci/devices"

// Find returns the GPUs on a host's PCI bus, whatever driver has them.
func Find(h *device.Host) []GPU {
	var gpus []GPU
	for _, dir := range h.Glob(pciDevices + "/*") {
		if h.Text(dir+"/vendor") != "0x8086" || !isDisplay(h.Text(dir+"/class")) {
			continue
		}
		g := GPU{PCI: path.Base(dir), ID: h.Text(dir + "/device")}
		g.UID = strings.NewReplacer(":", "-", ".", "-").Replace(g.PCI) + "-" + g.ID
		if link, err := h.Readlink(dir + "/driver"); err == nil {
			g.Driver = path.Base(link)
		}
		for _, entry := range h.Glob(dir + "/drm/*") {
			switch name := path.Base(entry); {
			case strings.HasPrefix(name, "card"):
				g.Card = "/dev/dri/" + name
			case strings.HasPrefix(name, "renderD"):
				g.Render = "/dev/dri/" + name
			}
		}
		if g.Driver == "vfio-pci" {
			g.VFIO = vfio(h, dir)
		}
		for _, entry := range append(h.Glob(dir+"/mei/mei*"), h.Glob(dir+"/*mei*/mei/mei*")...) {
			// Of several the first by name, as Intel's generator takes.
			if name := path.Base(entry); meiForm.MatchString(name) && (g.MEI == "" || name < g.MEI) {
				g.MEI = name
			}
		}
		gpus = append(gpus, g)
	}
	return gpus
}

var meiForm = regexp.MustCompile(`^mei[0-9]+$`)

// isDisplay tells VGA and other display controllers by their class.
func isDisplay(class string) bool {
	return strings.HasPrefix(class, "0x0300") || strings.HasPrefix(class, "0x0380")
}

// vfio returns the nodes by which a virtual machine drives a GPU.
func vfio(h *device.Host, dir string) []string {
	var nodes []string
	if link, err := h.Readlink(dir + "/iommu_group"); err == nil {
		nodes = append(nodes, "/dev/vfio/"+path.Base(link))
	}
	nodes = append(nodes, "/dev/vfio/vfio")
	for _, entry := range h.Glob(dir + "/vfio-dev/vfio*") {
		nodes = append(nodes, "/dev/vfio/devices/"+path.Base(entry))
	}
	return nodes
}

// Driver is Intel's kernel drivers on a host.
type Driver struct {
	host *device.Host
}

var _ device.Vendor = (*Driver)(nil)

// NewDriver returns the drivers of a host; that the host has none is no error.
func NewDriver(h *device.Host) *Driver { return &Driver{host: h} }

// Name is the vendor's name.
func (d *Driver) Name() string { return Vendor }

// Devices returns the GPUs that i915 or xe drives. The error says which are there and cannot be used.
func (d *Driver) Devices(ctx context.Context) ([]device.Device, error) {
	var devices []device.Device
	var errs []error
	for _, g := range Find(d.host) {
		if err := ctx.Err(); err != nil {
			return devices, err
		}
		if err := d.check(g); err != nil {
			errs = append(errs, fmt.Errorf("GPU of Intel's %s: %w: %w", g.PCI, berth.ErrUnavailable, err))
			continue
		}
		devices = append(devices, d.device(len(devices), g))
	}
	return devices, errors.Join(errs...)
}

// check looks whether a GPU can be used.
func (d *Driver) check(g GPU) error {
	switch {
	case g.Driver == "":
		return errors.New("no driver is bound to it; load one with: modprobe xe, or modprobe i915")
	case g.Driver != "i915" && g.Driver != "xe":
		return fmt.Errorf("the driver %s has it", g.Driver)
	case g.Render == "":
		return fmt.Errorf("the driver %s has made no node for rendering; look for its messages with: dmesg", g.Driver)
	}
	_, err := d.host.Node(g.Render)
	return err
}

// models are the names of GPUs that are used for more than a screen, by device id.
var models = map[string]string{
	"0x56c0": "Intel Data Center GPU Flex 170", "0x56c1": "Intel Data Center GPU Flex 140",
	"0x0bd5": "Intel Data Center GPU Max 1550", "0x0bda": "Intel Data Center GPU Max 1100",
	"0x56a0": "Intel Arc A770", "0x56a1": "Intel Arc A750", "0x56a2": "Intel Arc A580",
	"0x56a5": "Intel Arc A380", "0x56a6": "Intel Arc A310",
	"0xe20b": "Intel Arc B580", "0xe20c": "Intel Arc B570",
}

func (d *Driver) device(index int, g GPU) device.Device {
	dir := pciDevices + "/" + g.PCI
	dev := device.Device{
		Vendor: Vendor, Index: index, UUID: g.UID, PCI: g.PCI, Model: models[g.ID], NUMA: -1,
		Driver: strings.TrimSpace(g.Driver + " " + d.host.Text("/sys/module/"+g.Driver+"/version")),
	}
	if dev.Model == "" {
		dev.Model = "Intel GPU " + g.ID
	}
	dev.Minor, _ = strconv.Atoi(strings.TrimPrefix(path.Base(g.Render), "renderD"))
	if n, err := strconv.Atoi(d.host.Text(dir + "/numa_node")); err == nil {
		dev.NUMA = n
	}
	dev.Memory, dev.Health = d.memory(g, dir), d.health(dir)
	return dev
}

// health is what xe says of a GPU, from Linux 7.3 on and of some; nil if it does not. One of which it warns can be used.
func (d *Driver) health(dir string) *string {
	reason := ""
	switch d.host.Text(dir + "/gpu_health") {
	case "critical":
		reason = "GPU health is critical"
	case "ok", "warning":
	default:
		return nil
	}
	return &reason
}

// memory returns a GPU's memory of its own, in bytes, as i915 says it of the whole and xe of each tile; what xe keeps for
// itself is in it. Integrated GPUs use the machine's.
func (d *Driver) memory(g GPU, dir string) (sum int64) {
	if g.Card != "" {
		if n, err := strconv.ParseInt(d.host.Text(dir+"/drm/"+path.Base(g.Card)+"/lmem_total_bytes"), 10, 64); err == nil {
			return n
		}
	}
	for _, tile := range d.host.Glob(dir + "/tile*/physical_vram_size_bytes") {
		if n, err := strconv.ParseInt(d.host.Text(tile), 0, 64); err == nil && n > 0 {
			sum += n
		}
	}
	return sum
}
