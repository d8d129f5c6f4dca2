package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/wire"
)

// Sandbox is a sandbox of this engine.
type Sandbox struct {
	e    *Engine
	id   string
	desc *wire.Sandbox
	line *lifeline
}

var _ berth.Sandbox = (*Sandbox)(nil)

// checkSandbox completes a spec, and refuses what this engine cannot do.
func checkSandbox(s *berth.SandboxSpec) error {
	if err := berth.CheckID(s.ID); err != nil {
		return err
	}
	switch s.Network.Mode {
	case "":
		s.Network.Mode = berth.NetworkNone
	case berth.NetworkNone, berth.NetworkBridge, berth.NetworkHost:
	default:
		return fmt.Errorf("network %q: %w: this engine has none, bridge and host", s.Network.Mode, berth.ErrInvalid)
	}
	if len(s.Network.Ports) > 0 {
		return fmt.Errorf("published ports: %w on this engine: use --network host", berth.ErrUnsupported)
	}
	if len(s.Grants) > 0 {
		return fmt.Errorf("lent devices: %w on this engine", berth.ErrUnsupported)
	}
	if err := checkLimits(s.Limits); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, v := range s.Volumes {
		if !path.IsAbs(v.Path) || path.Clean(v.Path) != v.Path || v.Path == "/" || seen[v.Path] {
			return fmt.Errorf("volume %q: %w: a volume has an absolute, clean path, not /, of its own", v.Path, berth.ErrInvalid)
		}
		seen[v.Path] = true
	}
	return nil
}

// ID is the sandbox's id.
func (s *Sandbox) ID() string { return s.id }

// DiskEnforcement says how disk limits are kept.
func (s *Sandbox) DiskEnforcement() berth.DiskEnforcement { return s.desc.Enforcement }

// Start starts a step.
func (s *Sandbox) Start(ctx context.Context, spec berth.StepSpec) (berth.Container, error) {
	req, err := s.e.prepare(s.desc, spec)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.ID, err)
	}
	if err := s.e.images.Hold(spec.Image.ID, s.dir()); err != nil { // as long as the sandbox is there
		return nil, fmt.Errorf("start %s: %w", spec.ID, err)
	}
	var a wire.Answer
	if err := s.e.client.call(ctx, &wire.Request{Op: wire.OpStart, Sandbox: s.id, Start: req}, &a); err != nil {
		return nil, err
	}
	a.Container.Step = spec
	return newContainer(s, a.Container), nil
}

// Keep has a bound sandbox stay when the process that opened it ends.
func (s *Sandbox) Keep(ctx context.Context) error {
	var a wire.Answer
	return s.e.client.call(ctx, &wire.Request{Op: wire.OpKeep, Sandbox: s.id}, &a)
}

func (s *Sandbox) dir() string { return path.Join(s.e.cfg.Dir, "sandboxes", s.id) }

// Container finds a step that was started.
func (s *Sandbox) Container(ctx context.Context, id string) (berth.Container, error) {
	var a wire.Answer
	if err := s.e.client.call(ctx, &wire.Request{Op: wire.OpFind, Sandbox: s.id, Container: id}, &a); err != nil {
		return nil, err
	}
	return newContainer(s, a.Container), nil
}

// Volume opens the directory of a volume.
func (s *Sandbox) Volume(ctx context.Context, p string) (*os.Root, error) {
	var a wire.Answer
	files, err := s.e.client.callFiles(ctx, &wire.Request{Op: wire.OpVolume, Sandbox: s.id, Path: p}, &a)
	if err != nil {
		return nil, err
	}
	return rootOf(files)
}

// rootOf makes a Root of the one directory received. It may be mounted where only the monitor sees it.
func rootOf(files []*os.File) (*os.Root, error) {
	if len(files) != 1 {
		return nil, fmt.Errorf("monitor: %w: it sent %d directories", berth.ErrUnavailable, len(files))
	}
	defer func() { _ = files[0].Close() }()
	return os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", files[0].Fd()))
}

// Close ends what runs and removes everything of the sandbox.
func (s *Sandbox) Close(ctx context.Context) error {
	var a wire.Answer
	err := s.e.client.call(ctx, &wire.Request{Op: wire.OpClose, Sandbox: s.id}, &a)
	if errors.Is(err, berth.ErrNotFound) {
		err = nil
	}
	if err == nil {
		s.line.close()
	}
	return err
}
