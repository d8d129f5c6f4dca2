package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
)

// Check refuses what this engine would refuse later, when the images are there and steps have run: networks, runtimes
// and devices that the daemon or this host does not have, and what makes no sense. The specs need no IDs, and of their
// images no more than how they are called.
func (e *Engine) Check(ctx context.Context, spec berth.SandboxSpec, steps []berth.StepSpec) error {
	if spec.ID == "" {
		spec.ID = "check"
	}
	if err := checkSandbox(&spec); err != nil {
		return err
	}
	if err := e.checkNetwork(ctx, spec.Network.Mode); err != nil {
		return err
	}
	if err := e.refuseParent(ctx, spec.CgroupParent); err != nil {
		return err
	}
	s := &Sandbox{e: e, spec: spec}
	if slices.ContainsFunc(steps, func(s berth.StepSpec) bool { return len(s.Mounts)+len(s.Devices) > 0 }) {
		// Where a daemon is that cannot be asked, the start says.
		away, err := e.Elsewhere(ctx)
		s.remote = err == nil && away != ""
	}
	for i := range steps {
		if err := s.checkWhole(ctx, steps[i]); err != nil {
			if len(steps) > 1 {
				return fmt.Errorf("step %d: %w", i+1, err)
			}
			return err
		}
	}
	return nil
}

func (s *Sandbox) checkWhole(ctx context.Context, step berth.StepSpec) error {
	if step.ID == "" {
		step.ID = "check"
	}
	if ref := step.Image.Ref; ref != "" && !strings.HasPrefix(ref, "sha256:") {
		if _, err := parseRef(ref); err != nil {
			return err
		}
	}
	if len(argv(&step)) == 0 {
		step.Command = []string{"true"} // the image, which is not known yet, may have one
	}
	if err := checkStep(&step); err != nil {
		return err
	}
	for _, m := range step.Mounts {
		if m.Type != berth.MountTmpfs {
			if _, err := planMount(m); err != nil {
				return err
			}
			if s.remote {
				if err := (&remote{s: s}).refuse(m); err != nil {
					return err
				}
			}
		}
	}
	for _, d := range step.Devices {
		if s.remote {
			return s.e.notHere("device " + d.Host)
		}
		if err := checkDevice(d.Host); err != nil {
			return err
		}
	}
	if l := s.asked(step.Limits); l.CPU > 0 || l.Memory > 0 || l.PIDs > 0 {
		if host, err := s.e.daemon(ctx); err == nil { // else the start says
			if err := host.keeps.refuse(l); err != nil {
				return err
			}
		}
	}
	if err := s.e.refuseConfinement(ctx, confinementOf(&step)); err != nil {
		return err
	}
	for k := range step.Sysctls {
		if !ownSysctl(k, s.spec.Network.Mode) {
			return fmt.Errorf("sysctl %s: %w: it is the whole host's; a container has those of its own namespaces: kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*, and net.* with a network of its own", k, berth.ErrInvalid)
		}
	}
	return s.e.checkRuntime(ctx, step.Runtime)
}

func checkDevice(p string) error {
	st, err := os.Stat(path.Clean(p))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("device %s: %w: this host has none of that name", p, berth.ErrNotFound)
	case err != nil:
		return fmt.Errorf("device %s: %w: %w", p, kindOf(err), err)
	case st.Mode()&fs.ModeDevice == 0 && !st.IsDir():
		return fmt.Errorf("device %s: %w: it is no device node", p, berth.ErrInvalid)
	}
	return nil
}

// ownSysctl reports whether a kernel parameter is of a namespace that each container has.
func ownSysctl(k string, mode berth.NetworkMode) bool {
	switch {
	case strings.HasPrefix(k, "net."):
		return mode != berth.NetworkHost
	case strings.HasPrefix(k, "fs.mqueue."):
		return true
	}
	return slices.Contains([]string{
		"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni",
		"kernel.shm_rmid_forced", "kernel.domainname", "kernel.hostname",
	}, k)
}

// checkRuntime refuses a runtime that the daemon does not have.
func (e *Engine) checkRuntime(ctx context.Context, name string) error {
	if name == "" {
		return nil
	}
	host, err := e.daemon(ctx)
	if err != nil {
		return err
	}
	if !slices.Contains(host.runtimes, name) {
		return fmt.Errorf("OCI runtime %s: %w: the daemon has %s; add it to the daemon's configuration", name, berth.ErrNotFound, strings.Join(host.runtimes, ", "))
	}
	return nil
}

// checkNetwork refuses a network that the daemon does not have.
func (e *Engine) checkNetwork(ctx context.Context, mode berth.NetworkMode) error {
	if mode == berth.NetworkNone || mode == berth.NetworkHost {
		return nil
	}
	ctx, cancel := e.call(ctx)
	defer cancel()
	_, err := e.api().NetworkInspect(ctx, string(mode), client.NetworkInspectOptions{})
	if is(err, berth.ErrNotFound) {
		return fmt.Errorf("network %s: %w: the daemon has none of that name", mode, berth.ErrNotFound)
	}
	if err != nil {
		return wrap(ctx, "network "+string(mode), err)
	}
	return nil
}
