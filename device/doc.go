// Package device finds the accelerators of this host and lends each to one task at a time: the language in
// which tasks ask for GPUs, the choice among what the host has, and the pool that lends it.
//
// It is not about any one vendor (device/nvidia, device/amd, device/intel say what their devices are) and
// not about how a device gets into a container (device/cdi edits OCI specs; engines apply them).
package device
