// Package amd finds AMD's GPUs and their partitions, says what gets one into a container, and reads what
// containers ask for by the conventions of ROCm's container toolkit: AMD_VISIBLE_DEVICES, and the ledger of its
// gpu-tracker.
//
// All it knows is in /sys and /dev beneath a root directory, which may be a recorded host. It lends nothing and
// edits no OCI spec (packages device and device/cdi).
package amd

// Vendor is the name of this vendor in requests and grants.
const Vendor = "amd"

// Kind is the CDI kind of its devices.
const Kind = "amd.com/gpu"

// kfd is the node that all of its GPUs share; which of them a container can use is decided by the render nodes.
const kfd = "/dev/kfd"
