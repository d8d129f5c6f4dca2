// Package cdi reads, writes, checks and applies specs of the Container Device Interface, version 1.1: files in
// which vendors describe what it takes to bring their devices into a container.
//
// A Cache holds the specs of some directories. Inject resolves device names and edits an OCI spec, whole or not
// at all; Check compares what would be injected with the host, so that a spec which outlived a driver update or
// a reboot is found before the start; Translate says the same edits in terms of an engine that knows no CDI.
//
// It does not know what a vendor's devices are (device/nvidia and its siblings write specs) and starts nothing.
// Subpackage hook is what the OCI hooks in such specs do, inroot the file access beneath a foreign root.
package cdi
