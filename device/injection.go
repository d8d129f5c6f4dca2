package device

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
)

// injection is what brings one unit into a container.
type injection struct {
	name        string     // in the spec on disk that says so; "" if the vendor's package does
	common, own *cdi.Edits // common is the same pointer for units that share it
	notes       []string   // for people: of specs that do not count
	unread      []unread
}

// inject finds what brings a unit into a container: what a spec on disk says that fits the host, else what the
// vendor's package does. A spec that berth wrote and that does not fit counts for nothing, unless it is written anew. commons are what vendors'
// devices have in common, as far as it is known.
func (p *Pool) inject(ctx context.Context, u Unit, commons map[string]*cdi.Edits) (injection, error) {
	v := p.injector(u.Device.Vendor)
	own, err := v.Edits(u)
	if err != nil {
		return injection{}, err
	}
	var in injection
	if p.cfg.Specs != nil {
		in, err = p.onDisk(ctx, v.Names(u), own)
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
	in.common, in.own = common, own
	return in, nil
}

// onDisk finds a unit in the specs on disk, by the first of its names that has its nodes. A spec that berth wrote and that does not
// fit is written anew, where that is to be done.
func (p *Pool) onDisk(ctx context.Context, names []string, own *cdi.Edits) (injection, error) {
	k, in, err := p.lookUp(names, own)
	stale, ok := errors.AsType[*cdi.StaleError](err)
	if ok && stale.Own && p.cfg.Renew != nil {
		was := *stale
		was.Fix = "berth has written it anew"
		if bad := p.renew(ctx, stale.File, k.Stamp); bad != nil {
			in.notes = append(in.notes, fmt.Sprintf("a CDI spec is not written anew: %v", bad))
		} else if k, in, err = p.lookUp(names, own); err == nil {
			in.notes = append(in.notes, was.Error())
		} else {
			p.renewedIn(was.File, k.Stamp)
		}
	}
	if stale, ok := errors.AsType[*cdi.StaleError](err); ok && stale.Own {
		in.notes = append(in.notes, stale.Error()+"; until then it does not count")
		return in, nil
	}
	if err != nil || k.Name == "" {
		return in, err
	}
	in.name, in.common, in.own = k.Name, p.commonOf(k.Stamp+k.Path, k.Common), p.onThisMachine(k.Own)
	return in, nil
}

// renew writes a spec anew, once while the files are as stamp says, or until it succeeds, but not all the time: it asks all
// drivers. What has come of it before is said until it is tried again, and the first error, which is mostly the cause, always.
func (p *Pool) renew(ctx context.Context, file, stamp string) error {
	p.renewing.Lock()
	defer p.renewing.Unlock()
	key := stamp + file
	was, tried := p.renewed[key]
	if tried && (was.err == nil || time.Since(was.at) < p.cfg.RenewAgain) {
		return was.say()
	}
	now := renewal{err: p.cfg.Renew(ctx, file), first: was.first, at: time.Now()}
	if ctx.Err() != nil {
		return now.err
	}
	if now.first == nil {
		now.first = now.err
	}
	p.renewed[key] = now
	return now.say()
}

// say is the last error, with the first where that was another.
func (r renewal) say() error {
	if r.err == nil || r.err.Error() == r.first.Error() {
		return r.err
	}
	return fmt.Errorf("%w (at first: %w)", r.err, r.first)
}

// renewedIn notes that a spec, which still does not fit, was written anew just now.
func (p *Pool) renewedIn(file, stamp string) {
	p.renewing.Lock()
	defer p.renewing.Unlock()
	p.renewed[stamp+file] = renewal{at: time.Now()}
}

// lookUp finds a unit in the specs on disk, or in what is known of them.
func (p *Pool) lookUp(names []string, own *cdi.Edits) (k keptSpec, in injection, err error) {
	stamp := p.specStamp()
	if stamp == "" {
		return k, in, nil // there are none
	}
	key := strings.Join(names, ",")
	k, ok := p.recallSpec(key, stamp)
	if !ok {
		k, err = p.readSpecs(names, own)
		k.Key, k.Stamp, k.Unread = key, stamp, p.unread()
		if err == nil || k.Stale != nil {
			p.keepSpec(k)
		}
	} else if k.Stale != nil {
		err = k.Stale
	}
	for _, u := range k.Unread {
		in.notes = append(in.notes, u.Text+"; it does not count; see: berth cdi check")
	}
	in.unread = k.Unread
	return k, in, err
}

// unread are the spec files that cannot be read, or make no sense. Those of which only a device clashes with another's do.
func (p *Pool) unread() (all []unread) {
	for _, f := range p.cfg.Specs.Problems() {
		if !errors.Is(f.Err, berth.ErrConflict) {
			all = append(all, unread{f.Path, f.Err.Error()})
		}
	}
	return all
}

// readSpecs reads the specs, and finds a unit in them; without a name where none of them has it. *cdi.StaleError for one that does
// not fit the host; that of one which berth wrote comes last.
func (p *Pool) readSpecs(names []string, own *cdi.Edits) (keptSpec, error) {
	var old keptSpec
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
		bad := p.cfg.Specs.Check(name)
		if stale, ok := errors.AsType[*cdi.StaleError](bad); ok && stale.Own {
			if old.Stale == nil {
				old = keptSpec{Stale: stale, Common: &d.Spec.Document().ContainerEdits, Own: edits}
			}
			continue
		} else if bad != nil {
			return keptSpec{}, bad
		}
		return keptSpec{Name: name, Path: d.Spec.Path, Common: &d.Spec.Document().ContainerEdits, Own: edits}, nil
	}
	if old.Stale != nil {
		return old, old.Stale
	}
	return old, nil
}

// mayBeIn reports whether a file that could not be read may be the spec of a device with this CDI name.
func (p *Pool) mayBeIn(file, name string) bool {
	kind, _, _ := strings.Cut(name, "=")
	data, err := p.cfg.Host.ReadFile(file)
	return err != nil || bytes.Contains(data, []byte(kind))
}

// ifUnread refuses a unit that was asked for by a CDI name which no spec has that could be read, while another may have it.
func (p *Pool) ifUnread(asked []string, u Unit, in injection) error {
	if in.name != "" {
		return nil
	}
	for _, name := range p.injector(u.Device.Vendor).Names(u) {
		kind, _, _ := strings.Cut(name, "=")
		if !slices.Contains(asked, name) && !slices.Contains(asked, kind+"=all") {
			continue
		}
		for _, f := range in.unread {
			if p.mayBeIn(f.Path, name) {
				return fmt.Errorf("CDI device %s: %w: it may be in a spec that does not count: %s; mend or remove that, or ask for the GPU by its UUID", name, berth.ErrConflict, f.Text)
			}
		}
	}
	return nil
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
