package cgroup

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/berth-project/berth"
)

const (
	remedyV1 = "boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1 on the kernel command line), which can be delegated to users, or run berth as root"

	remedyDelegate = "log in through systemd with a user session (loginctl enable-linger USER), and let it delegate all controllers: " +
		"in /etc/systemd/system/user@.service.d/delegate.conf write [Service] and Delegate=cpu cpuset io memory pids, then systemctl daemon-reload; or run berth as root"

	remedySwap = "boot with swapaccount=1 on the kernel command line, or swapoff -a"

	remedyMount = "mount cgroups: mount -t cgroup2 cgroup2 /sys/fs/cgroup"
)

// lacking lists what h cannot do.
func (h *Host) lacking() []berth.Lack {
	var lacks []berth.Lack
	for c, what := range map[controller]string{cpu: "CPU limits", memory: "memory limits", pids: "pids limits", blkio: "I/O figures"} {
		if !h.can(c) && !h.promised[c] {
			why, remedy := h.why(c)
			lacks = append(lacks, berth.Lack{What: what, Why: why, Remedy: remedy})
		}
	}
	if !h.can(devices) && h.version != None && os.Geteuid() == 0 && ownsHost() {
		why, remedy := h.why(devices)
		lacks = append(lacks, berth.Lack{What: "device rules", Why: why + "; so containers open no device nodes of their images, and have no CAP_MKNOD", Remedy: remedy})
	}
	if t := h.v1[memory]; t != nil && !exists(t.mount+t.base+"/memory.memsw.limit_in_bytes") && swaps() {
		lacks = append(lacks, berth.Lack{
			What: "memory limits that count swap", Why: "the kernel does not account swap to cgroups; a container is only kept from swapping by a swappiness of 0",
			Remedy: remedySwap,
		})
	}
	return lacks
}

// why says why a controller cannot be used, and what to do.
func (h *Host) why(c controller) (why, remedy string) {
	name := v1Names[c]
	if h.version == V2 {
		name = v2Names[c]
	}
	switch {
	case h.version == None:
		return "no cgroups are mounted", remedyMount
	case h.version == V2 && c == devices:
		return "this process may not load eBPF programs", "run berth as root, with CAP_BPF or CAP_SYS_ADMIN"
	case h.version == V2 && h.v2 == nil && os.Geteuid() == 0 && ownsHost():
		return "/sys/fs/cgroup cannot be written", "mount it writable; in a container: start that with --privileged"
	case h.version == V2 && h.v2 == nil:
		return "no cgroup here can be written by this user", remedyGive()
	case h.version == V2 && contains(fields(h.obstacle.dir+"/cgroup.controllers"), name):
		return h.obstacle.why(name)
	case h.version == V2:
		return fmt.Sprintf("the %s controller is not delegated to this user", name), remedyGive()
	case os.Geteuid() != 0 || !ownsHost():
		return fmt.Sprintf("cgroup v1 can be written by root only, and the %s controller is on v1", name), remedyV1
	}
	return fmt.Sprintf("the %s hierarchy is not mounted, or cannot be written", name),
		fmt.Sprintf("mount -t cgroup -o %s cgroup /sys/fs/cgroup/%s, and look for cgroup_disable= on the kernel command line", name, name)
}

// why says why a controller that dir has is not given to the cgroups in it, and what to do.
func (o *obstacle) why(name string) (why, remedy string) {
	if len(o.locked) > 0 {
		return fmt.Sprintf("the %s controller of %s cannot be given to new cgroups: %s cannot be written by this user", name, o.dir, strings.Join(o.locked, " and ")),
			"as root: chown them to the user, as the directory itself is"
	}
	list := o.strangers
	if len(list) > 3 {
		list = append(slices.Clone(list[:3]), fmt.Sprintf("and %d more", len(list)-3))
	}
	return fmt.Sprintf("the %s controller of %s cannot be given to new cgroups while it has processes itself, and berth moves none but its own: %s",
			name, o.dir, strings.Join(list, ", ")),
		fmt.Sprintf("move them into a cgroup below it, in a shell: mkdir %[1]s/shell && echo $$ >%[1]s/shell/cgroup.procs", o.dir)
}

// remedyGive says how this user is given a cgroup: by systemd where the host runs it, else by hand.
func remedyGive() string {
	if exists("/run/systemd/system") {
		return remedyDelegate
	}
	return fmt.Sprintf("as root: cd /sys/fs/cgroup && echo +cpu +io +memory +pids >cgroup.subtree_control && mkdir -p user-%[1]d/shell && "+
		"chown %[1]d user-%[1]d user-%[1]d/cgroup.procs user-%[1]d/cgroup.subtree_control && echo PID >user-%[1]d/shell/cgroup.procs, "+
		"where PID is that of your shell; or run berth as root", hostUID())
}

// Keeps refuses a limit that this host cannot keep, with the remedy: ErrUnsupported. It counts what Find would
// have with Options.Adopt.
func (h *Host) Keeps(l Limits) error {
	return refuse(l, h.why, func(c controller) bool { return h.can(c) || h.promised[c] })
}

// supports refuses a limit that this host cannot keep now.
func (h *Host) supports(l Limits) error { return refuse(l, h.why, h.can) }

func refuse(l Limits, why func(controller) (why, remedy string), can func(controller) bool) error {
	for _, asked := range []struct {
		what string
		yes  bool
		c    controller
	}{
		{"CPU limit", l.CPU > 0, cpu},
		{"memory limit", l.Memory > 0, memory},
		{"pids limit", l.PIDs > 0, pids},
	} {
		if asked.yes && !can(asked.c) {
			why, remedy := why(asked.c)
			return fmt.Errorf("%s: %w: %s; %s", asked.what, berth.ErrUnsupported, why, remedy)
		}
	}
	return nil
}
