package amd

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

// GPU is a GPU, or a partition of one, as the driver presents it.
type GPU struct {
	DRM       []string // its nodes: /dev/dri/cardN, /dev/dri/renderDM
	Render    int      // M
	UniqueID  string   // hexadecimal, without 0x; partitions of one GPU share it; "" if unknown
	Partition string   // compute and memory mode, "cpx_nps4"; "" if the GPU cannot be divided

	index int    // its place among all of the host's, those too that this process may not use
	dir   string // in /sys
	node  node
}

// sysfs is where the driver lists its devices: whole GPUs by PCI address, further partitions as platform devices.
const (
	drivers    = "/sys/module/amdgpu/drivers"
	pciGPUs    = drivers + "/pci:amdgpu/[0-9a-fA-F][0-9a-fA-F][0-9a-fA-F][0-9a-fA-F]:*"
	partitions = "/sys/devices/platform/amdgpu_xcp_*"
	topology   = "/sys/class/kfd/kfd/topology/nodes"
)

// Find returns the GPUs of a host that can compute: those whose render node the compute driver has too, the
// partitions of one GPU together. ErrNotFound if the driver is not loaded.
//
// Of GPUs that this process may not use, for a device cgroup keeps them from it, the compute driver says nothing. They are
// counted by what the graphics driver says, where that can only be they.
func Find(h *device.Host) ([]GPU, error) {
	if _, err := h.Stat(drivers); err != nil {
		return nil, fmt.Errorf("AMD's driver: %w: %w", berth.ErrNotFound, err)
	}
	nodes, unread := readTopology(h)
	var hidden []GPU
	groups := map[string][]GPU{} // by the GPU that partitions are of
	var order []string
	for _, dir := range append(h.Glob(pciGPUs), h.Glob(partitions)...) {
		g := GPU{dir: dir, Partition: partition(h, dir)}
		for _, entry := range h.Glob(dir + "/drm/*") {
			name := path.Base(entry)
			minor, render := strings.CutPrefix(name, "renderD")
			if render {
				g.Render, _ = strconv.Atoi(minor)
			}
			if render || strings.HasPrefix(name, "card") {
				g.DRM = append(g.DRM, "/dev/dri/"+name)
			}
		}
		n, ok := nodes[g.Render]
		if g.Render <= 0 {
			continue
		}
		if !ok {
			hidden = append(hidden, g)
			continue
		}
		n.divided = n.part > 0 || divided(cmp.Or(g.Partition, partition(h, drivers+"/pci:amdgpu/"+n.pci)))
		g.node = n
		if n.hasUniqueID {
			g.UniqueID = strconv.FormatUint(n.uniqueID, 16)
		}
		if groups[n.parent] == nil {
			order = append(order, n.parent)
		}
		groups[n.parent] = append(groups[n.parent], g)
	}
	if len(hidden) != unread {
		hidden = nil // some are none that compute, and nothing tells which
	}
	slices.Sort(order) // the first partition of a GPU, by which it would be found first, may be hidden
	var gpus []GPU
	for _, parent := range order {
		slices.SortStableFunc(groups[parent], func(a, b GPU) int { return cmp.Compare(a.Render, b.Render) })
		for _, g := range groups[parent] {
			g.index = len(gpus) + before(hidden, g)
			gpus = append(gpus, g)
		}
	}
	return gpus, nil
}

// before counts those of hidden GPUs that come before one. Of the partitions of a divided GPU only the first says which GPU
// it is of; where such are hidden, none is counted.
func before(hidden []GPU, g GPU) (n int) {
	for _, o := range hidden {
		at := path.Base(o.dir)
		if strings.HasPrefix(at, "amdgpu_xcp_") {
			return 0
		}
		if at < g.node.pci {
			n++
		}
	}
	return n
}

// partition reads how a GPU is divided.
func partition(h *device.Host, dir string) string {
	read := func(name string) string { return strings.ToLower(h.Text(dir + "/" + name)) }
	compute, memory := read("current_compute_partition"), read("current_memory_partition")
	if compute == "" && memory == "" {
		return ""
	}
	return compute + "_" + memory
}

// divided reports whether a compute mode, "cpx" or "cpx_nps4", makes several partitions of a GPU.
func divided(partition string) bool {
	compute, _, _ := strings.Cut(partition, "_")
	return compute != "" && compute != "spx"
}

// UniqueIDs returns the indices of GPUs by their unique ids, each in the forms 0xHEX and HEX.
func UniqueIDs(gpus []GPU) map[string][]int {
	ids := map[string][]int{}
	for i, g := range gpus {
		if g.UniqueID != "" {
			ids["0x"+g.UniqueID] = append(ids["0x"+g.UniqueID], i)
			ids[g.UniqueID] = append(ids[g.UniqueID], i)
		}
	}
	return ids
}

// node is a node of the compute driver's topology.
type node struct {
	number      string // its directory
	parent      string // domain, bus and device of the GPU
	pci         string // its address
	part        int    // which of the partitions it is; 0 of a GPU that is not divided
	divided     bool   // it is one of several partitions, of which this process may see no other
	uniqueID    uint64
	hasUniqueID bool
	gfx         int    // 90402 is gfx942
	hive        string // of GPUs with xGMI links to each other; "" for none
}

// readTopology returns the nodes that are GPUs, by render minor. unread counts those that this process may not read: GPUs
// that it may not use.
func readTopology(h *device.Host) (nodes map[int]node, unread int) {
	nodes = map[int]node{}
	for _, file := range h.Glob(topology + "/*/properties") {
		data, err := h.ReadFile(file)
		if err != nil {
			unread++ // the device cgroup hides it
			continue
		}
		values := map[string]string{}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) == 2 {
				values[f[0]] = f[1]
			}
		}
		render, err := strconv.ParseInt(values["drm_render_minor"], 10, 32)
		location, errL := strconv.ParseUint(values["location_id"], 10, 32)
		domain, errD := strconv.ParseUint(values["domain"], 10, 32)
		if err != nil || render <= 0 || errL != nil || errD != nil {
			continue
		}
		bus, dev := location>>8&0xff, location>>3&0x1f
		n := node{number: path.Base(path.Dir(file)), parent: fmt.Sprintf("%04x:%02x:%02x", domain, bus, dev)}
		n.pci = n.parent + ".0"
		// A partition's number is in the highest bits of its location, or, with drivers of before 2024, in the lowest.
		if n.part = int(location >> 28 & 0xf); n.part == 0 {
			n.part = int(location & 0x7)
		}
		n.uniqueID, err = strconv.ParseUint(values["unique_id"], 10, 64)
		n.hasUniqueID = err == nil
		if hive := values["hive_id"]; hive != "0" {
			n.hive = hive
		}
		n.gfx, _ = strconv.Atoi(values["gfx_target_version"])
		nodes[int(render)] = n
	}
	return nodes, unread
}

// Driver is AMD's kernel driver on a host.
type Driver struct {
	host *device.Host
}

var _ device.Vendor = (*Driver)(nil)

// NewDriver returns the driver of a host; that the host has none is no error.
func NewDriver(h *device.Host) *Driver { return &Driver{host: h} }

// Name is the vendor's name.
func (d *Driver) Name() string { return Vendor }

// Devices returns the GPUs; of a divided one each partition. The error says which cannot be used because a node
// is missing.
func (d *Driver) Devices(ctx context.Context) ([]device.Device, error) {
	gpus, err := Find(d.host)
	if errors.Is(err, berth.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return d.devices(ctx, gpus)
}

// devices describes GPUs that Find has found.
func (d *Driver) devices(ctx context.Context, gpus []GPU) ([]device.Device, error) {
	uuids := UUIDs(gpus)
	var devices []device.Device
	var errs []error
	for i, g := range gpus {
		if err := ctx.Err(); err != nil {
			return devices, err
		}
		dev := d.device(g.index, g, uuids[i])
		if err := d.check(g); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", dev, err))
			continue
		}
		devices = append(devices, dev)
	}
	return devices, errors.Join(errs...)
}

// UUIDs returns a name for each GPU that it keeps when indices change, in the form of ROCm: GPU- and the unique
// id. The partitions of a GPU have their number behind it, whichever of them this process sees; where the driver does not
// number them, their place. A GPU without an id has its PCI address instead.
func UUIDs(gpus []GPU) []string {
	type partition struct {
		name string
		part int
	}
	many, same := map[string]int{}, map[string]bool{} // by name; same are those of which two have one number
	seen := map[partition]bool{}
	for _, g := range gpus {
		p := partition{g.name(), g.node.part}
		same[p.name] = same[p.name] || seen[p]
		seen[p] = true
		many[p.name]++
	}
	uuids, place := make([]string, len(gpus)), map[string]int{}
	for i, g := range gpus {
		name := g.name()
		number := g.node.part
		if same[name] {
			number = place[name]
		}
		place[name]++
		uuids[i] = name
		if many[name] > 1 || g.node.divided {
			uuids[i] = fmt.Sprintf("%s/%d", name, number)
		}
	}
	return uuids
}

func (g GPU) name() string {
	if g.node.uniqueID == 0 {
		return "GPU-" + g.node.pci
	}
	return fmt.Sprintf("GPU-%016x", g.node.uniqueID)
}

// check looks whether the nodes of a GPU are there.
func (d *Driver) check(g GPU) error {
	for _, name := range append([]string{kfd}, g.DRM...) {
		if _, err := d.host.Node(name); err != nil {
			return fmt.Errorf("%w: %w; look for the driver's messages with: dmesg", berth.ErrUnavailable, err)
		}
	}
	return nil
}

func (d *Driver) device(index int, g GPU, uuid string) device.Device {
	dev := device.Device{
		Vendor: Vendor, Index: index, UUID: uuid, PCI: g.node.pci, Minor: g.Render, Arch: arch(g.node.gfx),
		Driver: d.host.Text("/sys/module/amdgpu/version"), NUMA: -1, Island: g.node.hive,
	}
	dir := d.pciDir(g)
	dev.Model = d.host.Text(dir + "/product_name")
	if dev.Model == "" {
		dev.Model = strings.TrimSpace("AMD GPU " + dev.Arch)
	}
	if n, err := strconv.Atoi(d.host.Text(dir + "/numa_node")); err == nil {
		dev.NUMA = n
	}
	dev.Memory = d.memory(g, dir)
	return dev
}

// pciDir is the directory of a GPU's PCI device, which its partitions share.
func (d *Driver) pciDir(g GPU) string {
	dir := "/sys/bus/pci/devices/" + g.node.pci
	if _, err := d.host.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return g.dir
	}
	return dir
}

// memory returns what the compute driver says of a GPU's or partition's memory, and what the graphics driver
// says of the whole GPU's where that says nothing; bytes.
func (d *Driver) memory(g GPU, dir string) int64 {
	var sum int64
	for _, file := range d.host.Glob(topology + "/" + g.node.number + "/mem_banks/*/properties") {
		data, err := d.host.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(data)) {
			if f := strings.Fields(line); len(f) == 2 && f[0] == "size_in_bytes" {
				n, _ := strconv.ParseInt(f[1], 10, 64)
				sum += n
			}
		}
	}
	if sum > 0 {
		return sum
	}
	if strings.Contains(g.Partition, "spx") || g.Partition == "" {
		sum, _ = strconv.ParseInt(d.host.Text(dir+"/mem_info_vram_total"), 10, 64)
	}
	return sum
}

// arch is the name of an instruction set, as compilers write it.
func arch(gfx int) string {
	if gfx <= 0 {
		return ""
	}
	return fmt.Sprintf("gfx%d%d%x", gfx/10000, gfx/100%100, gfx%100)
}
