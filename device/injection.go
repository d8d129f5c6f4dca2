package device

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/device/cdi"
)

// injection is what brings one unit into a container.
type injection struct {
	name        string     // in the spec on disk that says so; "" if the vendor's package does
	common, own *cdi.Edits // common is the same pointer for units that share it
}

// inject finds what brings a unit into a container: what a spec on disk says that fits the host, else what the
// vendor's package does. A spec that berth wrote and that does not fit counts for nothing. commons are what vendors'
// devices have in common, as far as it is known.
func (p *Pool) inject(ctx context.Context, u Unit, commons map[string]*cdi.Edits) (injection, error) {
	v := p.injector(u.Device.Vendor)
	own, err := v.Edits(u)
	if err != nil {
		return injection{}, err
	}
	if p.cfg.Specs != nil {
		in, err := p.onDisk(v.Names(u), own)
		if err != nil || in.name != "" {
			return in, err
		}
	}
	common, ok := commons[v.Name()]
	if !ok {
		if common, err = p.common(ctx, v); err != nil {
			return injection{}, err
		}
		commons[v.Name()] = common
	}
	return injection{common: common, own: own}, nil
}

// onDisk finds a unit in the specs on disk, by the first of its names that has its nodes.
func (p *Pool) onDisk(names []string, own *cdi.Edits) (injection, error) {
	stamp := p.specStamp()
	if stamp == "" {
		return injection{}, nil // there are none
	}
	key := strings.Join(names, ",")
	k, ok := p.recallSpec(key, stamp)
	if !ok {
		var err error
		if k, err = p.readSpecs(names, own); err != nil {
			return injection{}, err
		}
		k.Key, k.Stamp = key, stamp
		p.keepSpec(k)
	}
	if k.Name == "" {
		return injection{}, nil
	}
	return injection{name: k.Name, common: p.commonOf(stamp+k.Path, k.Common), own: p.onThisMachine(k.Own)}, nil
}

// readSpecs reads the specs, and finds a unit in them; without a name where none of them has it.
func (p *Pool) readSpecs(names []string, own *cdi.Edits) (keptSpec, error) {
	for _, name := range names {
		d, ok := p.cfg.Specs.Device(name)
		if err := p.cfg.Specs.Clash(name); err != nil {
			return keptSpec{}, err // what two files say is nothing to go by, and they are there to be gone by
		}
		if !ok {
			continue
		}
		edits := d.Edits()
		if !hasNodes(edits, own) {
			continue // an index that means another device there
		}
		err := p.cfg.Specs.Check(name)
		if stale := (*cdi.StaleError)(nil); errors.As(err, &stale) && stale.Own {
			p.cfg.Logger.Warn("a spec that berth wrote is not used", "err", err)
			continue
		} else if err != nil {
			return keptSpec{}, err
		}
		return keptSpec{Name: name, Path: d.Spec.Path, Common: &d.Spec.Document().ContainerEdits, Own: edits}, nil
	}
	return keptSpec{}, nil
}

func hasNodes(edits, own *cdi.Edits) bool {
	for _, n := range own.DeviceNodes {
		if !slices.ContainsFunc(edits.DeviceNodes, func(o *specs.DeviceNode) bool { return o.Path == n.Path }) {
			return false
		}
	}
	return true
}

// onThisMachine puts edits in the words of a host with another root into those of this machine.
func (p *Pool) onThisMachine(e *cdi.Edits) *cdi.Edits {
	for _, n := range e.DeviceNodes {
		if at := p.cfg.Host.HostPath(cmp.Or(n.HostPath, n.Path)); at != "" {
			n.HostPath = at
		}
	}
	for _, m := range e.Mounts {
		if at := p.cfg.Host.HostPath(m.HostPath); at != "" {
			m.HostPath = at
		}
	}
	return e
}
