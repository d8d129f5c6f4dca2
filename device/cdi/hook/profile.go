package hook

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"regexp"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device/cdi/inroot"
)

const profileFile = "/etc/nvidia/nvidia-application-profiles-rc.d/10-container.conf"

// updateApplicationProfile has EGL and Vulkan see only the GPUs whose nodes are in the container.
func updateApplicationProfile(*flag.FlagSet) func(*job) error {
	return func(j *job) error {
		nodes, err := j.deviceNodes()
		if errors.Is(err, inroot.ErrLarge) {
			j.warn("%v; EGL and Vulkan may list GPUs that are not there", err)
			return nil
		}
		if err != nil {
			return err
		}
		var mask uint64
		for _, minor := range GPUMinors(nodes) {
			if minor < 0 || minor > 63 {
				j.warn("GPU minor %d: a profile names 0 to 63 only", minor)
				continue
			}
			mask |= 1 << minor
		}
		if mask == 0 {
			return nil
		}
		err = j.root.WriteFile(profileFile, ApplicationProfile(mask), 0o444)
		if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EXDEV) {
			j.warn("%v; EGL and Vulkan may list GPUs that are not there", err)
			return nil
		}
		return err
	}
}

// DeviceNode is an entry of a container's /dev.
type DeviceNode struct {
	Name  string
	Char  bool // a character device
	Minor int
}

var gpuNode = regexp.MustCompile(`^nvidia[0-9]+$`)

// GPUMinors are the minor numbers of the nodes that are NVIDIA GPUs.
func GPUMinors(nodes []DeviceNode) []int {
	var minors []int
	for _, n := range nodes {
		if n.Char && gpuNode.MatchString(n.Name) {
			minors = append(minors, n.Minor)
		}
	}
	return minors
}

// ApplicationProfile is the driver's application profile that shows EGL the GPUs in a mask of minor numbers.
func ApplicationProfile(mask uint64) []byte {
	return fmt.Appendf(nil, `{"profiles":[{"name":"_container_","settings":["EGLVisibleDGPUDevices",%#x]}],`+
		`"rules":[{"pattern":[],"profile":"_container_"}]}`, mask)
}

// maxNodes bounds the entries of a container's /dev, which may be a directory of the user's.
const maxNodes = 1 << 14

// deviceNodes are the character devices of the container's /dev with the name of a GPU; inroot.ErrLarge where that has too many entries.
func (j *job) deviceNodes() ([]DeviceNode, error) {
	entries, err := j.root.ReadSome("/dev", maxNodes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var nodes []DeviceNode
	for _, e := range entries {
		if e.Type()&fs.ModeCharDevice == 0 || !gpuNode.MatchString(e.Name()) {
			continue
		}
		st, err := j.root.Lstat("/dev/" + e.Name())
		if err != nil {
			return nil, err
		}
		nodes = append(nodes, DeviceNode{e.Name(), st.Mode&unix.S_IFMT == unix.S_IFCHR, int(unix.Minor(st.Rdev))})
	}
	return nodes, nil
}
