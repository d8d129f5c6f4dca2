package monitor

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/cgroup"
)

// runtimeRules are what OCI runtimes allow every container on cgroup v1, beside what its spec says: /dev/net/tun,
// which is of no use without CAP_NET_ADMIN, in runc before 1.2.
var runtimeRules = []berth.Node{{Type: "c", Major: 10, Minor: 200}}

// prove compares a created container with what it was lent, before its command runs.
func (l *launch) prove(c bundle.Created) error {
	lent := grant.Set{Nodes: l.req.Lent}
	held := grant.Container{Root: c.Root, Others: l.otherDevices()}
	for _, m := range l.spec.Mounts {
		bind := m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
		held.Bound = held.Bound || bind && path.Clean(m.Destination) == "/dev"
	}
	if err := lent.ProveNodes(held); err != nil {
		return err
	}
	return l.proveRules(c.Pid, &lent, held)
}

// otherDevices are those that the step has beside what was lent.
func (l *launch) otherDevices() (others []berth.Node) {
	for _, d := range l.spec.Linux.Devices {
		n := berth.Node{Device: berth.Device{Host: d.Path}, Type: d.Type, Major: uint32(d.Major), Minor: uint32(d.Minor)}
		if slices.ContainsFunc(l.req.Lent, func(lent berth.Node) bool {
			return lent.Type == n.Type && lent.Major == n.Major && lent.Minor == n.Minor
		}) {
			continue
		}
		i := slices.IndexFunc(l.req.Step.Devices, func(s berth.Device) bool { return s.Container == d.Path || s.Container == "" && s.Host == d.Path })
		if i >= 0 {
			n.Permissions = l.req.Step.Devices[i].Permissions
		}
		others = append(others, n)
	}
	return others
}

// rulesDevices reports whether this process can set device rules. Where it cannot, no node of a container's root can be
// opened, whoever made it: only what is in its /dev, and what is bound there.
func (m *Monitor) rulesDevices() bool { return slices.Contains(m.cgroups.Controllers(), "devices") }

// proveRules compares the container's device rules with what it was lent. Where this process can set none, there
// is nothing to compare: see launch.makeNoNodes.
func (l *launch) proveRules(pid int, lent *grant.Set, held grant.Container) error {
	if !l.c.sb.m.rulesDevices() {
		return nil
	}
	list, err := l.c.sb.m.hierarchies.RulesOf(pid)
	if errors.Is(err, grant.ErrNoRules) {
		return l.proveProgram(lent, held)
	}
	if err != nil {
		return err
	}
	if l.starter.Name() == runtimeDirect {
		return lent.ProveRules(list, held)
	}
	return lent.ProveRules(list, held, runtimeRules...)
}

// proveProgram demands that the program which holds the rules of cgroup v2 is the one for exactly these devices.
func (l *launch) proveProgram(lent *grant.Set, held grant.Container) error {
	var rules []specs.LinuxDeviceCgroup
	for _, n := range slices.Concat(lent.Nodes, held.Others) {
		major, minor := int64(n.Major), int64(n.Minor)
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: n.Type, Major: &major, Minor: &minor, Access: n.Permissions})
	}
	switch err := l.c.group.HoldsRules(rules); {
	case errors.Is(err, cgroup.ErrOtherRules):
		return fmt.Errorf("%w: %w", grant.ErrDiffers, err)
	case err != nil:
		return fmt.Errorf("compare the container's device rules with what it was lent: %w", err)
	}
	return nil
}
