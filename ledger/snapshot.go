package ledger

import "context"

// Snapshot is what the ledger says at one moment.
type Snapshot struct {
	Capacity Capacity         `json:"capacity"`
	Lent     Amount           `json:"lent"` // of Capacity
	Devices  map[string]Taken `json:"devices,omitempty"`
	Leases   []Entry          `json:"leases"`  // in order of arrival
	Waiting  []Entry          `json:"waiting"` // in order of arrival
	Ignored  []Ignored        `json:"ignored,omitempty"`
}

// Amount is how much of CPU, memory and disk.
type Amount struct {
	CPU    float64 `json:"cpu"`    // cores
	Memory int64   `json:"memory"` // bytes
	Disk   int64   `json:"disk"`   // bytes
}

// Snapshot looks at the ledger without waiting for anybody. A ledger that nobody has made yet is empty.
func (l *Ledger) Snapshot(ctx context.Context) (Snapshot, error) {
	if err := ctx.Err(); err != nil {
		return Snapshot{}, context.Cause(ctx)
	}
	v := l.look()
	s := Snapshot{
		Capacity: l.cfg.Capacity, Lent: v.lent(&l.cfg.Capacity), Devices: v.taken(),
		Leases: []Entry{}, Waiting: []Entry{}, Ignored: v.ignored,
	}
	for _, e := range v.entries {
		if e.Lent {
			s.Leases = append(s.Leases, e)
		} else {
			s.Waiting = append(s.Waiting, e)
		}
	}
	return s, nil
}
