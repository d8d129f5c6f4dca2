// Package nvml asks the management library of NVIDIA's driver for what the driver's files do not tell: memory,
// compute capability and brand of GPUs, UUIDs and profiles of their MIG slices, how busy they are, and their
// NVLinks.
//
// The library is opened where it is found, at run time, and its absence is an answer and no error. It runs in a
// process of its own, because a driver that hangs takes the thread that called it along: that process can be
// left behind, a thread cannot. Only a build with cgo can ask; a recorded host has the answers in a file, which
// every build reads.
//
// It finds no devices (package nvidia does) and changes no setting of the driver.
package nvml
