package direct

import "github.com/opencontainers/runtime-spec/specs-go"

// mapID is the id outside a user namespace of an id in it; one that is not mapped stays.
func mapID(maps []specs.LinuxIDMapping, id uint32, userNS bool) uint32 {
	if !userNS {
		return id
	}
	for _, m := range maps {
		if id >= m.ContainerID && id-m.ContainerID < m.Size {
			return m.HostID + (id - m.ContainerID)
		}
	}
	return id
}
