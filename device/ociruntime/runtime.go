package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/ledger"
)

// Process is what the runtime and the hook have of their process.
type Process struct {
	Args   []string // after the program's name and the command of berth
	Env    []string
	Dir    string
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// Ledger is where leases lie; the zero value is the host's.
	Ledger ledger.Dirs
	// More returns what adds to NVIDIA's devices what only the driver's library knows. It may be nil.
	More func(*device.Host) func(context.Context, []device.Device) ([]device.Device, error)
}

// Runtime is an OCI runtime: it sees that a container gets the GPUs that it asks for, and then becomes the runtime
// that its configuration names, with the same command line. It returns only on errors, which it has told, and where
// it waited for the runtime.
func Runtime(ctx context.Context, p Process) (exit int) {
	c := parseCommand(p.Args, p.Dir)
	if c.example {
		if _, err := p.Stdout.Write(Example); err != nil {
			return 1
		}
		return 0
	}
	exit, err := p.runtime(ctx, c)
	if err != nil {
		say(c, p.Stderr, "error", strings.TrimSuffix("oci-runtime: "+c.name, ": ")+": "+err.Error())
		return 1
	}
	return exit
}

func (p Process) runtime(ctx context.Context, c *command) (int, error) {
	cfg, err := ReadConfig(c.config)
	if err != nil {
		return 0, err
	}
	program, err := cfg.runtime()
	if err != nil {
		return 0, err
	}
	if err := p.notAgain(cfg, program); err != nil {
		return 0, err
	}
	switch {
	case c.starts():
		return 0, p.start(ctx, c, cfg, program)
	case c.name == "delete":
		return p.delete(ctx, c, program)
	}
	return 0, p.become(program, c)
}

// became marks a process that berth has become: where it is berth again, the runtime of the configuration is a
// program that leads back here.
const became = "BERTH_OCI_RUNTIME="

func (p Process) notAgain(cfg Config, program string) error {
	for _, pid := range []int{os.Getpid(), os.Getppid()} {
		if slices.Contains(p.Env, became+strconv.Itoa(pid)) {
			return fmt.Errorf("configuration %s: %w: berth.runtime %s leads back to berth; give the runtime that is to be handed on to", cfg.Path, berth.ErrInvalid, program)
		}
	}
	return nil
}

// become replaces this process by the runtime.
func (p Process) become(program string, c *command) error {
	env := append(slices.Clone(p.Env), became+strconv.Itoa(os.Getpid()))
	err := syscall.Exec(program, append([]string{program}, c.args...), env)
	return fmt.Errorf("start %s: %w", program, err)
}

// start is create, run and restore.
func (p Process) start(ctx context.Context, c *command, cfg Config, program string) error {
	b, err := readBundle(c.file())
	if errors.Is(err, berth.ErrNotFound) {
		return p.become(program, c) // which says what it needs
	} else if err != nil {
		return err
	}
	planner, err := p.planner(cfg)
	if err != nil {
		return err
	}
	plan, err := planner.plan(ctx, b.spec)
	if err != nil {
		return err
	}
	for _, note := range plan.notes {
		say(c, p.Stderr, "warning", note)
	}
	if plan.edits == nil {
		if b.edited {
			if err := b.restore(); err != nil {
				return err
			}
		}
		return p.become(program, c)
	}
	var lease *ledger.Lease
	if len(plan.units) > 0 {
		l, err := openLedger(p.Ledger)
		if err != nil {
			return err
		}
		if lease, err = planner.lend(ctx, l, c.task(program), plan.units); err != nil {
			return err
		}
		defer lease.Release() // where the runtime is not reached
	}
	edited, err := cdi.Rewrite(b.spec, func(spec *oci.Spec) error { return edit(spec, plan, cfg, cdi.Host{}, lease) })
	if err != nil {
		return err
	}
	if err := b.write(edited); err != nil {
		return err
	}
	if lease != nil {
		// This process becomes the runtime, which lives until the container's first process is there, and a hook
		// has made that the holder.
		err = hold(ctx, lease, os.Getpid())
	}
	if err == nil {
		err = p.become(program, c)
	}
	return errors.Join(err, b.restore())
}

// edit edits a spec: what brings the devices, what looks whether they are there, and none of the hooks that would
// bring them again.
func edit(spec *oci.Spec, plan *plan, cfg Config, host cdi.Host, lease *ledger.Lease) error {
	cdi.CloseHooks(plan.edits)
	if err := cdi.Apply(spec, plan.edits, host); err != nil {
		return err
	}
	if spec.Hooks == nil && lease == nil {
		return nil
	}
	hooks := oci.Hooks{}
	if spec.Hooks != nil {
		hooks = *spec.Hooks
	}
	hooks.Prestart = slices.DeleteFunc(slices.Clone(hooks.Prestart), brings) //nolint:staticcheck // engines go on to use it
	if lease != nil {
		h, err := lentHook(cfg, lease, lentOf(spec, plan.edits))
		if err != nil {
			return err
		}
		hooks.CreateRuntime = append(slices.Clip(hooks.CreateRuntime), h)
	}
	spec.Hooks = &hooks
	return nil
}

// brings reports whether a hook is one by which engines bring NVIDIA's GPUs into containers.
func brings(h oci.Hook) bool {
	return slices.Contains([]string{"nvidia-container-runtime-hook", "nvidia-container-toolkit"}, filepath.Base(h.Path))
}

// lentHook is the hook that makes the container the holder of its lease, and compares it with what it was lent.
func lentHook(cfg Config, lease *ledger.Lease, nodes []berth.Node) (oci.Hook, error) {
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return oci.Hook{}, fmt.Errorf("find this program: %w", err)
	}
	h := oci.Hook{Path: self, Args: []string{"berth", "oci-hook", lentName, leaseFlag, lease.ID()}, Env: []string{pathEnv}}
	if cfg.Prove {
		h.Args = append(h.Args, "--prove")
		for _, n := range nodes {
			h.Args = append(h.Args, "--node", lentNode(n))
		}
	}
	return h, nil
}

// lentOf are the nodes of edits, as an edited spec has them.
func lentOf(spec *oci.Spec, edits *cdi.Edits) []berth.Node {
	if spec.Linux == nil {
		return nil
	}
	return lentNodes(spec.Linux.Devices, edits)
}

// delete runs the runtime and, once it has removed the container, ends its lease. Most containers have none.
func (p Process) delete(ctx context.Context, c *command, program string) (int, error) {
	l, err := openLedger(p.Ledger)
	if err != nil {
		return 0, err
	}
	lease, err := leaseOf(ctx, l, c.task(program))
	if err != nil {
		return 0, err
	}
	if lease == "" {
		return 0, p.become(program, c)
	}
	cmd := exec.CommandContext(ctx, program, c.args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr, cmd.Env = p.Stdin, p.Stdout, p.Stderr, p.Env
	if err := cmd.Run(); err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			return max(exit.ExitCode(), 1), nil // it has said why
		}
		return 0, fmt.Errorf("start %s: %w", program, err)
	}
	return 0, free(ctx, l, lease)
}
