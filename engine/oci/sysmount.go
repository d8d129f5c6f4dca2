package oci

import (
	"github.com/berth-project/berth"
	"github.com/moby/sys/userns"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// sysMount is /sys: that of the container's network namespace. The kernel gives the host's one only to root of
// the host; an ordinary user's container with the host's network sees the host's mount, as with podman.
func (b *builder) sysMount() specs.Mount {
	m := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}}
	if b.sb.Spec.Network.Mode == berth.NetworkHost && userns.RunningInUserNS() {
		m.Type, m.Source, m.Options = "bind", "/sys", append([]string{"rbind", "rprivate"}, m.Options...)
	}
	return m
}
