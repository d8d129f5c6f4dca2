package ociruntime

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/ledger"
)

// taskPrefix begins the names by which the ledger knows containers of other engines.
const taskPrefix = "oci-"

// taskOf is a container's name in the ledger. People find its ID in it; the end tells it from the containers of that
// ID elsewhere: an ID is unique only in one state directory of a runtime, of which namespaces of an engine have one each.
// where is that directory, or another place that is the container's alone.
func taskOf(id, where string) string {
	sum := sha256.Sum256([]byte(where + "\x00" + id))
	return shown(id) + hex.EncodeToString(sum[:4])
}

// shown is what people see of an ID: as engines abbreviate it, or what of a name the ledger can write.
func shown(id string) string {
	if len(id) == 64 && strings.Trim(id, "0123456789abcdef") == "" {
		return taskPrefix + id[:12] + "-"
	}
	name := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', '0' <= r && r <= '9', r == '-':
			return r
		case 'A' <= r && r <= 'Z':
			return r + 'a' - 'A'
		}
		return '-'
	}, id)
	return taskPrefix + name[:min(len(name), 24)] + "-"
}

func openLedger(dirs ledger.Dirs) (*ledger.Ledger, error) {
	return ledger.New(ledger.Config{Dirs: dirs})
}

// lend takes a plan's units for a container, or refuses: nobody waits for an engine that waits for its runtime.
func (p *planner) lend(ctx context.Context, l *ledger.Ledger, task string, units []device.Unit) (*ledger.Lease, error) {
	req := ledger.Request{Task: task, NoWait: true}
	faults := p.faults(units)
	for _, u := range units {
		if f, ok := device.FaultOf(faults, u); ok {
			return nil, fmt.Errorf("GPU %s: %w: it is not lent any more: %s; if it works again, as root: berth gpu release %s", u, berth.ErrUnavailable, f, f.UUID)
		}
		req.Devices = append(req.Devices, ledger.Device{ID: u.Key()})
	}
	req.Choose = func(taken map[string]ledger.Taken) ([]ledger.Device, error) {
		for _, u := range units {
			for _, id := range namesOf(u)[1:] {
				if t := taken[id]; len(t.Tasks) > 0 {
					return nil, fmt.Errorf("%w: it is lent to %s", berth.ErrUnavailable, strings.Join(t.Tasks, ", "))
				}
			}
		}
		return nil, nil
	}
	lease, err := l.Acquire(ctx, req)
	if err != nil {
		return nil, p.held(ctx, l, units, err)
	}
	if err := p.idle(ctx, units); err != nil {
		lease.Release()
		return nil, err
	}
	return lease, nil
}

// faults are why devices are not lent any more: what is noted, and what those of the units have reported since. What cannot be
// noted here counts here.
func (p *planner) faults(units []device.Unit) map[string]device.Fault {
	var devices []device.Device
	for _, u := range units {
		devices = append(devices, u.Device)
	}
	held, _ := device.QuarantineOf(p.host, p.data...).Hold(device.FindFaults(p.host, devices)...)
	return held
}

// held says of devices that could not be lent who has them.
func (p *planner) held(ctx context.Context, l *ledger.Ledger, units []device.Unit, err error) error {
	if !errors.Is(err, berth.ErrUnavailable) {
		return err
	}
	s, bad := l.Snapshot(ctx)
	if bad != nil {
		return err
	}
	for _, u := range units {
		for _, id := range namesOf(u) {
			if t, ok := s.Devices[id]; ok {
				return fmt.Errorf("GPU %s: %w: it is lent to %s", u, berth.ErrUnavailable, strings.Join(t.Tasks, ", "))
			}
		}
	}
	return err
}

// namesOf are the names by which the ledger may have a unit: its key, and of a slice the name that the driver's library has
// for it, by which it may have been lent before, and its GPU, which may have been lent before it was divided.
func namesOf(u device.Unit) []string {
	names := []string{u.Key()}
	if u.Slice != nil {
		names = append(names, u.Device.UUID)
		if u.UUID() != u.Key() {
			names = append(names, u.UUID())
		}
	}
	return names
}

// idle looks for processes that have opened devices which were lent to nobody.
func (p *planner) idle(ctx context.Context, units []device.Unit) error {
	if p.cfg.AllowBusy || p.host.Recorded() {
		return nil
	}
	var numbers []device.Number
	of := map[device.Number]device.Unit{}
	for _, u := range units {
		names, err := p.nodes(u)
		if err != nil {
			return err
		}
		for _, name := range names {
			n, err := p.host.Node(name)
			if err != nil {
				return fmt.Errorf("%s: %w: %w", u, berth.ErrUnavailable, err)
			}
			numbers = append(numbers, n.Number())
			of[n.Number()] = u
		}
	}
	found, err := device.FindOpeners(ctx, numbers)
	if err != nil {
		return err
	}
	for _, n := range numbers { // in the order of the units, whatever that of the answer
		if processes := found.Of[n]; len(processes) > 0 {
			return fmt.Errorf("GPU %s: %w: %s uses it, and has not been lent it; end it, or set berth.allow-busy", of[n], berth.ErrUnavailable, processes[0])
		}
	}
	return nil
}

// hold makes a process a holder of a lease.
func hold(ctx context.Context, lease *ledger.Lease, pid int) error {
	h, err := ledger.Process(pid)
	if err != nil {
		return err
	}
	return lease.AddHolder(ctx, h)
}

// holdByContainer has a lease live as long as anything of a container: its first process, and what runs in its cgroup
// where that is its own.
func holdByContainer(ctx context.Context, lease *ledger.Lease, pid int) error {
	if err := hold(ctx, lease, pid); err != nil {
		return err
	}
	g, ok := ownGroup(pid)
	if !ok {
		return nil
	}
	h, err := ledger.Cgroup(g.Dir)
	if err != nil {
		return err
	}
	return lease.AddHolder(ctx, h)
}

// maxAncestors is how far above a hook the runtime is looked for that runs it.
const maxAncestors = 16

// isOwn refuses a lease that is not for the container with this ID, or that a runtime took which does not run this hook: the
// configuration that names it may be a copy of another container's.
func isOwn(ctx context.Context, l *ledger.Ledger, lease, id string) error {
	s, err := l.Snapshot(ctx)
	if err != nil {
		return err
	}
	for _, e := range s.Leases {
		if e.ID == lease && e.Owner == uint32(os.Geteuid()) && strings.HasPrefix(e.Task, shown(id)) && heldAbove(e.Holders) {
			return nil
		}
	}
	return fmt.Errorf("container %s: %w: the lease %s of its GPUs, which its configuration names, is not its own (is the bundle a copy of another container's?); start it with berth oci-runtime", id, berth.ErrDenied, lease)
}

// heldAbove says whether one of the holders has started this process, or what started it.
func heldAbove(holders []ledger.Holder) bool {
	for pid, n := os.Getppid(), 0; pid > 1 && n < maxAncestors; n++ {
		if h, err := ledger.Process(pid); err == nil && slices.Contains(holders, h) {
			return true
		}
		pid = parentOf(pid)
	}
	return false
}

// parentOf is the parent of a process; 0 where it is not known.
func parentOf(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The name is in brackets, and may hold any.
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(f) < 2 {
		return 0
	}
	parent, err := strconv.Atoi(f[1])
	if err != nil {
		return 0
	}
	return parent
}

// leaseOf finds the lease of a task; "" where it has none.
func leaseOf(ctx context.Context, l *ledger.Ledger, task string) (string, error) {
	s, err := l.Snapshot(ctx)
	if err != nil {
		return "", err
	}
	for _, e := range s.Leases {
		if e.Task == task && e.Owner == uint32(os.Geteuid()) {
			return e.ID, nil
		}
	}
	return "", nil
}

// lentBefore reports whether a container has been lent these units already: by a hook before, whose lease its process
// holds, or by the runtime, which names its lease in the bundle's configuration. A lease of other units is an error.
func lentBefore(ctx context.Context, l *ledger.Ledger, c *container, units []device.Unit) (bool, error) {
	process, err := ledger.Process(c.state.Pid)
	if err != nil {
		return false, err
	}
	named, err := c.lentLease()
	if err != nil {
		return false, err
	}
	s, err := l.Snapshot(ctx)
	if err != nil {
		return false, err
	}
	for _, e := range s.Leases {
		// A configuration that was copied from another container's names the lease of that.
		byRuntime := e.ID == named && strings.HasPrefix(e.Task, shown(c.state.ID))
		if e.Owner != uint32(os.Geteuid()) || !byRuntime && !slices.Contains(e.Holders, process) {
			continue
		}
		var has, asked []string
		for _, d := range e.Devices {
			id := d.ID
			if i := slices.IndexFunc(units, func(u device.Unit) bool { return u.Is(id) }); i >= 0 {
				id = units[i].Key()
			}
			has = append(has, id)
		}
		for _, u := range units {
			asked = append(asked, u.Key())
		}
		slices.Sort(has)
		slices.Sort(asked)
		if !slices.Equal(has, asked) {
			return false, fmt.Errorf("container %s: %w: it asks the hook for %s, and was lent %s before, as %s; let either berth oci-runtime or one hook bring its GPUs",
				c.state.ID, berth.ErrInvalid, strings.Join(asked, ", "), strings.Join(has, ", "), e.Task)
		}
		return true, nil
	}
	return false, nil
}

// free ends a lease of a container of which the runtime has said that it is no more, unless something of it runs: that
// may be a container of the same ID, which has been made since. Holders of which nobody can say that here, since they
// are of another pid namespace, are taken at the runtime's word.
func free(ctx context.Context, l *ledger.Ledger, lease string) error {
	ls, err := l.Adopt(ctx, lease)
	if errors.Is(err, berth.ErrNotFound) {
		return nil
	} else if err != nil {
		return err
	}
	defer ls.Release()
	here, err := ledger.Process(os.Getpid())
	if err != nil {
		return err
	}
	s, err := l.Snapshot(ctx)
	if err != nil {
		return err
	}
	for _, e := range s.Leases {
		if e.ID != lease {
			continue
		}
		for _, h := range e.Holders {
			if h.PID == 0 || h.PIDNS == here.PIDNS {
				continue
			}
			if err := ls.RemoveHolder(ctx, h); err != nil {
				return err
			}
		}
	}
	return nil
}
