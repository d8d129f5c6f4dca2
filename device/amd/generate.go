package amd

import (
	"fmt"
	"slices"
	"strconv"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// Generator writes CDI specs of AMD's devices, with what ROCm's generator puts into them.
type Generator struct {
	Host *device.Host
	// Groups adds the groups of the nodes to the container's user, who needs them unless it is root: the
	// nodes are for the groups video and render, whose numbers differ from host to host.
	Groups bool
}

// Spec returns a spec of GPUs that Find found on the same host: each under its index, and all. It fails if a node
// is missing.
func (g Generator) Spec(gpus []GPU) (*specs.Spec, error) {
	if len(gpus) == 0 {
		return nil, fmt.Errorf("CDI spec: %w: this host has no AMD GPU that could be in it", berth.ErrNotFound)
	}
	spec := &specs.Spec{Version: "0.6.0", Kind: Kind}
	if g.Groups {
		spec.Version = "0.7.0"
	}
	var all []string
	for i, gpu := range gpus {
		edits, err := g.Edits(gpu.DRM)
		if err != nil {
			return nil, fmt.Errorf("AMD GPU %d: %w", i, err)
		}
		spec.Devices = append(spec.Devices, specs.Device{Name: strconv.Itoa(i), ContainerEdits: *edits})
		all = append(all, gpu.DRM...)
	}
	edits, err := g.Edits(all)
	if err != nil {
		return nil, err
	}
	spec.Devices = append(spec.Devices, specs.Device{Name: "all", ContainerEdits: *edits})
	return spec, nil
}

// Edits are the edits for some DRM nodes: these, and the node that all GPUs share.
func (g Generator) Edits(drm []string) (*specs.ContainerEdits, error) {
	edits := &specs.ContainerEdits{}
	for _, name := range append(slices.Clone(drm), kfd) {
		n, err := g.Host.Node(name)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", berth.ErrUnavailable, err)
		}
		root := uint32(0)
		edits.DeviceNodes = append(edits.DeviceNodes, &specs.DeviceNode{
			Path: name, HostPath: g.Host.HostPath(name), Type: n.Type, Major: int64(n.Major), Minor: int64(n.Minor),
			FileMode: &n.Mode, Permissions: "rwm", UID: &root, GID: &n.GID,
		})
		if g.Groups && n.Private() && !slices.Contains(edits.AdditionalGIDs, n.GID) {
			edits.AdditionalGIDs = append(edits.AdditionalGIDs, n.GID)
		}
	}
	return edits, nil
}
