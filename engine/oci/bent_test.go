package oci_test

import (
	"context"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/enginetest"
	"github.com/berth-project/berth/engine/oci"
)

// bent is this engine with one planted fault, which the suite must catch: of what the suite's own fake does not
// do, as it isolates nothing and limits nothing.
type bent struct {
	*oci.Engine
	sandbox func(*berth.SandboxSpec)
	step    func(*berth.StepSpec)
	exec    func(*berth.ExecSpec)
	exit    func(berth.StepSpec, *berth.Exit)
	address string
}

func (b *bent) Open(ctx context.Context, spec berth.SandboxSpec) (berth.Sandbox, error) {
	if b.sandbox != nil {
		b.sandbox(&spec)
	}
	s, err := b.Engine.Open(ctx, spec)
	if err != nil {
		return nil, err
	}
	return &bentSandbox{s.(*oci.Sandbox), b}, nil
}

type bentSandbox struct {
	*oci.Sandbox
	b *bent
}

func (s *bentSandbox) Start(ctx context.Context, spec berth.StepSpec) (berth.Container, error) {
	given := spec
	if s.b.step != nil {
		s.b.step(&given)
	}
	c, err := s.Sandbox.Start(ctx, given)
	if err != nil {
		return nil, err
	}
	return &bentContainer{c.(*oci.Container), spec, s.b}, nil
}

type bentContainer struct {
	*oci.Container
	spec berth.StepSpec
	b    *bent
}

func (c *bentContainer) Wait(ctx context.Context) (berth.Exit, error) {
	e, err := c.Container.Wait(ctx)
	if err == nil && c.b.exit != nil {
		c.b.exit(c.spec, &e)
	}
	return e, err
}

func (c *bentContainer) Exec(ctx context.Context, spec berth.ExecSpec, stdio berth.Stdio) (berth.Exit, error) {
	if c.b.exec != nil {
		c.b.exec(&spec)
	}
	return c.Container.Exec(ctx, spec, stdio)
}

func (c *bentContainer) Address(ctx context.Context) (string, error) {
	if c.b.address != "" {
		return c.b.address, nil
	}
	return c.Container.Address(ctx)
}

// TestSuiteCatches plants one fault each, which the named checks must catch.
func TestSuiteCatches(t *testing.T) {
	checks := map[string]enginetest.Check{}
	for _, c := range enginetest.Checks() {
		checks[c.Name] = c
	}
	env := suiteEnv(t, "direct")
	engine := env.Engine.(*oci.Engine)
	half := func(f **float64) {
		if *f != nil {
			*f = new(**f / 2)
		}
	}
	limited := func(s berth.StepSpec) bool { return s.Limits.Memory > 0 }
	for _, f := range []struct {
		name   string
		bent   bent
		caught []string
	}{
		{"every end below a limit is out of memory", bent{exit: func(s berth.StepSpec, e *berth.Exit) {
			if limited(s) {
				e.Reason = berth.OutOfMemory
			}
		}}, []string{"out of memory survived", "killed is not out of memory"}},
		{"137 is out of memory", bent{exit: func(_ berth.StepSpec, e *berth.Exit) {
			if e.Code == 137 {
				e.Reason = berth.OutOfMemory
			}
		}}, []string{"killed is not out of memory", "exit codes", "end by signal"}},
		{"out of memory is a signal", bent{exit: func(_ berth.StepSpec, e *berth.Exit) {
			if e.Reason == berth.OutOfMemory {
				e.Reason = berth.Signaled
			}
		}}, []string{"out of memory", "out of memory in a child", "no swap"}},
		{"out of memory does not name the limit", bent{exit: func(_ berth.StepSpec, e *berth.Exit) { e.Detail = "" }}, []string{"out of memory", "out of disk", "command not there"}},
		{"out of disk is an exit", bent{exit: func(_ berth.StepSpec, e *berth.Exit) {
			if e.Reason == berth.OutOfDisk {
				e.Reason = berth.Exited
			}
		}}, []string{"out of disk", "size of a volume"}},
		{"every failure below a limit is out of disk", bent{exit: func(_ berth.StepSpec, e *berth.Exit) { e.Reason = berth.OutOfDisk }}, []string{"below the disk limit"}},
		{"half of the CPU time is missing", bent{exit: func(_ berth.StepSpec, e *berth.Exit) { half(&e.Usage.CPUSeconds) }}, []string{"usage at the end"}},
		{"memory is counted in KiB", bent{exit: func(_ berth.StepSpec, e *berth.Exit) { e.Usage.PeakMemory = new(*e.Usage.PeakMemory >> 10) }}, []string{"usage at the end"}},
		{"usage is not known", bent{exit: func(_ berth.StepSpec, e *berth.Exit) { e.Usage = berth.Usage{} }}, []string{"usage at the end", "cpu limit"}},
		{"limits are forgotten", bent{step: func(s *berth.StepSpec) { s.Limits = berth.Limits{} }}, []string{"out of memory", "cpu limit", "pids limit", "too little memory to start"}},
		{"limits of the sandbox are forgotten", bent{sandbox: func(s *berth.SandboxSpec) { s.Limits = berth.Limits{} }}, []string{"memory limit of the sandbox", "out of disk", "out of disk in a volume"}},
		{"volumes have no size", bent{sandbox: func(s *berth.SandboxSpec) {
			for i := range s.Volumes {
				s.Volumes[i].Size = 0
			}
		}}, []string{"size of a volume"}},
		{"a root is never read-only", bent{step: func(s *berth.StepSpec) { s.ReadOnly = false }}, []string{"read-only root"}},
		{"a mount is never read-only", bent{step: func(s *berth.StepSpec) {
			for i := range s.Mounts {
				s.Mounts[i].ReadOnly = false
			}
		}}, []string{"bind mounts"}},
		{"sizes of memory file systems are forgotten", bent{step: func(s *berth.StepSpec) {
			s.ShmSize = 0
			for i := range s.Mounts {
				s.Mounts[i].Size = 0
			}
		}}, []string{"shared memory", "tmpfs mounts"}},
		{"capabilities stay", bent{step: func(s *berth.StepSpec) { s.CapDrop = nil }}, []string{"capabilities added and dropped"}},
		{"too many capabilities", bent{step: func(s *berth.StepSpec) { s.CapAdd = []string{"ALL"} }}, []string{"capabilities", "no mounting"}},
		{"no seccomp", bent{step: func(s *berth.StepSpec) { s.Seccomp = "unconfined" }}, []string{"seccomp", "seccomp profile of the user"}},
		{"everybody is root", bent{step: func(s *berth.StepSpec) { s.User = "" }}, []string{"user", "volume of another user", "exec as another user"}},
		{"an exec is root's", bent{exec: func(s *berth.ExecSpec) { s.User = "root" }}, []string{"exec as another user", "capabilities of an exec as another user"}},
		{"an exec begins in the root directory", bent{exec: func(s *berth.ExecSpec) { s.WorkingDir = "/" }}, []string{"exec"}},
		{"there is no init", bent{step: func(s *berth.StepSpec) { s.NoInit = true }}, []string{"init", "end by signal", "zombies are reaped"}},
		{"there is always an init", bent{step: func(s *berth.StepSpec) { s.NoInit = false }}, []string{"no init"}},
		{"ulimits and sysctls are forgotten", bent{step: func(s *berth.StepSpec) { s.Ulimits, s.Sysctls = nil, nil }}, []string{"ulimits", "sysctls"}},
		{"there is no terminal", bent{step: func(s *berth.StepSpec) { s.TTY = false }}, []string{"terminal", "interrupt from the terminal"}},
		{"the network is the host's", bent{sandbox: func(s *berth.SandboxSpec) { s.Network.Mode = berth.NetworkHost }}, []string{"no network", "own namespaces", "bridge address is reachable"}},
		{"there is never a network", bent{sandbox: func(s *berth.SandboxSpec) { s.Network.Mode = berth.NetworkNone }}, []string{"bridge network", "bridge address is reachable", "host network"}},
		{"hosts and the hostname are forgotten", bent{sandbox: func(s *berth.SandboxSpec) { s.Network.Hosts, s.Hostname = nil, "" }}, []string{"hostname", "standard files"}},
		{"the address is another's", bent{address: "127.0.0.1"}, []string{"bridge address is reachable", "no address"}},
		{"the log has no bound", bent{step: func(s *berth.StepSpec) { s.LogLimit = -1 }}, []string{"logs are bounded"}},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			f.bent.Engine = engine
			planted := *env
			planted.Engine = &f.bent
			for _, name := range f.caught {
				c, ok := checks[name]
				if !ok {
					t.Fatalf("there is no check %q", name)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if err := c.Run(ctx, &planted); err == nil {
					t.Errorf("the check %q did not catch it", name)
				} else {
					t.Logf("%s: %v", name, err)
				}
			}
		})
	}
}
