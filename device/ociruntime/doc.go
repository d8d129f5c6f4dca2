// Package ociruntime gives GPUs to containers of engines that know nothing of berth: Docker, Podman, containerd.
// Runtime stands before an OCI runtime: it takes the GPUs that a container asks for from the host's ledger, edits
// its bundle, and hands on to the runtime. Prestart is a hook that does the same to a container that a runtime has
// made already.
//
// What a container asks for stands in its environment, mounts and annotations, by the conventions of NVIDIA's and
// AMD's container toolkits. Those of its image and of its user are one there, so the toolkit's options decide what
// counts. The package starts no container itself.
package ociruntime
