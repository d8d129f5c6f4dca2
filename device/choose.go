package device

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/ledger"
)

// choice chooses units for a task. Of the same state of things it always chooses the same.
type choice struct {
	taken map[string]ledger.Taken
	busy  map[string][]Process
}

func newChoice(taken map[string]ledger.Taken, busy map[string][]Process) *choice {
	c := &choice{taken: maps.Clone(taken), busy: busy}
	if c.taken == nil {
		c.taken = map[string]ledger.Taken{}
	}
	return c
}

// own marks units that the choice has made.
const own = "this task"

// pick chooses for each request from the units that fit it. ErrUnavailable if they are not free; the text says what
// is waited for.
func (c *choice) pick(requests []Request, fits [][]Unit) ([]ledger.Device, error) {
	order := make([]int, len(requests))
	for i := range order {
		order[i] = i
	}
	// Those that can be given least elsewhere come first.
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(freedom(requests[a]), freedom(requests[b])), cmp.Compare(len(fits[a]), len(fits[b])))
	})
	var lent []ledger.Device
	for _, i := range order {
		r := requests[i]
		units, err := c.choose(r, fits[i])
		if err != nil {
			return nil, err
		}
		for _, u := range units {
			d := ledger.Device{ID: u.Key()}
			if r.Shared {
				d.Bytes, d.Total = r.Memory, u.Memory()
			}
			lent = append(lent, d)
			t := c.taken[d.ID]
			t.Exclusive, t.Tasks = true, append(slices.Clip(t.Tasks), own)
			c.taken[d.ID] = t
		}
	}
	return lent, nil
}

func freedom(r Request) int {
	switch {
	case len(r.IDs) > 0:
		return 0
	case r.Count == All:
		return 1
	}
	return 2
}

// choose chooses for one request.
func (c *choice) choose(r Request, fit []Unit) ([]Unit, error) {
	if r.Count == 0 && len(r.IDs) == 0 {
		return nil, nil
	}
	var free []Unit
	for _, u := range fit {
		if c.free(r, u) {
			free = append(free, u)
		}
	}
	if len(r.IDs) > 0 || r.Count == All {
		if len(free) < len(fit) {
			return nil, c.waiting(r, fit, len(fit))
		}
		return free, nil
	}
	var vendors []string
	for _, u := range free {
		if !slices.Contains(vendors, u.Device.Vendor) {
			vendors = append(vendors, u.Device.Vendor)
		}
	}
	var chosen []Unit
	for _, vendor := range vendors {
		of := slices.DeleteFunc(slices.Clone(free), func(u Unit) bool { return u.Device.Vendor != vendor })
		if len(of) < r.Count {
			continue
		}
		if units := c.best(r, of); chosen == nil || c.rather(r, units, chosen) {
			chosen = units
		}
	}
	if chosen == nil {
		return nil, c.waiting(r, fit, r.Count)
	}
	return chosen, nil
}

// rather reports whether a request should get units of one vendor rather than those of another that comes before: where it
// asks for memory, for the least that will do. Who asks for a number alone gets what Docker gives, which is the first vendor's.
func (c *choice) rather(r Request, units, before []Unit) bool {
	switch {
	case r.Memory == 0:
		return false
	case r.Shared:
		return c.compareFit(r, units[0], before[0]) < 0
	}
	return memoryOf(units) < memoryOf(before)
}

func memoryOf(units []Unit) (sum int64) {
	for _, u := range units {
		sum += u.Memory()
	}
	return sum
}

// of says how a unit is lent. A berth of before may have lent a slice by the name that the driver's library has for it.
func (c *choice) of(u Unit) ledger.Taken {
	t := c.taken[u.Key()]
	if u.Key() == u.UUID() {
		return t
	}
	old := c.taken[u.UUID()]
	t.Exclusive = t.Exclusive || old.Exclusive
	t.Bytes += old.Bytes
	t.Tasks = append(slices.Clip(t.Tasks), old.Tasks...)
	return t
}

func (c *choice) free(r Request, u Unit) bool {
	t := c.of(u)
	if u.Slice != nil && len(c.taken[u.Device.UUID].Tasks) > 0 {
		return false // it was lent before it was divided
	}
	if len(c.busy[u.Key()]) > 0 && !r.AllowBusy {
		return false
	}
	if r.Shared {
		return !t.Exclusive && t.Bytes+r.Memory <= u.Memory()
	}
	return len(t.Tasks) == 0
}

// best chooses Count of free units of one vendor, which are that many at least: devices of one model that have links to
// each other, or are near to each other, where there are such, from the smallest group of them that is enough, so that what is left over is of as
// much use as can be.
func (c *choice) best(r Request, free []Unit) []Unit {
	if r.Count == 1 {
		return []Unit{c.one(r, free)}
	}
	near := func(of func(Unit) string) [][]Unit {
		groups, order := map[string][]Unit{}, []string{}
		for _, u := range free {
			k := of(u)
			if k == "" {
				continue // near to none
			}
			if groups[k] == nil {
				order = append(order, k)
			}
			groups[k] = append(groups[k], u)
		}
		var out [][]Unit
		for _, k := range order {
			if len(groups[k]) >= r.Count {
				out = append(out, groups[k])
			}
		}
		return out
	}
	var groups [][]Unit
	numa := func(u Unit) string { return kindOf(u) + "\x00" + strconv.Itoa(u.Device.NUMA) }
	for _, of := range []func(Unit) string{
		linked(numa),
		linked(kindOf),
		numa,
		kindOf,
		func(Unit) string { return "any" },
	} {
		if groups = near(of); len(groups) > 0 {
			break
		}
	}
	// A unit of a group is better than one of another by the same measure by which it is better in its group; then
	// the smaller group is left broken.
	slices.SortStableFunc(groups, func(a, b []Unit) int {
		return cmp.Or(c.compareFit(r, c.first(r, a), c.first(r, b)), cmp.Compare(len(a), len(b)))
	})
	group := groups[0]
	c.sort(r, group)
	return group[:r.Count]
}

// linked groups as of does, those apart that have no links to each other.
func linked(of func(Unit) string) func(Unit) string {
	return func(u Unit) string {
		if u.Device.Island == "" {
			return ""
		}
		return of(u) + "\x00" + u.Device.Island
	}
}

// one chooses the one whose loss leaves the others of most use: with no links, near a node where few are left.
func (c *choice) one(r Request, free []Unit) Unit {
	islands, nodes := map[string]int{}, map[int]int{}
	for _, u := range free {
		if u.Device.Island != "" {
			islands[u.Device.Island]++
		}
		nodes[u.Device.NUMA]++
	}
	return slices.MinFunc(free, func(a, b Unit) int {
		return cmp.Or(
			c.compareFit(r, a, b),
			cmp.Compare(islands[a.Device.Island], islands[b.Device.Island]),
			cmp.Compare(nodes[a.Device.NUMA], nodes[b.Device.NUMA]),
			cmp.Compare(a.Device.Index, b.Device.Index),
		)
	})
}

func kindOf(u Unit) string {
	profile := ""
	if u.Slice != nil {
		profile = u.Slice.Profile
	}
	return u.Device.Model + "\x00" + profile + "\x00" + strconv.FormatInt(u.Memory(), 10)
}

func (c *choice) first(r Request, group []Unit) Unit {
	return slices.MinFunc(group, func(a, b Unit) int { return c.compareFit(r, a, b) })
}

func (c *choice) sort(r Request, units []Unit) {
	slices.SortStableFunc(units, func(a, b Unit) int {
		return cmp.Or(c.compareFit(r, a, b), cmp.Compare(a.Device.Index, b.Device.Index))
	})
}

// compareFit says which unit a request should rather get: for a share, of a device that is shared already, the least
// loaded; else the one with the least memory, and a slice of the device of which most is lent.
func (c *choice) compareFit(r Request, a, b Unit) int {
	if r.Shared {
		ta, tb := c.of(a), c.of(b)
		return cmp.Or(
			-cmp.Compare(min(len(ta.Tasks), 1), min(len(tb.Tasks), 1)),
			cmp.Compare(float64(ta.Bytes)/float64(max(a.Memory(), 1)), float64(tb.Bytes)/float64(max(b.Memory(), 1))),
			cmp.Compare(a.Memory(), b.Memory()),
		)
	}
	return cmp.Or(cmp.Compare(a.Memory(), b.Memory()), cmp.Compare(c.freeSlices(a.Device), c.freeSlices(b.Device)))
}

func (c *choice) freeSlices(d Device) int {
	n := 0
	for i := range d.Slices {
		if len(c.of(Unit{Device: d, Slice: &d.Slices[i]}).Tasks) == 0 {
			n++
		}
	}
	return n
}

// waiting says for what a request waits.
func (c *choice) waiting(r Request, fit []Unit, want int) error {
	const shown = 4
	var who []string
	for _, u := range fit {
		if c.free(r, u) {
			continue
		}
		who = append(who, u.short()+" "+c.holders(u))
	}
	more := ""
	if slices.ContainsFunc(fit, func(u Unit) bool { return !r.AllowBusy && c.onlyBusy(u) }) {
		more = "; --allow-busy lends what others use"
	}
	if len(who) > shown {
		who, more = who[:shown], fmt.Sprintf(" and %d more%s", len(who)-shown, more)
	}
	return fmt.Errorf("waiting for %s: %s%s%.0w", r.wanted(want), strings.Join(who, ", "), more, berth.ErrUnavailable)
}

// onlyBusy reports whether a unit is lent to nobody, and used by others' processes.
func (c *choice) onlyBusy(u Unit) bool { return len(c.of(u).Tasks) == 0 && len(c.busy[u.Key()]) > 0 }

func (c *choice) holders(u Unit) string {
	t := c.of(u)
	if len(t.Tasks) == 0 && u.Slice != nil {
		t = c.taken[u.Device.UUID]
	}
	switch busy := c.busy[u.Key()]; {
	case t.Bytes > 0:
		return fmt.Sprintf("has %s of %s lent to %s", berth.SizeInWords(t.Bytes), berth.SizeInWords(u.Memory()), strings.Join(t.Tasks, ", "))
	case len(t.Tasks) > 0:
		return "is lent to " + strings.Join(t.Tasks, ", ")
	case len(busy) > 0:
		return "is used by " + busy[0].String()
	}
	return "is too small"
}

// wanted says in words what a request wants.
func (r Request) wanted(n int) string {
	what := "1 GPU"
	switch {
	case r.Shared:
		what = berth.SizeInWords(r.Memory) + " of a GPU"
	case r.MIG != "":
		what = fmt.Sprintf("%d of the slices %s", n, r.MIG)
	case n != 1:
		what = fmt.Sprintf("%d GPUs", n)
	}
	return what
}
