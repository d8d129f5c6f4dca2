package device

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/ledger"
)

// only returns the devices and slices with these UUIDs; all for nil.
func (inv *inventory) only(uuids []string) []Device {
	if uuids == nil {
		return without(inv.all, inv.held)
	}
	var only []Device
	for _, d := range inv.all {
		some := slices.DeleteFunc(slices.Clone(d.Slices), func(s Slice) bool { return !slices.Contains(uuids, s.UUID) })
		if len(some) > 0 || len(d.Slices) == 0 && slices.Contains(uuids, d.UUID) {
			d.Slices = some
			only = append(only, d)
		}
	}
	return without(only, inv.held)
}

// Check reports whether this host could ever give what a task asks for, in the form of Resources.GPUs. Errors are
// those of ParseRequests and Request.Match; ErrExhausted too where all that is asked for is more than there is. It
// notes on the task which devices the masks of this process allow.
func (p *Pool) Check(ctx context.Context, task *berth.Task) error {
	requests, err := ParseRequests(task.Resources.GPUs)
	if err != nil || len(requests) == 0 {
		return err
	}
	if _, _, err := p.Preflight(task, nil); err != nil {
		return err
	}
	inv, err := p.inventory(ctx)
	if err != nil {
		return err
	}
	if len(inv.masks) > 0 {
		task.Resources.AllowedGPUs = []string{}
		for _, u := range Units(inv.allowed) {
			task.Resources.AllowedGPUs = append(task.Resources.AllowedGPUs, u.UUID())
		}
	}
	fits, err := inv.match(requests, inv.allowed)
	if err != nil {
		return err
	}
	if _, err := newChoice(nil, nil).pick(requests, fits); err != nil {
		return fmt.Errorf("GPUs: %w: all that the task asks for is more than there is; %s%s", berth.ErrExhausted, Inventory(inv.allowed), inv.bounds())
	}
	return nil
}

// Choose returns what chooses the devices of a task from those that are free, for ledger.Request; nil if it asks for
// none. Devices that processes of others have open are not free, unless the task allows it.
func (p *Pool) Choose(ctx context.Context, task *berth.Task) (func(map[string]ledger.Taken) ([]ledger.Device, error), error) {
	requests, err := ParseRequests(task.Resources.GPUs)
	if err != nil || len(requests) == 0 {
		return nil, err
	}
	inv, err := p.inventory(ctx)
	if err != nil {
		return nil, err
	}
	// Not the masks of this process: another than who submitted the task may drive it.
	fits, err := inv.match(requests, inv.only(task.Resources.AllowedGPUs))
	if err != nil {
		return nil, err
	}
	if _, err := p.busy(ctx, inv, time.Now()); err != nil {
		return nil, err
	}
	// The ledger is locked for the whole host while this runs: no driver is asked in it, and what was found a moment
	// ago is believed.
	return func(taken map[string]ledger.Taken) ([]ledger.Device, error) {
		busy, err := p.busy(ctx, inv, time.Now().Add(-looked))
		if err != nil {
			return nil, err
		}
		lent, err := newChoice(taken, busy).pick(requests, fits)
		if err != nil {
			return nil, err
		}
		return lent, nil
	}, nil
}

// looked is for how long it is believed which processes use devices.
const looked = time.Second

// foreign are the processes that have devices open and are no task's.
type foreign struct {
	at time.Time
	of map[string][]Process // by UUID of a unit
}

// busy returns the processes that have devices open and are not of the tasks that they are lent to, by UUID, as they
// were found at since or later.
func (p *Pool) busy(ctx context.Context, inv *inventory, since time.Time) (map[string][]Process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.foreign.of != nil && !p.foreign.at.Before(since) {
		return p.foreign.of, nil
	}
	f := foreign{at: time.Now(), of: map[string][]Process{}}
	if !p.cfg.Host.Recorded() {
		if err := p.findForeign(ctx, Units(inv.all), f.of); err != nil {
			return nil, err
		}
	}
	p.foreign = f
	return f.of, nil
}

// Foreign returns, by the UUID of a device or slice, the processes that have it open and are not of the tasks that it
// is lent to. Of other users' processes, none but root sees which files they have open.
func (p *Pool) Foreign(ctx context.Context) (map[string][]Process, error) {
	inv, err := p.inventory(ctx)
	if err != nil {
		return nil, err
	}
	return p.busy(ctx, inv, time.Now())
}

func (p *Pool) findForeign(ctx context.Context, units []Unit, of map[string][]Process) error {
	numbers, nodes := p.numbers(units)
	found, err := p.cfg.Host.openers(ctx, nodes)
	if err != nil || len(found.Of) == 0 {
		return err
	}
	roots, err := p.roots(ctx)
	if err != nil {
		return err
	}
	for uuid, own := range numbers {
		for _, n := range own {
			for _, process := range found.Of[n] {
				if !process.Descends(roots[uuid]) {
					of[uuid] = append(of[uuid], process)
				}
			}
		}
	}
	return nil
}

// numbers returns the numbers of the nodes that are one unit's alone, by its UUID, and by their paths on this machine.
func (p *Pool) numbers(units []Unit) (of map[string][]Number, nodes map[string]Number) {
	of, nodes = map[string][]Number{}, map[string]Number{}
	users := map[Number]int{}
	for _, u := range units {
		all, err := p.injector(u.Device.Vendor).Nodes(u)
		if err != nil {
			p.cfg.Logger.Warn("nodes of a device not known", "device", u.UUID(), "err", err)
			continue
		}
		for _, n := range all {
			number := Number{uint32(n.Major), uint32(n.Minor)}
			of[u.UUID()] = append(of[u.UUID()], number)
			nodes[cmp.Or(n.HostPath, n.Path)] = number
			users[number]++
		}
	}
	for uuid := range of { // the node of a divided GPU is of all its slices
		of[uuid] = slices.DeleteFunc(of[uuid], func(n Number) bool { return users[n] > 1 })
	}
	maps.DeleteFunc(nodes, func(_ string, n Number) bool { return users[n] > 1 })
	return of, nodes
}

// roots are the processes that hold the leases on devices, by UUID: those below them are of the tasks.
func (p *Pool) roots(ctx context.Context) (map[string][]int, error) {
	roots := map[string][]int{}
	if p.cfg.Ledger == nil {
		return roots, nil
	}
	s, err := p.cfg.Ledger.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range s.Leases {
		for _, d := range e.Devices {
			for _, h := range e.Holders {
				if h.PID > 0 {
					roots[d.ID] = append(roots[d.ID], h.PID)
				}
			}
		}
	}
	return roots, nil
}
