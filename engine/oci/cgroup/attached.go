package cgroup

import (
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/device/cdi/program"
)

// ErrOtherRules says that the device rules of a group are not those that were looked for.
var ErrOtherRules = errors.New("the program of these device rules is not attached to the container's cgroup")

// HoldsRules demands of a v2 group that the program of exactly these rules, as in Spec.Devices, holds for it. What
// other programs hold as well can only deny more. ErrOtherRules where there is none.
func (g *Group) HoldsRules(devices []specs.LinuxDeviceCgroup) error {
	set, err := parseRules(devices)
	if err != nil {
		return err
	}
	// The kernel's own digest of the same instructions: how it is made has changed.
	p, err := program.Load(assemble(set.program()))
	if err != nil {
		return err
	}
	want, err := p.Tag()
	_ = p.Close()
	if err != nil {
		return err
	}
	tags, err := attached(g.v2)
	if err != nil {
		return err
	}
	if !slices.Contains(tags, want) {
		return fmt.Errorf("%w %s", ErrOtherRules, g.v2)
	}
	return nil
}

// attached are the tags of all programs that hold device rules for a v2 cgroup.
func attached(dir string) ([]program.Tag, error) {
	cgroup, err := openDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = cgroup.Close() }()
	return program.Each(func() ([]uint32, error) { return program.Effective(cgroup) }, func(id uint32) (program.Tag, error) {
		p, err := program.ByID(id)
		if err != nil {
			return program.Tag{}, fmt.Errorf("device rules of %s: %w", dir, err)
		}
		defer func() { _ = p.Close() }()
		t, err := p.Tag()
		if err != nil {
			return t, fmt.Errorf("device rules of %s: %w", dir, err)
		}
		return t, nil
	})
}
