package cdi

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
)

// hookNames are the stages of a container's life at which hooks run.
var hookNames = []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"}

// Apply edits an OCI spec: all of it or, on an error, nothing. It takes what a device node leaves open from the
// host, and does not check what the spec fixes: that is Check's. What was reachable from *spec before stays as
// it was; the edited parts are new.
func Apply(spec *oci.Spec, e *Edits, host Host) error {
	if spec == nil {
		return errors.New("edit an OCI spec: there is none")
	}
	if e == nil {
		return nil
	}
	if err := ValidateEdits(e); err != nil {
		return fmt.Errorf("%w CDI edits: %w", berth.ErrInvalid, err)
	}
	// A copy: what the host says of nodes today must not get into a cached spec, nor what the caller does to
	// the edited OCI spec.
	e = Append(nil, e)
	ed := editor{spec: *spec}
	ed.env(e.Env)
	if err := ed.devices(e.DeviceNodes, host); err != nil {
		return err
	}
	ed.netDevices(e.NetDevices)
	ed.mounts(e.Mounts)
	ed.hooks(e.Hooks)
	if r := e.IntelRdt; r != nil {
		ed.linux().IntelRdt = &oci.LinuxIntelRdt{
			ClosID: r.ClosID, Schemata: r.Schemata, L3CacheSchema: r.L3CacheSchema,
			MemBwSchema: r.MemBwSchema, EnableMonitoring: r.EnableMonitoring,
		}
	}
	ed.groups(e.AdditionalGIDs)
	*spec = ed.spec
	return nil
}

// editor changes a shallow copy of a spec. What it changes, it copies first.
type editor struct {
	spec                      oci.Spec
	ownLinux, ownProcess      bool
	ownRes, ownHooks, ownNets bool
}

func (ed *editor) linux() *oci.Linux {
	if !ed.ownLinux {
		ed.ownLinux = true
		l := oci.Linux{}
		if ed.spec.Linux != nil {
			l = *ed.spec.Linux
		}
		l.Devices = slices.Clone(l.Devices)
		ed.spec.Linux = &l
	}
	return ed.spec.Linux
}

func (ed *editor) resources() *oci.LinuxResources {
	l := ed.linux()
	if !ed.ownRes {
		ed.ownRes = true
		r := oci.LinuxResources{}
		if l.Resources != nil {
			r = *l.Resources
		}
		r.Devices = slices.Clone(r.Devices)
		l.Resources = &r
	}
	return l.Resources
}

func (ed *editor) process() *oci.Process {
	if !ed.ownProcess {
		ed.ownProcess = true
		p := oci.Process{}
		if ed.spec.Process != nil {
			p = *ed.spec.Process
		}
		p.Env, p.User.AdditionalGids = slices.Clone(p.Env), slices.Clone(p.User.AdditionalGids)
		ed.spec.Process = &p
	}
	return ed.spec.Process
}

// env replaces a variable where it is, and adds new ones at the end.
func (ed *editor) env(env []string) {
	for _, v := range env {
		p := ed.process()
		name, _, _ := strings.Cut(v, "=")
		at := -1
		for i, old := range p.Env {
			if n, _, _ := strings.Cut(old, "="); n == name {
				at = i // of several, the last is the one that counts
			}
		}
		if at < 0 {
			p.Env = append(p.Env, v)
		} else {
			p.Env[at] = v
		}
	}
}

func (ed *editor) devices(nodes []*specs.DeviceNode, host Host) error {
	var user oci.User
	if ed.spec.Process != nil {
		user = ed.spec.Process.User
	}
	for _, d := range nodes {
		if err := complete(d, host); err != nil {
			return err
		}
		dev := oci.LinuxDevice{
			Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor,
			FileMode: d.FileMode, UID: d.UID, GID: d.GID,
		}
		if dev.UID == nil && user.UID > 0 {
			dev.UID = clonePtr(&user.UID)
		}
		if dev.GID == nil && user.GID > 0 {
			dev.GID = clonePtr(&user.GID)
		}
		l := ed.linux()
		l.Devices = slices.DeleteFunc(l.Devices, func(o oci.LinuxDevice) bool { return o.Path == dev.Path })
		l.Devices = append(l.Devices, dev)
		if d.Type != "b" && d.Type != "c" {
			continue
		}
		access := cmp.Or(d.Permissions, "rwm")
		if access == NoPermissions {
			access = ""
		}
		r := ed.resources()
		r.Devices = append(r.Devices, oci.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &dev.Major, Minor: &dev.Minor, Access: access})
	}
	return nil
}

// complete fills in, from the host, what a device node leaves open.
func complete(d *specs.DeviceNode, host Host) error {
	fixed := isFixed(d)
	path := cmp.Or(d.HostPath, d.Path)
	n, err := host.node(path)
	if err == nil && n.Type == "" {
		err = errors.New("it is no device node")
	}
	if err != nil {
		if fixed {
			return nil
		}
		return fmt.Errorf("CDI device node %s: %w: %w", path, berth.ErrNotFound, err)
	}
	if d.FileMode == nil {
		d.FileMode = &n.Mode
	}
	if fixed {
		return nil
	}
	if d.Type = cmp.Or(d.Type, n.Type); d.Type != n.Type {
		return fmt.Errorf("CDI device node %s: %w: the spec says type %s, the host has %s", path, berth.ErrConflict, d.Type, n.Type)
	}
	if d.Type != "p" && d.Major == 0 {
		d.Major, d.Minor = n.Major, n.Minor
	}
	return nil
}

// isFixed says whether a spec describes a device node so completely that the standard lets it be without a
// node on the host.
func isFixed(d *specs.DeviceNode) bool { return d.Type != "" && (d.Major != 0 || d.Type == "p") }

func (ed *editor) netDevices(devices []*specs.LinuxNetDevice) {
	for _, d := range devices {
		l := ed.linux()
		if !ed.ownNets {
			ed.ownNets = true
			l.NetDevices = maps.Clone(l.NetDevices)
			if l.NetDevices == nil {
				l.NetDevices = map[string]oci.LinuxNetDevice{}
			}
		}
		l.NetDevices[d.HostInterfaceName] = oci.LinuxNetDevice{Name: d.Name}
	}
}

// mounts replaces mounts of the same destination, and puts all in an order in which none hides another.
func (ed *editor) mounts(mounts []*specs.Mount) {
	if len(mounts) == 0 {
		return
	}
	userNS := false
	if ed.spec.Linux != nil {
		userNS = slices.ContainsFunc(ed.spec.Linux.Namespaces, func(n oci.LinuxNamespace) bool { return n.Type == oci.UserNamespace })
	}
	all := slices.Grow(slices.Clone(ed.spec.Mounts), len(mounts))
	taken := map[string]bool{}
	for _, m := range all {
		taken[m.Destination] = true
	}
	for _, m := range mounts {
		if taken[m.ContainerPath] {
			all = slices.DeleteFunc(all, func(o oci.Mount) bool { return o.Destination == m.ContainerPath })
		}
		taken[m.ContainerPath] = true
		om := oci.Mount{Source: m.HostPath, Destination: m.ContainerPath, Type: m.Type, Options: m.Options}
		if userNS {
			om.Options = idMapped(om)
		}
		all = append(all, om)
	}
	depths := map[string]int{}
	for _, m := range all {
		depths[m.Destination] = strings.Count(filepath.Clean(m.Destination), "/")
	}
	slices.SortStableFunc(all, func(a, b oci.Mount) int { return cmp.Compare(depths[a.Destination], depths[b.Destination]) })
	ed.spec.Mounts = all
}

// idMapped are the options of a bind mount whose files are to keep their owners in a user namespace.
func idMapped(m oci.Mount) []string {
	option := ""
	if m.Type == "bind" {
		option = "idmap"
	}
	for _, o := range m.Options {
		switch o {
		case "idmap", "ridmap":
			return m.Options
		case "bind":
			option = "idmap"
		case "rbind":
			option = "ridmap"
		}
	}
	if option == "" {
		return m.Options
	}
	return append(m.Options, option)
}

func (ed *editor) hooks(hooks []*specs.Hook) {
	for _, h := range hooks {
		if !ed.ownHooks {
			ed.ownHooks = true
			all := oci.Hooks{}
			if ed.spec.Hooks != nil {
				all = *ed.spec.Hooks
			}
			ed.spec.Hooks = &all
		}
		list := stage(ed.spec.Hooks, h.HookName)
		// Clip: append must not write into an array that the unedited spec also has.
		*list = append(slices.Clip(*list), oci.Hook{Path: h.Path, Args: h.Args, Env: h.Env, Timeout: h.Timeout})
	}
}

func stage(h *oci.Hooks, name string) *[]oci.Hook {
	switch name {
	case "prestart":
		return &h.Prestart //nolint:staticcheck // deprecated, and part of CDI
	case "createRuntime":
		return &h.CreateRuntime
	case "createContainer":
		return &h.CreateContainer
	case "startContainer":
		return &h.StartContainer
	case "poststart":
		return &h.Poststart
	default: // validated
		return &h.Poststop
	}
}

// groups adds supplementary groups. Group 0 is never given to a container by a spec.
func (ed *editor) groups(gids []uint32) {
	for _, gid := range gids {
		if gid == 0 {
			continue
		}
		if p := ed.process(); !slices.Contains(p.User.AdditionalGids, gid) {
			p.User.AdditionalGids = append(p.User.AdditionalGids, gid)
		}
	}
}
