// Package intel finds Intel's GPUs, integrated ones and others, by the drivers i915 and xe, and says what gets one
// into a container.
//
// All it knows is in /sys and /dev beneath a root directory, which may be a recorded host. It lends nothing and
// edits no OCI spec (packages device and device/cdi). The libraries that a program needs to use such a GPU are in
// its image: the host has none that a container would need.
package intel

// Vendor is the name of this vendor in requests and grants.
const Vendor = "intel"

// Kind is the CDI kind of its GPUs, and MEIKind that of the management interfaces of those that have one.
const (
	Kind    = "intel.com/gpu"
	MEIKind = "intel.com/gpu-mei"
)
