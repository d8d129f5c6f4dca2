package oci

import (
	"context"
	"fmt"
	"math"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/cgroup"
	"github.com/berth-project/berth/engine/oci/network"
	"github.com/berth-project/berth/engine/oci/runtime"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/image"
)

func checkLimits(l berth.Limits) error {
	switch {
	case math.IsNaN(l.CPU), l.CPU < 0, l.CPU > 0 && l.CPU < 0.01:
		return fmt.Errorf("CPU limit of %v: %w: it is at least 0.01 cores", l.CPU, berth.ErrInvalid)
	case l.Memory < 0:
		return fmt.Errorf("memory limit of %d: %w: it is a number of bytes", l.Memory, berth.ErrInvalid)
	case l.Disk < 0:
		return fmt.Errorf("disk limit of %d: %w: it is a number of bytes", l.Disk, berth.ErrInvalid)
	case l.PIDs < -1:
		return fmt.Errorf("pids limit of %d: %w: it is a number of processes, or -1 for none", l.PIDs, berth.ErrInvalid)
	case l.PIDs > berth.MaxPIDs:
		return fmt.Errorf("pids limit of %d: %w: Linux takes %d at most; -1 is no limit", l.PIDs, berth.ErrInvalid, berth.MaxPIDs)
	}
	return nil
}

// checkStep refuses what makes no sense before anything is made for it.
func checkStep(s *berth.StepSpec) error {
	if err := checkLimits(s.Limits); err != nil {
		return err
	}
	for _, kv := range s.Env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
			return fmt.Errorf("environment %q: %w: a variable is NAME=VALUE", kv, berth.ErrInvalid)
		}
	}
	for what, list := range map[string][]string{"command": s.Command, "entrypoint": s.Entrypoint, "environment": s.Env} {
		for _, v := range list {
			if strings.ContainsRune(v, 0) {
				return fmt.Errorf("%s %q: %w: it has a zero byte", what, v, berth.ErrInvalid)
			}
		}
	}
	if s.StopSignal != "" {
		if _, err := berth.ParseSignal(s.StopSignal); err != nil {
			return fmt.Errorf("stop %w", err)
		}
	}
	if s.Timeout < 0 || s.Grace < 0 {
		return fmt.Errorf("timeout %s, grace %s: %w: they are not negative", s.Timeout, s.Grace, berth.ErrInvalid)
	}
	return nil
}

// Check refuses what this engine would refuse later, when the images are there and steps have run: limits,
// networks, devices and runtimes that this host does not have, and what makes no sense. The specs need no IDs,
// and of their images no more than how they are called.
func (e *Engine) Check(ctx context.Context, spec berth.SandboxSpec, steps []berth.StepSpec) error {
	if spec.ID == "" {
		spec.ID = "check"
	}
	if _, err := checkSandbox(&spec); err != nil {
		return err
	}
	if spec.Network.Mode == berth.NetworkBridge {
		if err := network.Check(spec.Network.Mode); err != nil {
			return fmt.Errorf("network %s: %w", spec.Network.Mode, err)
		}
	}
	if err := checkParent(ctx, spec.CgroupParent); err != nil {
		return err
	}
	for i := range steps {
		if err := e.checkWhole(ctx, &spec, &steps[i]); err != nil {
			if len(steps) > 1 {
				return fmt.Errorf("step %d: %w", i+1, err)
			}
			return err
		}
	}
	return nil
}

func (e *Engine) checkWhole(ctx context.Context, spec *berth.SandboxSpec, step *berth.StepSpec) error {
	if err := checkStep(step); err != nil {
		return err
	}
	b := &builder{e: e, sb: &wire.Sandbox{Spec: *spec}, step: step, spec: newSpec()}
	parts := []func() error{b.rlimits, b.caps, b.devices, b.limits, b.confine, b.sysctls}
	if step.Seccomp != "" {
		parts = append(parts, b.seccomp)
	}
	for _, part := range parts {
		if err := part(); err != nil {
			return err
		}
	}
	if err := checkRuntime(step.Runtime); err != nil {
		return err
	}
	if ref := step.Image.Ref; ref != "" && !strings.HasPrefix(ref, "sha256:") { // that is an image's ID
		if _, err := image.ParseRef(ref); err != nil {
			return err
		}
	}
	return checkKept(ctx, spec.Limits, step.Limits)
}

// checkRuntime refuses a runtime that is not there.
func checkRuntime(name string) error {
	switch name {
	case "", "direct", "auto":
		return nil
	}
	_, err := runtime.Find(name)
	return err
}

// checkParent refuses a cgroup beneath which this process can make none.
func checkParent(ctx context.Context, parent string) error {
	if parent == "" {
		return nil
	}
	host, err := cgroup.Find(ctx, cgroup.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()
	return host.CheckParent(parent)
}

// checkKept refuses limits that were asked for and that this host cannot keep.
func checkKept(ctx context.Context, whole, step berth.Limits) error {
	asked := cgroup.Limits{CPU: max(whole.CPU, step.CPU), Memory: max(whole.Memory, step.Memory), PIDs: max(whole.PIDs, step.PIDs)}
	if asked == (cgroup.Limits{}) {
		return nil
	}
	host, err := cgroup.Find(ctx, cgroup.Options{})
	if err != nil {
		return err
	}
	defer func() { _ = host.Close() }()
	return host.Keeps(asked)
}
