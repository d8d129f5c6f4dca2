// Package hook is what cmd/berth-cdi-hook does: the OCI hooks that CDI specs of NVIDIA GPUs ask for, under the
// names and flags of NVIDIA's own program. They make links to driver libraries, have the dynamic linker of the
// container find them, and keep the driver's files in /proc and /etc from saying more than is lent.
//
// A hook runs as root, before the container's process, on a file system that the image's maker wrote. So it
// touches files only beneath the container's root, by package inroot; it starts no program, neither the
// container's nor the host's; it reads no environment; and what it parses (ELF files, linker caches, linker
// configuration) it takes for hostile.
package hook
