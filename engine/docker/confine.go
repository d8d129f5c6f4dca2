package docker

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/berth-project/berth"
)

// confinement is what a step asks of the daemon's host beyond what each container gets.
type confinement struct {
	apparmor string
	selinux  []string
}

func confinementOf(step *berth.StepSpec) confinement {
	return confinement{apparmor: step.AppArmor, selinux: step.SELinux}
}

// check refuses what makes no sense.
func (c confinement) check() error {
	if err := berth.CheckAppArmor(c.apparmor); err != nil {
		return err
	}
	return berth.CheckSELinux(c.selinux)
}

// options are the daemon's words.
func (c confinement) options() (all []string) {
	if c.apparmor != "" {
		all = append(all, "apparmor="+c.apparmor)
	}
	for _, o := range c.selinux {
		all = append(all, "label="+o)
	}
	return all
}

// refuse refuses what the daemon would take and pass over.
func (c confinement) refuse(p parts) error {
	if c.apparmor != "" && c.apparmor != berth.Unconfined && !p.apparmor {
		return fmt.Errorf("AppArmor profile %s: %w: the daemon says that its host has no AppArmor; boot it with AppArmor (apparmor=1 security=apparmor on the kernel command line), or give apparmor=unconfined", c.apparmor, berth.ErrUnsupported)
	}
	if len(c.selinux) > 0 && !slices.Equal(c.selinux, []string{"disable"}) && !p.selinux {
		return fmt.Errorf("SELinux label %s: %w: the daemon says that it sets none; on a host with SELinux start it with --selinux-enabled, or give label=disable", c.selinux[0], berth.ErrUnsupported)
	}
	return nil
}

// refuseConfinement asks the daemon, if there is anything to ask it for.
func (e *Engine) refuseConfinement(ctx context.Context, c confinement) error {
	if c.apparmor == "" && len(c.selinux) == 0 {
		return nil
	}
	p, err := e.parts(ctx)
	if err != nil {
		return err
	}
	return c.refuse(p)
}

// confines reports whether a Docker daemon's security options name a module of the kernel's.
func confines(options []string, name string) bool {
	return slices.ContainsFunc(options, func(o string) bool {
		first, _, _ := strings.Cut(o, ",")
		return first == "name="+name
	})
}

// cgroupDriver is how a daemon makes cgroups.
type cgroupDriver struct {
	name string // "cgroupfs", "systemd"; else it makes none
	none string // why it makes none all the same
}

// refuse refuses a parent that the daemon would not take, or would pass over.
func (d cgroupDriver) refuse(parent string) error {
	const at = "cgroup parent %s: %w: the daemon "
	switch slice := berth.IsSlice(parent); {
	case parent == "":
		return nil
	case d.none != "":
		return fmt.Errorf(at+"makes no cgroups: %s", parent, berth.ErrUnsupported, d.none)
	case d.name == "systemd" && !slice:
		return fmt.Errorf(at+"has systemd make its cgroups; name a slice, as in %s.slice", parent, berth.ErrInvalid, strings.TrimSuffix(path.Base(parent), ".slice"))
	case d.name == "cgroupfs" && slice:
		return fmt.Errorf(at+"makes its cgroups itself; give an absolute path, as in /%s", parent, berth.ErrInvalid, parent)
	case d.name != "systemd" && d.name != "cgroupfs":
		return fmt.Errorf(at+"makes no cgroups that others could be above (driver %q); start it with the driver systemd or cgroupfs", parent, berth.ErrUnsupported, d.name)
	}
	return nil
}

// refuseParent asks the daemon, if there is a parent.
func (e *Engine) refuseParent(ctx context.Context, parent string) error {
	if parent == "" {
		return nil
	}
	host, err := e.daemon(ctx)
	if err != nil {
		return err
	}
	return host.driver.refuse(parent)
}
