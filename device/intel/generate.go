package intel

import (
	"fmt"
	"slices"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
)

// Generator writes CDI specs of Intel's devices, with what Intel's generators put into them.
type Generator struct {
	Host *device.Host
	// Groups adds the groups of the nodes to the container's user, who needs them unless it is root.
	Groups bool
}

// Spec returns a spec of GPUs that Find found on the same host, each under its UID: its nodes for drawing and
// rendering and their names by path, or its nodes for virtual machines. A GPU that no driver has is left out.
func (g Generator) Spec(gpus []GPU) (*specs.Spec, error) {
	spec := &specs.Spec{Kind: Kind}
	for _, gpu := range gpus {
		if gpu.Card == "" && gpu.Render == "" && gpu.VFIO == nil {
			continue
		}
		edits, err := g.Edits(gpu)
		if err != nil {
			return nil, err
		}
		spec.Devices = append(spec.Devices, specs.Device{Name: gpu.UID, ContainerEdits: *edits})
	}
	return finish(spec)
}

// MEI returns a spec of the GPUs' management interfaces, under their own names.
func (g Generator) MEI(gpus []GPU) (*specs.Spec, error) {
	spec := &specs.Spec{Kind: MEIKind}
	for _, gpu := range gpus {
		if gpu.MEI == "" {
			continue
		}
		edits := &specs.ContainerEdits{}
		if err := g.addNode(edits, "/dev/"+gpu.MEI); err != nil {
			return nil, err
		}
		spec.Devices = append(spec.Devices, specs.Device{Name: gpu.MEI, ContainerEdits: *edits})
	}
	return finish(spec)
}

func finish(spec *specs.Spec) (*specs.Spec, error) {
	if len(spec.Devices) == 0 {
		return nil, fmt.Errorf("CDI spec %s: %w: this host has nothing that could be in it", spec.Kind, berth.ErrNotFound)
	}
	var err error
	if spec.Version, err = cdi.MinimumVersion(spec); err != nil {
		return nil, fmt.Errorf("CDI spec %s: %w", spec.Kind, err)
	}
	return spec, nil
}

// Edits are the edits for one GPU.
func (g Generator) Edits(gpu GPU) (*specs.ContainerEdits, error) {
	edits := &specs.ContainerEdits{}
	for _, name := range append([]string{gpu.Card, gpu.Render}, gpu.VFIO...) {
		if name == "" {
			continue
		}
		if err := g.addNode(edits, name); err != nil {
			return nil, err
		}
	}
	for _, use := range []string{"card", "render"} {
		link := fmt.Sprintf("/dev/dri/by-path/pci-%s-%s", gpu.PCI, use)
		if _, err := g.Host.Readlink(link); err != nil {
			continue // a name more for a node, which udev makes where it runs
		}
		from := g.Host.HostPath(link)
		if from == "" {
			from = link
		}
		edits.Mounts = append(edits.Mounts, &specs.Mount{HostPath: from, ContainerPath: link, Type: "none", Options: []string{"bind", "rw"}})
	}
	return edits, nil
}

func (g Generator) addNode(edits *specs.ContainerEdits, name string) error {
	n, err := g.Host.Node(name)
	if err != nil {
		return fmt.Errorf("GPU of Intel's: %w: %w", berth.ErrUnavailable, err)
	}
	edits.DeviceNodes = append(edits.DeviceNodes, &specs.DeviceNode{
		Path: name, HostPath: g.Host.HostPath(name), Type: n.Type, Major: int64(n.Major), Minor: int64(n.Minor),
		FileMode: &n.Mode, Permissions: "rwm", GID: &n.GID,
	})
	if g.Groups && n.Private() && !slices.Contains(edits.AdditionalGIDs, n.GID) {
		edits.AdditionalGIDs = append(edits.AdditionalGIDs, n.GID)
	}
	return nil
}
