package nvidia

import (
	"fmt"
	"io/fs"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// cdiNode describes a node of the host in a CDI spec as NVIDIA's generator does: without its owner, so that in
// the container it is the user's.
func (g Generator) cdiNode(n device.Node) *specs.DeviceNode {
	node := &specs.DeviceNode{Path: n.Path, Major: int64(n.Major), Minor: int64(n.Minor), Permissions: "rwm"}
	if host := g.hostPath(g.Host, n.Path); host != n.Path {
		node.HostPath = host
	}
	if n.Mode != 0 {
		node.FileMode = &n.Mode
	}
	if n.GID != 0 {
		node.GID = &n.GID
	}
	return node
}

// GIDs returns the group that a container's user must be in to open a node: the node's, if not everybody may
// read and write it.
func (g Generator) GIDs(n *specs.DeviceNode) []uint32 {
	const everybody fs.FileMode = 0o006
	if g.NoAdditionalGIDs || n == nil || n.GID == nil || *n.GID == 0 || n.FileMode == nil || *n.FileMode&everybody == everybody {
		return nil
	}
	return []uint32{*n.GID}
}

// gpuNode returns the node of a GPU, which must be there and be the driver's: /dev is not made anew when the
// driver is.
func gpuNode(h *device.Host, majors Majors, minor int) (device.Node, error) {
	name := fmt.Sprintf("/dev/nvidia%d", minor)
	node, err := h.Node(name)
	if err != nil {
		return node, fmt.Errorf("%w: %w; as root, run: nvidia-modprobe -c %d", berth.ErrUnavailable, err, minor)
	}
	major, ok := majors.GPU()
	if !ok {
		return node, fmt.Errorf("%s: %w: /proc/devices has no major number of NVIDIA's GPUs", name, berth.ErrUnavailable)
	}
	if node.Major != major || int(node.Minor) != minor {
		return node, fmt.Errorf("%s: %w: it is %d:%d, and the driver has %d:%d; remove it, and as root run: nvidia-modprobe -c %d",
			name, berth.ErrUnavailable, node.Major, node.Minor, major, minor, minor)
	}
	return node, nil
}
