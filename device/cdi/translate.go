package cdi

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
)

// Translation is what edits are in terms of an engine that knows no CDI but has devices, bind mounts, an
// environment and groups, as the Docker API does.
type Translation struct {
	Devices []TranslatedDevice
	Mounts  []TranslatedMount
	Env     []string // NAME=VALUE; over the container's own
	GIDs    []uint32 // supplementary groups, none twice
}

// TranslatedDevice is a device node of the host in a container.
type TranslatedDevice struct {
	Host, Container string
	Permissions     string // of "rwm"
}

// TranslatedMount is a file or directory of the host in a container.
type TranslatedMount struct {
	Source, Target string
	ReadOnly       bool
	Propagation    string // "rprivate" and so on; "" is the engine's default
}

// Translate says edits without CDI. What such an engine cannot do (hooks, network devices, nodes that differ
// from the host's, file systems that are no bind mounts) is ErrUnsupported and named: a container must not
// start with a part of its device missing.
//
// nosuid and nodev are left out: berth's containers get no new privileges, and open only the devices that they
// were given.
func Translate(e *Edits, host Host) (*Translation, error) {
	t := &Translation{Env: slices.Clone(e.Env)}
	for _, h := range e.Hooks {
		return nil, unsupported("the %s hook %s", h.HookName, strings.Join(append([]string{h.Path}, h.Args[min(1, len(h.Args)):]...), " "))
	}
	for _, d := range e.NetDevices {
		return nil, unsupported("the network device %s", d.HostInterfaceName)
	}
	if e.IntelRdt != nil {
		return nil, unsupported("intelRdt")
	}
	for _, d := range e.DeviceNodes {
		td, err := translateNode(d, host)
		if err != nil {
			return nil, err
		}
		t.Devices = slices.DeleteFunc(t.Devices, func(o TranslatedDevice) bool { return o.Container == td.Container })
		t.Devices = append(t.Devices, td)
	}
	for _, m := range e.Mounts {
		tm, err := translateMount(m)
		if err != nil {
			return nil, err
		}
		t.Mounts = slices.DeleteFunc(t.Mounts, func(o TranslatedMount) bool { return o.Target == tm.Target })
		t.Mounts = append(t.Mounts, tm)
	}
	for _, gid := range e.AdditionalGIDs {
		if gid != 0 && !slices.Contains(t.GIDs, gid) {
			t.GIDs = append(t.GIDs, gid)
		}
	}
	return t, nil
}

func unsupported(what string, args ...any) error {
	return fmt.Errorf("%w without CDI: %s; use an engine that injects CDI devices", berth.ErrUnsupported, fmt.Sprintf(what, args...))
}

// translateNode: the engine takes number, mode and owner of a node from the host, so they must be those that the
// spec wants.
func translateNode(d *specs.DeviceNode, host Host) (TranslatedDevice, error) {
	p := cmp.Or(d.HostPath, d.Path)
	fail := func(what string, args ...any) (TranslatedDevice, error) {
		return TranslatedDevice{}, unsupported("the device node %s: "+what, append([]any{p}, args...)...)
	}
	n, err := host.node(p)
	if err != nil {
		return fail("it is not on this host: %v", err)
	}
	access := cmp.Or(d.Permissions, "rwm")
	switch {
	case n.Type != "c" && n.Type != "b":
		return fail("it is neither a character nor a block device")
	case d.Type != "" && d.Type != n.Type && (d.Type != "u" || n.Type != "c"):
		return fail("it is of type %s, not %s", n.Type, d.Type)
	case d.Major != 0 && (d.Major != n.Major || d.Minor != n.Minor):
		return fail("it is %s, not %s", number(n.Major, n.Minor), number(d.Major, d.Minor))
	case d.FileMode != nil && *d.FileMode&0o7777 != n.Mode:
		return fail("its mode is %#o, not %#o", n.Mode, *d.FileMode)
	case d.UID != nil && *d.UID != n.UID:
		return fail("its owner is %d, not %d", n.UID, *d.UID)
	case d.GID != nil && *d.GID != n.GID:
		return fail("its group is %d, not %d", n.GID, *d.GID)
	case access == NoPermissions:
		return fail("no permissions at all")
	}
	return TranslatedDevice{Host: p, Container: d.Path, Permissions: access}, nil
}

func translateMount(m *specs.Mount) (TranslatedMount, error) {
	t := TranslatedMount{Source: m.HostPath, Target: m.ContainerPath}
	if !isBind(m) {
		return t, unsupported("the mount of type %q on %s", m.Type, m.ContainerPath)
	}
	for _, o := range m.Options {
		switch o {
		case "bind", "rbind", "rw", "nosuid", "nodev":
		case "ro":
			t.ReadOnly = true
		case "private", "rprivate", "slave", "rslave", "shared", "rshared":
			t.Propagation = o
		default:
			return t, unsupported("the option %q of the mount on %s", o, m.ContainerPath)
		}
	}
	return t, nil
}
