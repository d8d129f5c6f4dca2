package ledger

import (
	"fmt"
	"strings"

	"github.com/berth-project/berth"
)

// Capacity is what there is to lend. 0 is unknown: nothing of that kind is refused, or waited for.
type Capacity struct {
	CPU    float64 `json:"cpu"`    // cores
	Memory int64   `json:"memory"` // bytes
	Disk   int64   `json:"disk"`   // bytes
	// DiskOf names the file system of Disk: what is lent of another does not count against it.
	DiskOf string `json:"disk_of,omitempty"`
	// Pool names the part of the host that CPU and Memory are of, where this process may use a part only; ""
	// is the whole host. What is lent of another part does not count against it.
	Pool string `json:"pool,omitempty"`
}

// slack forgives the rounding of sums of fractions of a core.
const slack = 1e-6

// CapacityError is that more was asked for than there is to lend at all. It wraps ErrExhausted.
type CapacityError struct {
	Asked string // "task requires at least 4 CPU(s)"
	Most  string // "2", which not everybody may be to know
}

func (e *CapacityError) Error() string {
	return fmt.Sprintf("%v: %s, but this machine has a maximum of %s", berth.ErrExhausted, e.Asked, e.Most)
}

// Unwrap returns ErrExhausted.
func (e *CapacityError) Unwrap() error { return berth.ErrExhausted }

// couldFit reports whether c could ever hold the request.
func (c *Capacity) couldFit(r *Request) error {
	var err CapacityError
	switch {
	case c.CPU > 0 && r.CPU > c.CPU+slack:
		err = CapacityError{fmt.Sprintf("task requires at least %s CPU(s)", number(r.CPU)), number(c.CPU)}
	case c.Memory > 0 && r.Memory > c.Memory:
		err = CapacityError{fmt.Sprintf("task requires at least %s of memory", size(r.Memory)), size(c.Memory)}
	case c.Disk > 0 && r.Disk > c.Disk:
		err = CapacityError{fmt.Sprintf("task requires at least %s of disk", size(r.Disk)), size(c.Disk)}
	default:
		return nil
	}
	return fmt.Errorf("lend to %s: %w", r.Task, &err)
}

// counts reports whether what e has, or waits for, is of the CPU and memory that c is of.
func (c *Capacity) counts(e *Entry) bool { return c.Pool == "" || c.Pool == e.Pool }

// of is how much of c an entry has, or waits for.
func (c *Capacity) of(e *Entry) (a Amount) {
	if c.counts(e) {
		a.CPU, a.Memory = e.CPU, e.Memory
	}
	if e.DiskOf == c.DiskOf {
		a.Disk = e.Disk
	}
	return a
}

func (v *view) lent(c *Capacity) Amount {
	var a Amount
	for i := range v.entries {
		if e := &v.entries[i]; e.Lent {
			a = a.plus(c.of(e))
		}
	}
	return a
}

// fits reports whether cpu, memory and disk are free beside lent.
func (c *Capacity) fits(lent Amount, ask Amount) (cpu, memory, disk bool) {
	return ask.CPU == 0 || c.CPU == 0 || lent.CPU+ask.CPU <= c.CPU+slack,
		ask.Memory == 0 || c.Memory == 0 || lent.Memory+ask.Memory <= c.Memory,
		ask.Disk == 0 || c.Disk == 0 || lent.Disk+ask.Disk <= c.Disk
}

func number(f float64) string {
	s := fmt.Sprintf("%.3f", f)
	return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
}

func size(n int64) string {
	for i, unit := range []string{"TiB", "GiB", "MiB", "KiB"} {
		if one := float64(int64(1) << (10 * (4 - i))); float64(n) >= one {
			return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%.2f", float64(n)/one), "0"), ".") + unit
		}
	}
	return fmt.Sprintf("%dB", n)
}
