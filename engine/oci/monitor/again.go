package monitor

import (
	"path"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// plainCaps are capabilities with which nothing of a network namespace can be configured, and no way out of the container be
// made: Docker's default ones.
var plainCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// plainMounts are types of mounts in which nobody outside the container can wait to be handed something.
var plainMounts = []string{"proc", "tmpfs", "devpts", "sysfs", "cgroup", "cgroup2", "mqueue"}

// leavesNetwork reports whether the container leaves nothing behind in its network namespace that cannot be seen
// there when it has ended: it cannot configure the namespace, none of its processes outlives it, and it meets nobody to whom
// it could hand an open file of /proc/net, which would show what the namespace's next sandbox does.
func (l *launch) leavesNetwork() bool {
	lx, caps := l.spec.Linux, l.spec.Process.Capabilities
	switch {
	case !l.c.pooled(), l.spec.Hooks != nil, len(lx.Sysctl) > 0, len(lx.Devices) > 0, len(l.req.Lent) > 0:
		return false
	case !slices.Contains(lx.ReadonlyPaths, "/proc/sys"): // root may change what is there, without any capability
		return false
	}
	for _, set := range [][]string{caps.Bounding, caps.Effective, caps.Permitted, caps.Inheritable, caps.Ambient} {
		if slices.ContainsFunc(set, func(name string) bool { return !slices.Contains(plainCaps, name) }) {
			return false
		}
	}
	ownPIDs := false
	for _, ns := range lx.Namespaces {
		if ns.Path != "" || ns.Type == specs.UserNamespace {
			return false
		}
		ownPIDs = ownPIDs || ns.Type == specs.PIDNamespace
	}
	return ownPIDs && !slices.ContainsFunc(l.spec.Mounts, func(m specs.Mount) bool { return !l.plainMount(m) })
}

// plainMount reports whether a mount is the container's own, or of its sandbox alone.
func (l *launch) plainMount(m specs.Mount) bool {
	sb := l.c.sb
	switch bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind"); {
	case bind:
		own := append(slices.Clone(sb.volumes), filepath.Join(sb.dir, filesDir), sb.area.Dir())
		return slices.ContainsFunc(own, func(dir string) bool {
			_, ok := within(dir, m.Source)
			return ok
		})
	case m.Type == "proc": // /proc/sys of another one could be written
		return path.Clean(m.Destination) == "/proc"
	default:
		return slices.Contains(plainMounts, m.Type)
	}
}

// closeNetwork takes the network away. later run, or are being cleaned up: its namespace may be another sandbox's
// only when they are gone, which is not waited for.
func (sb *sandbox) closeNetwork(later []*container) {
	net := sb.net
	if net == nil {
		return
	}
	leave := func() {
		how := net.Return
		if sb.worn.Load() {
			how = net.Close
		}
		if err := how(); err != nil {
			sb.m.log.Error("close network", "sandbox", sb.id, "err", err)
		}
	}
	if len(later) == 0 || sb.worn.Load() {
		leave()
		return
	}
	sb.m.wg.Go(func() {
		for _, c := range later {
			<-c.clean
		}
		leave() // by now a process may have come into one of them: see session.exec
	})
}
