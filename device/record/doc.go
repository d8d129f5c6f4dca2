// Package record writes a recorded host: a directory that device.OpenHost opens, in which the packages of the vendors
// find the same devices as on the host, and from which the same CDI specs are generated.
//
// Nothing private is in it. It holds, of the GPUs, what their drivers say of models, UUIDs, addresses and memory; the
// numbers, owners and modes of their nodes; names of the driver's files, which themselves are empty but for the name
// that libraries have for the linker; and /proc/devices. It holds no serial numbers, no host name, no CDI specs or
// configuration of the host, and nothing of its processes or users beyond the numeric owners of nodes.
package record
