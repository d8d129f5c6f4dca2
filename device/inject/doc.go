// Package inject decides what a container gets of a host's GPUs when it asks by the conventions of the vendors'
// container toolkits: by variables, mounts and annotations. It says by which rule, what is refused, and why.
//
// It lends nothing (package device does) and edits no OCI spec (package device/cdi does).
package inject
