package device

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/ledger"
)

// only returns the devices and slices with these keys or UUIDs; all for nil.
func (inv *inventory) only(ids []string) []Device {
	if ids == nil {
		return without(inv.all, inv.held)
	}
	var only []Device
	for _, d := range inv.all {
		some := slices.DeleteFunc(slices.Clone(d.Slices), func(s Slice) bool {
			return !slices.ContainsFunc(ids, Unit{Device: d, Slice: &s}.Is)
		})
		if len(some) > 0 || len(d.Slices) == 0 && slices.Contains(ids, d.UUID) {
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
			task.Resources.AllowedGPUs = append(task.Resources.AllowedGPUs, u.Key())
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
	of map[string][]Process // by the key of a unit
	// hidden counts the processes that could not be looked at.
	hidden int
}

// busy returns the processes that have devices open and are not of the tasks that they are lent to, by key, as they
// were found at since or later.
func (p *Pool) busy(ctx context.Context, inv *inventory, since time.Time) (map[string][]Process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.foreign.of != nil && !p.foreign.at.Before(since) {
		return p.foreign.of, nil
	}
	f := foreign{at: time.Now(), of: map[string][]Process{}}
	if !p.cfg.Host.Recorded() {
		if err := p.findForeign(ctx, Units(inv.all), &f); err != nil {
			return nil, err
		}
	}
	p.foreign = f
	return f.of, nil
}

// Foreign returns, by the key of a device or slice, the processes that have it open and are not of the tasks that it
// is lent to. Of other users' processes, none but root sees which files they have open.
func (p *Pool) Foreign(ctx context.Context) (map[string][]Process, error) {
	inv, err := p.inventory(ctx)
	if err != nil {
		return nil, err
	}
	return p.busy(ctx, inv, time.Now())
}

// unseen notes that nobody here could tell whether devices that a task was lent are used by others, if so.
func (p *Pool) unseen(requests []Request, units []Unit) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.foreign.hidden == 0 || !slices.ContainsFunc(requests, func(r Request) bool { return !r.AllowBusy }) {
		return nil
	}
	names := make([]string, len(units))
	for i, u := range units {
		names[i] = u.short()
	}
	what := fmt.Sprintf("%d processes of other users", p.foreign.hidden)
	if p.foreign.hidden == 1 {
		what = "processes of other users"
	}
	return []string{fmt.Sprintf("%s could not be looked at: whether they use %s none but root can tell", what, strings.Join(names, ", "))}
}

func (p *Pool) findForeign(ctx context.Context, units []Unit, f *foreign) error {
	numbers, nodes := p.numbers(units)
	found, err := p.cfg.Host.openers(ctx, nodes)
	f.hidden = found.Hidden
	if err != nil || len(found.Of) == 0 {
		return err
	}
	whose, err := p.lessees(ctx)
	if err != nil {
		return err
	}
	for _, u := range units {
		key := u.Key()
		for _, n := range numbers[key] {
			for _, process := range found.Of[n] {
				if !whose[key].have(process) && !whose[u.UUID()].have(process) {
					f.of[key] = append(f.of[key], process)
				}
			}
		}
	}
	return nil
}

// numbers returns the numbers of the nodes that are one unit's alone, by its key, and by their paths on this machine.
func (p *Pool) numbers(units []Unit) (of map[string][]Number, nodes map[string]Number) {
	of, nodes = map[string][]Number{}, map[string]Number{}
	users := map[Number]int{}
	for _, u := range units {
		all, err := p.injector(u.Device.Vendor).Nodes(u)
		if err != nil {
			p.cfg.Logger.Warn("nodes of a device not known", "device", u.Key(), "err", err)
			continue
		}
		for _, n := range all {
			number := Number{uint32(n.Major), uint32(n.Minor)}
			of[u.Key()] = append(of[u.Key()], number)
			nodes[cmp.Or(n.HostPath, n.Path)] = number
			users[number]++
		}
	}
	for key := range of { // the node of a divided GPU is of all its slices
		of[key] = slices.DeleteFunc(of[key], func(n Number) bool { return users[n] > 1 })
	}
	maps.DeleteFunc(nodes, func(_ string, n Number) bool { return users[n] > 1 })
	return of, nodes
}

// lessee is who has been lent a device.
type lessee struct {
	roots  []int    // the processes that hold the leases: those below them are of the tasks
	owners []uint32 // whose the leases are
}

// have reports whether a process is of one of the tasks, or measures for the user of one.
func (l lessee) have(p Process) bool {
	return p.Descends(l.roots) || p.asks && slices.Contains(l.owners, p.UID)
}

// lessees are who has been lent devices, by the names that the ledger has for them.
func (p *Pool) lessees(ctx context.Context) (map[string]lessee, error) {
	all := map[string]lessee{}
	if p.cfg.Ledger == nil {
		return all, nil
	}
	s, err := p.cfg.Ledger.Snapshot(ctx)
	if err != nil {
		return nil, err
	}
	for _, e := range s.Leases {
		for _, d := range e.Devices {
			l := all[d.ID]
			l.owners = append(l.owners, e.Owner)
			for _, h := range e.Holders {
				if h.PID > 0 {
					l.roots = append(l.roots, h.PID)
				}
			}
			all[d.ID] = l
		}
	}
	return all, nil
}
