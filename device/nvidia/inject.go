package nvidia

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path"
	"slices"
	"strconv"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/require"
)

// Injector brings NVIDIA's devices into containers.
type Injector struct {
	*Driver
	Generator Generator
	// Hook finds the program of Generator.Hooks, where that has no path.
	Hook func() (string, error)
}

var (
	_ device.Injector = (*Injector)(nil)
	_ device.Requirer = (*Injector)(nil)
)

// Names are by UUID and by index, as NVIDIA's generator writes them.
func (i *Injector) Names(u device.Unit) []string {
	index := strconv.Itoa(u.Device.Index)
	if u.Slice != nil {
		index += ":" + strconv.Itoa(u.Slice.Index)
	}
	names := []string{Kind + "=" + CDIName(u.UUID())}
	if u.Key() != u.UUID() { // the spec may be of a berth that could not ask the driver's library
		names = append(names, Kind+"="+CDIName(u.Key()))
	}
	return append(names, Kind+"="+index)
}

// Common is the driver's files, hooks and shared nodes.
func (i *Injector) Common(context.Context) (*cdi.Edits, error) {
	g, err := i.generator()
	if err != nil {
		return nil, err
	}
	return g.Common()
}

func (i *Injector) generator() (Generator, error) {
	g := i.Generator
	var err error
	if g.Hooks.Path == "" && i.Hook != nil {
		g.Hooks.Path, err = i.Hook()
	}
	return g, err
}

// Edits is the nodes of a GPU or slice.
func (i *Injector) Edits(u device.Unit) (*cdi.Edits, error) {
	g, err := i.generator()
	if err != nil {
		return nil, err
	}
	if u.Slice != nil {
		return g.Slice(u.Device, *u.Slice)
	}
	return g.GPU(u.Device)
}

// Nodes are the nodes of a GPU or slice.
func (i *Injector) Nodes(u device.Unit) ([]*specs.DeviceNode, error) {
	g := i.Generator
	g.Hooks = Hooks{Path: "/", Disabled: []string{hookAll}}
	edits, err := (&Injector{Driver: i.Driver, Generator: g}).Edits(u)
	if err != nil {
		return nil, err
	}
	return edits.DeviceNodes, nil
}

// Env renumbers what CUDA sees from 0, in the order of PCI addresses, which is that of the host.
func (i *Injector) Env(units []device.Unit) []string {
	return []string{"CUDA_DEVICE_ORDER=PCI_BUS_ID", "CUDA_VISIBLE_DEVICES=" + device.FromZero(len(units))}
}

// Require checks NVIDIA_REQUIRE_* and, of images from before there was that, CUDA_VERSION.
func (i *Injector) Require(u device.Unit, env map[string]string) error {
	c := Container{Env: env}
	if _, err := c.Capabilities(); err != nil {
		return err
	}
	requirements, err := c.Requirements()
	if err != nil {
		return err
	}
	d := u.Device
	return require.CheckAll(requirements, require.Host{CUDA: d.CUDA, Driver: d.Driver, Arch: d.Arch, Brand: d.Brand})
}

// Stamp names the driver, its nodes, the directories in which Common looks for files, which change with each that
// comes or goes, and the files that it looks for by name.
func (i *Injector) Stamp() string {
	g, err := i.generator()
	if err != nil {
		return "" // Common says why
	}
	h, files := g.Host, g.files()
	version, err := NewDriver(h).Version()
	if err != nil || version == "" {
		return "" // Common says why
	}
	sum := sha256.New()
	fmt.Fprintln(sum, version, g.Hooks, g.NoAdditionalGIDs, h.Root(), files.Root())
	for _, name := range controlNodes {
		n, err := h.Node(name)
		fmt.Fprintln(sum, n, err == nil)
	}
	for _, name := range slices.Concat(g.LibraryPaths, ldConfDirs(files), libraryDirs, binaryDirs, firmwareDirs(files), named()) {
		if st, err := files.Stat(name); err == nil {
			fmt.Fprintln(sum, name, st.ModTime().UnixNano())
		}
	}
	return hex.EncodeToString(sum.Sum(nil))
}

// named are the files that Common looks for in busy directories.
func named() []string {
	var names []string
	for _, to := range []string{"/etc", "/usr/share"} {
		for _, name := range configs[to] {
			for _, dir := range configDirs {
				names = append(names, path.Join(dir, name))
			}
		}
	}
	for _, socket := range sockets {
		for _, dir := range socketDirs {
			names = append(names, path.Join(dir, socket))
		}
	}
	return append(names, "/tmp/"+mpsDir)
}
