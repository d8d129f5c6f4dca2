package ociruntime

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
)

// hookCall is a call of the hook.
type hookCall struct {
	name   string // prestart, poststart, poststop, lent
	config string // berth's configuration
	lease  string // of lent
	prove  bool
	nodes  []berth.Node
}

// What the hook of Runtime's containers is called with.
const (
	lentName  = "lent"
	leaseFlag = "--lease"
)

func parseHook(args []string) (*hookCall, error) {
	h := &hookCall{}
	for i := 0; i < len(args); i++ {
		name, value, has := strings.Cut(args[i], "=")
		if !has && i+1 < len(args) && slices.Contains([]string{flagConfig, "--config", "-config", leaseFlag, "--node"}, name) {
			i++
			value = args[i]
		}
		switch name {
		case flagConfig, "--config", "-config":
			h.config = value
		case leaseFlag:
			h.lease = value
		case "--prove":
			h.prove = true
		case "--node":
			n, err := parseLentNode(value)
			if err != nil {
				return nil, err
			}
			h.nodes = append(h.nodes, n)
		case "prestart", "createRuntime", "poststart", "poststop", lentName:
			if h.name != "" {
				return nil, fmt.Errorf("%w: %q is a hook too many", berth.ErrInvalid, name)
			}
			h.name = name
		default:
			return nil, fmt.Errorf("%w: there is no hook or flag %q; there are prestart, createRuntime, poststart, poststop, and %s FILE", berth.ErrInvalid, args[i], flagConfig)
		}
	}
	if h.name == "" {
		return nil, fmt.Errorf("%w: no hook is named; write: berth oci-hook prestart", berth.ErrInvalid)
	}
	return h, nil
}

// Hook runs a hook. It returns the exit code; not 0 has the runtime refuse the container.
//
// prestart (createRuntime is the same) brings a container that a runtime has made the GPUs that it asks for.
// poststart and poststop have nothing to do: what was lent ends with the container. lent is for the containers of
// Runtime: it has the lease live as long as the container, and looks whether that holds what it was lent.
func Hook(ctx context.Context, p Process) (exit int) {
	h, err := parseHook(p.Args)
	if err == nil {
		switch h.name {
		case "prestart", "createRuntime":
			err = p.prestart(ctx, h)
		case lentName:
			err = p.lent(ctx, h)
		}
	}
	if err != nil {
		say(&command{}, p.Stderr, "error", "oci-hook: "+err.Error())
		return 1
	}
	return 0
}

// lent makes the container the holder of its lease.
func (p Process) lent(ctx context.Context, h *hookCall) error {
	c, err := readContainer(p.Stdin)
	if err != nil {
		return err
	}
	l, err := openLedger(p.Ledger)
	if err != nil {
		return err
	}
	if err := isOwn(ctx, l, h.lease, c.state.ID); err != nil {
		return err
	}
	lease, err := l.Adopt(ctx, h.lease)
	if err != nil {
		return err
	}
	defer lease.Release() // the container goes on to hold it
	if err := holdByContainer(ctx, lease, c.state.Pid); err != nil {
		return err
	}
	if !h.prove {
		return nil
	}
	return c.prove(h.nodes)
}

func (p Process) prestart(ctx context.Context, h *hookCall) (err error) {
	cfg, err := ReadConfig(h.config)
	if err != nil {
		return err
	}
	c, err := readContainer(p.Stdin)
	if err != nil {
		return err
	}
	planner, err := p.planner(cfg)
	if err != nil {
		return err
	}
	plan, err := planner.plan(ctx, c.spec)
	if err != nil {
		return err
	}
	for _, note := range plan.notes {
		say(&command{}, p.Stderr, "warning", note)
	}
	if plan.edits == nil {
		return nil
	}
	l, err := openLedger(p.Ledger)
	if err != nil {
		return err
	}
	if len(plan.units) > 0 {
		has, bad := lentBefore(ctx, l, c, plan.units)
		if bad != nil || has {
			return bad
		}
		lease, bad := planner.lend(ctx, l, taskOf(c.state.ID, c.state.Bundle), plan.units)
		if bad != nil {
			return bad
		}
		// Until the container holds it, and where it gets nothing, this process alone does.
		defer lease.Release()
		defer func() {
			if err == nil {
				err = holdByContainer(ctx, lease, c.state.Pid)
			}
		}()
	}
	return p.bring(ctx, c, cfg, plan)
}

func (p Process) bring(ctx context.Context, c *container, cfg Config, plan *plan) error {
	var spec struct {
		Process oci.Process `json:"process"`
	}
	if err := json.Unmarshal(c.spec, &spec); err != nil {
		return fmt.Errorf("OCI spec: %w: %w", berth.ErrInvalid, err)
	}
	root, before, err := c.root()
	if err != nil {
		return err
	}
	defer root.Close()
	userns, err := c.userNamespace()
	if err != nil {
		return err
	}
	b := &bringer{c: c, root: root, before: before, userns: userns, user: spec.Process.User, host: cdi.Host{}, log: p.Stderr}
	nodes, err := b.nodes(plan.edits)
	if err != nil {
		return err
	}
	lent := lentNodes(nodes, plan.edits)
	if !cfg.NVIDIA.CLI.NoCgroups {
		if err := allow(c.state.Pid, lent); err != nil {
			return err
		}
	}
	if err := b.bring(ctx, plan.edits, nodes); err != nil {
		return err
	}
	if !cfg.Prove {
		return nil
	}
	return c.prove(lent)
}
