package direct

import (
	"errors"
	"fmt"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/seccomp"
)

// supported are the fields of a spec that a start heeds, by their names in JSON; "[]" is any element of a
// list. A field stands for all below it where it ends in ".*". What is set and not here is refused, so that a
// field of a later version of the specification is not passed over either.
var supported = []string{
	"ociVersion",
	"annotations.*", // they say nothing to a runtime, but groups.Keep
	"hostname",
	"domainname",
	"root.path", // bundle.Root counts
	"root.readonly",
	"hooks.prestart.*",
	"hooks.createRuntime.*",
	"hooks.createContainer.*",
	"process.terminal",
	"process.consoleSize.*",
	"process.user.uid",
	"process.user.gid",
	"process.user.umask",
	"process.user.additionalGids.*",
	"process.args.*",
	"process.env.*",
	"process.cwd",
	"process.capabilities.*",
	"process.rlimits.*",
	"process.noNewPrivileges",
	"process.apparmorProfile", // checked below
	"process.oomScoreAdj",
	"mounts.[].destination",
	"mounts.[].type",
	"mounts.[].source",
	"mounts.[].options.*",
	"linux.uidMappings.*",
	"linux.gidMappings.*",
	"linux.sysctl.*",
	"linux.resources.*", // bundle.Cgroup has them
	"linux.cgroupsPath",
	"linux.namespaces.[].type",
	"linux.namespaces.[].path", // checked below
	"linux.devices.*",
	"linux.seccomp.*", // its compiler checks it
	"linux.rootfsPropagation",
	"linux.maskedPaths.*",
	"linux.readonlyPaths.*",
}

// Check implements bundle.Starter: nil where the start of a container of this spec heeds every field of it.
// ErrInvalid says that the spec makes no sense, ErrUnsupported that another runtime may be able to.
func (s *Starter) Check(spec *specs.Spec) error {
	_, err := s.check(spec)
	return err
}

// check is Check, and answers the compiled seccomp profile; nil where there is none.
func (s *Starter) check(spec *specs.Spec) (*seccomp.Filter, error) {
	if err := s.known.check(reflect.ValueOf(spec).Elem()); err != nil {
		return nil, err
	}
	if spec.Process == nil || len(spec.Process.Args) == 0 {
		return nil, fmt.Errorf("process.args: %w: there is no command", berth.ErrInvalid)
	}
	if spec.Linux == nil {
		return nil, fmt.Errorf("linux: %w: it is missing", berth.ErrInvalid)
	}
	if err := s.checkProcess(spec.Process); err != nil {
		return nil, err
	}
	if err := s.checkNamespaces(spec); err != nil {
		return nil, err
	}
	if err := checkHooks(spec); err != nil {
		return nil, err
	}
	if err := checkMounts(spec); err != nil {
		return nil, err
	}
	if err := checkLinux(spec); err != nil {
		return nil, err
	}
	if spec.Linux.Seccomp == nil {
		return nil, nil
	}
	f, err := s.filters.Compile(spec.Linux.Seccomp)
	if err != nil {
		return nil, fmt.Errorf("linux.seccomp: %w", err)
	}
	return f, nil
}

func checkLinux(spec *specs.Spec) error {
	for i := range spec.Linux.Devices {
		if _, err := parseDevice(&spec.Linux.Devices[i]); err != nil {
			return fmt.Errorf("linux.devices: %w", err)
		}
	}
	for key := range spec.Linux.Sysctl {
		if err := checkSysctl(spec, key); err != nil {
			return fmt.Errorf("linux.sysctl: %w", err)
		}
	}
	for _, list := range []struct {
		field string
		paths []string
	}{{"linux.maskedPaths", spec.Linux.MaskedPaths}, {"linux.readonlyPaths", spec.Linux.ReadonlyPaths}} {
		for _, name := range list.paths {
			if !path.IsAbs(name) || path.Clean(name) == "/" {
				return fmt.Errorf("%s: %q: %w: it is not an absolute path below the root", list.field, name, berth.ErrInvalid)
			}
		}
	}
	return nil
}

// checkProcess checks a process of a spec, or one that is to be executed in a container.
func (s *Starter) checkProcess(p *specs.Process) error {
	if strings.Contains(strings.Join(p.Args, ""), "\x00") || strings.Contains(strings.Join(p.Env, ""), "\x00") || strings.Contains(p.Cwd, "\x00") {
		return fmt.Errorf("process: %w: arguments, environment and working directory cannot hold a zero byte", berth.ErrInvalid)
	}
	if p.Cwd != "" && !path.IsAbs(p.Cwd) {
		return fmt.Errorf("process.cwd %q: %w: it is not absolute", p.Cwd, berth.ErrInvalid)
	}
	if _, err := parseCapabilities(p.Capabilities); err != nil {
		return fmt.Errorf("process.capabilities: %w", err)
	}
	seen := map[string]bool{}
	for _, l := range p.Rlimits {
		if _, ok := rlimitTypes[l.Type]; !ok {
			return fmt.Errorf("process.rlimits: %q: %w", l.Type, berth.ErrUnsupported)
		}
		if l.Soft > l.Hard {
			return fmt.Errorf("process.rlimits: %s: %w: the soft limit %d is above the hard limit %d", l.Type, berth.ErrInvalid, l.Soft, l.Hard)
		}
		if seen[l.Type] {
			return fmt.Errorf("process.rlimits: %s: %w: it is there twice", l.Type, berth.ErrInvalid)
		}
		seen[l.Type] = true
	}
	if o := p.OOMScoreAdj; o != nil && (*o < -1000 || *o > 1000) {
		return fmt.Errorf("process.oomScoreAdj %d: %w: it is from -1000 to 1000", *o, berth.ErrInvalid)
	}
	if a := p.ApparmorProfile; a != "" && a != "unconfined" && !s.hasAppArmor {
		return fmt.Errorf("process.apparmorProfile: %w: this kernel has no AppArmor", berth.ErrUnsupported)
	}
	return s.checkGroups(&p.User)
}

// checkNamespaces demands what confines a container; there is no way here to start one without.
func (s *Starter) checkNamespaces(spec *specs.Spec) error {
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range spec.Linux.Namespaces {
		if _, ok := namespaceFlags[ns.Type]; !ok && ns.Type != specs.CgroupNamespace {
			return fmt.Errorf("linux.namespaces: %q: %w by a direct start", ns.Type, berth.ErrUnsupported)
		}
		if ns.Path != "" && ns.Type != specs.NetworkNamespace {
			return fmt.Errorf("linux.namespaces: path of the %s namespace: %w by a direct start", ns.Type, berth.ErrUnsupported)
		}
		if seen[ns.Type] {
			return fmt.Errorf("linux.namespaces: %q: %w: it is there twice", ns.Type, berth.ErrInvalid)
		}
		seen[ns.Type] = true
	}
	for _, t := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.MountNamespace} {
		if !seen[t] {
			return fmt.Errorf("linux.namespaces: a container in the host's %s namespace: %w by a direct start", t, berth.ErrUnsupported)
		}
	}
	switch {
	case seen[specs.UserNamespace] && (len(spec.Linux.UIDMappings) == 0 || len(spec.Linux.GIDMappings) == 0):
		return fmt.Errorf("linux.uidMappings: %w: a user namespace without mappings", berth.ErrInvalid)
	case !seen[specs.UserNamespace] && len(spec.Linux.UIDMappings)+len(spec.Linux.GIDMappings) > 0:
		return fmt.Errorf("linux.uidMappings: %w: mappings without a user namespace", berth.ErrInvalid)
	case (spec.Hostname != "" || spec.Domainname != "") && !seen[specs.UTSNamespace]:
		return fmt.Errorf("hostname: %w: without a uts namespace it would be the host's", berth.ErrInvalid)
	}
	return nil
}

func checkMounts(spec *specs.Spec) error {
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		name := fmt.Sprintf("mounts: %s", m.Destination)
		if !path.IsAbs(m.Destination) || path.Clean(m.Destination) == "/" {
			return fmt.Errorf("%s: %w: it is not an absolute path below the root", name, berth.ErrInvalid)
		}
		o, err := parseMount(m)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if err := checkCgroupMount(spec, m); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if o.bind && !path.IsAbs(m.Source) {
			return fmt.Errorf("%s: source %q: %w: it is not absolute", name, m.Source, berth.ErrInvalid)
		}
		if strings.Contains(m.Destination+m.Source, "\x00") || len(m.Source) > 4095 {
			return fmt.Errorf("%s: %w: no path", name, berth.ErrInvalid)
		}
	}
	prop := strings.TrimPrefix(spec.Linux.RootfsPropagation, "r")
	if _, ok := propagations[prop]; prop != "" && !ok {
		return fmt.Errorf("linux.rootfsPropagation %q: %w", spec.Linux.RootfsPropagation, berth.ErrInvalid)
	}
	return nil
}

// ipcSysctls are the kernel parameters that belong to an IPC namespace, beside those below fs.mqueue.
var ipcSysctls = []string{
	"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
}

// checkSysctl allows a kernel parameter only where it belongs to a namespace that the container has for
// itself; any other would be the host's. The rules are runc's.
func checkSysctl(spec *specs.Spec, key string) error {
	name, err := sysctlPath(key)
	if err != nil {
		return err
	}
	var t specs.LinuxNamespaceType
	switch {
	case slices.Contains(ipcSysctls, name), strings.HasPrefix(name, "fs/mqueue/"):
		t = specs.IPCNamespace
	case strings.HasPrefix(name, "net/"):
		t = specs.NetworkNamespace
	case name == "kernel/domainname", name == "kernel/hostname":
		t = specs.UTSNamespace
	default:
		return fmt.Errorf("%q: %w: it is in no namespace, and would be set for the whole host", key, berth.ErrDenied)
	}
	if _, ok := namespace(spec, t); !ok {
		return fmt.Errorf("%q: %w: the container has no %s namespace of its own", key, berth.ErrDenied, t)
	}
	return nil
}

// hasAppArmor reports whether a profile can be set.
func hasAppArmor() bool {
	data, err := os.ReadFile("/sys/module/apparmor/parameters/enabled")
	if err != nil || !strings.HasPrefix(string(data), "Y") {
		return false
	}
	_, err = os.Stat("/sys/kernel/security/apparmor/profiles")
	return !errors.Is(err, unix.ENOENT)
}
