package oci

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"sync"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/engine/oci/wire"
)

// Sandbox is a sandbox of this engine.
type Sandbox struct {
	e    *Engine
	id   string
	desc *wire.Sandbox
	line *lifeline

	parsing sync.Once // of the grants: see lent
	set     *grant.Set
	unfit   error

	mu   sync.Mutex
	held []string // IDs of the images that this process holds for it
}

var _ berth.Sandbox = (*Sandbox)(nil)

// checkSandbox completes a spec, and refuses what this engine cannot do. It returns what the grants bring.
func checkSandbox(s *berth.SandboxSpec) (*grant.Set, error) {
	if err := berth.CheckID(s.ID); err != nil {
		return nil, err
	}
	switch s.Network.Mode {
	case "":
		s.Network.Mode = berth.NetworkNone
	case berth.NetworkNone, berth.NetworkBridge, berth.NetworkHost:
	default:
		return nil, fmt.Errorf("network %q: %w: this engine has none, bridge and host", s.Network.Mode, berth.ErrInvalid)
	}
	if len(s.Network.Ports) > 0 {
		return nil, fmt.Errorf("published ports: %w on this engine: use --network host", berth.ErrUnsupported)
	}
	set, err := grant.Parse(s.Grants)
	if err != nil {
		return nil, err
	}
	if err := checkLimits(s.Limits); err != nil {
		return nil, err
	}
	if err := berth.CheckCgroupParent(s.CgroupParent); err != nil {
		return nil, err
	}
	if berth.IsSlice(s.CgroupParent) {
		return nil, fmt.Errorf("cgroup parent %s: %w: this engine asks no systemd for cgroups; give the path of one that is there, as `systemctl show -p ControlGroup %s` tells of a slice that is started", s.CgroupParent, berth.ErrInvalid, s.CgroupParent)
	}
	seen := map[string]bool{}
	for _, v := range s.Volumes {
		if !path.IsAbs(v.Path) || path.Clean(v.Path) != v.Path || v.Path == "/" || seen[v.Path] {
			return nil, fmt.Errorf("volume %q: %w: a volume has an absolute, clean path, not /, of its own", v.Path, berth.ErrInvalid)
		}
		seen[v.Path] = true
	}
	return set, nil
}

// newSandbox is one that was opened with a spec, whose grants are parsed already.
func newSandbox(e *Engine, desc *wire.Sandbox, spec *berth.SandboxSpec, set *grant.Set) *Sandbox {
	s := &Sandbox{e: e, id: spec.ID, desc: desc}
	desc.Spec = *spec // as the monitor has it
	desc.Spec.Grants, desc.Spec.Volumes, desc.Spec.Labels = slices.Clone(spec.Grants), slices.Clone(spec.Volumes), maps.Clone(spec.Labels)
	s.parsing.Do(func() { s.set = set })
	return s
}

// ID is the sandbox's id.
func (s *Sandbox) ID() string { return s.id }

// DiskEnforcement says how disk limits are kept.
func (s *Sandbox) DiskEnforcement() berth.DiskEnforcement { return s.desc.Enforcement }

// Start starts a step.
func (s *Sandbox) Start(ctx context.Context, spec berth.StepSpec) (berth.Container, error) {
	lent, err := s.lent()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.ID, err)
	}
	held := make(chan error, 1)
	go func() { held <- s.hold(spec.Image.ID) }()
	req, err := s.e.prepare(s.desc, lent, spec)
	if herr := <-held; err == nil {
		err = herr
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.ID, err)
	}
	var a wire.Answer
	waiting, err := s.e.client.start(ctx, &wire.Request{Op: wire.OpStart, Sandbox: s.id, Start: req}, &a)
	if err != nil {
		return nil, err
	}
	a.Container.Step = spec
	c := newContainer(s, a.Container)
	c.waiting = waiting
	return c, nil
}

// lent is what the sandbox's grants bring into each of its containers.
func (s *Sandbox) lent() (*grant.Set, error) {
	s.parsing.Do(func() { s.set, s.unfit = grant.Parse(s.desc.Spec.Grants) })
	return s.set, s.unfit
}

// hold keeps an image as long as the sandbox is there, whether or not this process is.
func (s *Sandbox) hold(image string) error {
	if err := s.e.images.Hold(image, s.Dir()); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !slices.Contains(s.held, image) {
		s.held = append(s.held, image)
	}
	return nil
}

// release ends the holds that this process made. Those of another are void, and swept when images are looked at.
func (s *Sandbox) release() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, image := range s.held {
		errs = append(errs, s.e.images.Release(image, s.Dir()))
	}
	s.held = nil
	return errors.Join(errs...)
}

// Keep has a bound sandbox stay when the process that opened it ends.
func (s *Sandbox) Keep(ctx context.Context) error {
	var a wire.Answer
	return s.e.client.call(ctx, &wire.Request{Op: wire.OpKeep, Sandbox: s.id}, &a)
}

// Dir is the directory of this host in which what the sandbox's containers write lies.
func (s *Sandbox) Dir() string { return path.Join(s.e.cfg.Dir, "sandboxes", s.id) }

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
	if err != nil {
		return err
	}
	s.e.client.drop(s.id, "")
	s.line.close()
	return s.release()
}
