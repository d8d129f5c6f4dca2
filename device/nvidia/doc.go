// Package nvidia finds NVIDIA GPUs and their MIG slices, says what gets one into a container, and reads what
// containers ask for by the conventions of NVIDIA's container toolkit: NVIDIA_VISIBLE_DEVICES and its
// siblings, /dev/null mounts, annotations, and the toolkit's configuration file.
//
// It needs no driver library: all it knows is in /proc/driver/nvidia, /proc/devices, /sys/bus/pci, /dev and the
// driver's files, beneath a root directory that may be a recorded host. It lends nothing and edits no OCI spec
// (packages device and device/cdi).
package nvidia

// Vendor is the name of this vendor in requests and grants.
const Vendor = "nvidia"

// Kind is the CDI kind of its devices in specs on disk, and JITKind that of those generated for one container.
const (
	Kind    = "nvidia.com/gpu"
	JITKind = "runtime.nvidia.com/gpu"
)
