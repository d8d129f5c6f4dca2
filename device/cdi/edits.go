package cdi

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"
)

// Edits are what a spec does to a container: environment, device nodes, mounts, hooks, groups and more.
type Edits = specs.ContainerEdits

// ValidateEdits checks edits by themselves. It looks at no host.
func ValidateEdits(e *Edits) error {
	if e == nil {
		return nil
	}
	if err := validateEnv(e.Env); err != nil {
		return err
	}
	for _, d := range e.DeviceNodes {
		if err := validateNode(d); err != nil {
			return err
		}
	}
	for _, h := range e.Hooks {
		if err := validateHook(h); err != nil {
			return err
		}
	}
	for _, m := range e.Mounts {
		switch {
		case m == nil, m.HostPath == "" && m.ContainerPath == "":
			return errors.New("mount without paths")
		case m.HostPath == "":
			return fmt.Errorf("mount on %s without hostPath", m.ContainerPath)
		case m.ContainerPath == "":
			return fmt.Errorf("mount of %s without containerPath", m.HostPath)
		}
	}
	if r := e.IntelRdt; r != nil && r.ClosID != "/" {
		if c := r.ClosID; len(c) >= 4096 || c == "." || c == ".." || strings.ContainsAny(c, "/\n") {
			return fmt.Errorf("intelRdt: closID %q is no file name", c)
		}
	}
	return validateNetDevices(e.NetDevices)
}

func validateEnv(env []string) error {
	for _, v := range env {
		if strings.IndexByte(v, '=') <= 0 {
			return fmt.Errorf("env %q is not NAME=VALUE", v)
		}
	}
	return nil
}

func validateNode(d *specs.DeviceNode) error {
	switch {
	case d == nil || d.Path == "":
		return errors.New("device node without path")
	case !slices.Contains([]string{"", "b", "c", "u", "p"}, d.Type):
		return fmt.Errorf("device node %s: type %q is none of b, c, u, p", d.Path, d.Type)
	case d.Permissions != NoPermissions && strings.Trim(d.Permissions, "rwm") != "":
		return fmt.Errorf("device node %s: permissions %q are not of rwm, or none", d.Path, d.Permissions)
	}
	return nil
}

// NoPermissions in a device node stands for a device rule without any.
const NoPermissions = "none"

func validateHook(h *specs.Hook) error {
	switch {
	case h == nil:
		return errors.New("empty hook")
	case !slices.Contains(hookNames, h.HookName):
		return fmt.Errorf("hookName %q is none of %s", h.HookName, strings.Join(hookNames, ", "))
	case h.Path == "":
		return fmt.Errorf("%s hook without path", h.HookName)
	}
	if err := validateEnv(h.Env); err != nil {
		return fmt.Errorf("%s hook %s: %w", h.HookName, h.Path, err)
	}
	return nil
}

func validateNetDevices(devices []*specs.LinuxNetDevice) error {
	hosts, names := map[string]bool{}, map[string]bool{}
	for _, d := range devices {
		switch {
		case d == nil || d.HostInterfaceName == "":
			return errors.New("net device without hostInterfaceName")
		case d.Name == "":
			return fmt.Errorf("net device %s without name", d.HostInterfaceName)
		case hosts[d.HostInterfaceName]:
			return fmt.Errorf("net device %s is there twice", d.HostInterfaceName)
		case names[d.Name]:
			return fmt.Errorf("two net devices become %s", d.Name)
		}
		hosts[d.HostInterfaceName], names[d.Name] = true, true
	}
	return nil
}

func isEmpty(e *Edits) bool {
	return len(e.Env)+len(e.DeviceNodes)+len(e.NetDevices)+len(e.Hooks)+len(e.Mounts)+len(e.AdditionalGIDs) == 0 && e.IntelRdt == nil
}

// Append adds copies of more edits to into, which it returns; nil is made where there is something to add. The
// last intelRdt wins.
func Append(into *Edits, more ...*Edits) *Edits {
	for _, e := range more {
		if e == nil {
			continue
		}
		if into == nil {
			into = &Edits{}
		}
		into.Env = append(into.Env, e.Env...)
		for _, d := range e.DeviceNodes {
			if d == nil {
				continue
			}
			d := *d
			d.FileMode, d.UID, d.GID = clonePtr(d.FileMode), clonePtr(d.UID), clonePtr(d.GID)
			into.DeviceNodes = append(into.DeviceNodes, &d)
		}
		for _, d := range e.NetDevices {
			if d != nil {
				into.NetDevices = append(into.NetDevices, clonePtr(d))
			}
		}
		for _, h := range e.Hooks {
			if h == nil {
				continue
			}
			h := *h
			h.Args, h.Env, h.Timeout = slices.Clone(h.Args), slices.Clone(h.Env), clonePtr(h.Timeout)
			into.Hooks = append(into.Hooks, &h)
		}
		for _, m := range e.Mounts {
			if m == nil {
				continue
			}
			m := *m
			m.Options = slices.Clone(m.Options)
			into.Mounts = append(into.Mounts, &m)
		}
		if r := clonePtr(e.IntelRdt); r != nil {
			r.Schemata = slices.Clone(r.Schemata)
			into.IntelRdt = r
		}
		into.AdditionalGIDs = append(into.AdditionalGIDs, e.AdditionalGIDs...)
	}
	return into
}

func clonePtr[T any](p *T) *T {
	if p == nil {
		return nil
	}
	v := *p
	return &v
}

func cloneMap(m map[string]string) map[string]string { return maps.Clone(m) }

// HookEnv is the environment of a hook whose spec names none.
const HookEnv = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

// CloseHooks gives HookEnv to each hook of e that has no environment. OCI runtimes run such a hook, as root of the
// host, with the environment of the container, which is the image's: LD_PRELOAD would load the image's code. Who hands
// edits to a runtime calls this first.
func CloseHooks(e *Edits) {
	for i, h := range e.Hooks {
		if len(h.Env) == 0 {
			closed := *h // others may have the hook too
			closed.Env = []string{HookEnv}
			e.Hooks[i] = &closed
		}
	}
}
