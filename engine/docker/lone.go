package docker

import (
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/system"
)

// A daemon of before 25 runs its own program for each container that it gives a network, be it "none": more work than all
// else of a short container's start. A container that has its networking disabled gets a network namespace with a loopback
// interface from the OCI runtime alone, and none of the files that the daemon writes with a network.

// loopbackNames are those that daemons give every container.
const loopbackNames = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
	"fe00::0\tip6-localnet\nff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n"

// mayBeAlone reports whether a daemon has less to do for containers with disabled networking, and can bind files of this
// process's data directory into every container.
func mayBeAlone(h *hostInfo, i system.Info, api string) bool {
	return apiBefore(api, 44) && !h.podman && !h.remote && os.Geteuid() == 0 && !slices.ContainsFunc(i.SecurityOptions, func(o string) bool {
		name, _, _ := strings.Cut(o, ",")
		return slices.Contains([]string{"name=rootless", "name=userns", "name=selinux"}, name)
	})
}

// planLone has a container without a network make do without the daemon's part of it, where that is no other for the
// container.
func (s *Sandbox) planLone(host *hostInfo, cfg *container.Config, hc *container.HostConfig, step string) error {
	if !host.alone || s.spec.Network.Mode != berth.NetworkNone || len(s.spec.Network.Ports) > 0 {
		return nil
	}
	names, ok := hostsOf(hc.ExtraHosts)
	if !ok {
		return nil
	}
	for _, f := range []struct{ name, text string }{{"hosts", names}, {"hostname", s.hostname() + "\n"}} {
		target := "/etc/" + f.name
		if _, tmpfs := hc.Tmpfs[target]; tmpfs || slices.ContainsFunc(hc.Mounts, func(m mount.Mount) bool { return path.Clean(m.Target) == target }) {
			continue
		}
		file := filepath.Join(s.e.sandboxDir(s.spec.ID), "steps", step, f.name)
		if err := os.WriteFile(file, []byte(f.text), 0o644); err != nil { // all users of the container read it
			return err
		}
		if err := os.Chmod(file, 0o644); err != nil { // whatever the umask
			return err
		}
		hc.Mounts = append(hc.Mounts, mount.Mount{Type: mount.TypeBind, Source: file, Target: target, ReadOnly: hc.ReadonlyRootfs})
	}
	cfg.NetworkDisabled, hc.ExtraHosts = true, nil
	return nil
}

// hostsOf is the text of /etc/hosts; not ok where an address is one that only the daemon knows.
func hostsOf(extra []string) (text string, ok bool) {
	var b strings.Builder
	b.WriteString(loopbackNames)
	for _, h := range extra {
		name, addr, _ := strings.Cut(h, ":")
		a, err := netip.ParseAddr(addr)
		if err != nil {
			return "", false
		}
		b.WriteString(a.String() + "\t" + name + "\n")
	}
	return b.String(), true
}

// loneUsed is what the files of planLone hold, in bytes: containers may write to them.
func (s *Sandbox) loneUsed() (used int64) {
	files, _ := filepath.Glob(filepath.Join(s.e.sandboxDir(s.spec.ID), "steps", "*", "host*"))
	for _, f := range files {
		used += fileUsed(f)
	}
	return used
}
