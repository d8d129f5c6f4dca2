package device

// Use is how busy a device is at the moment.
type Use struct {
	Busy    *int   `json:"busy_percent,omitempty"` // of the time; nil if unknown
	Memory  *int64 `json:"memory_used,omitempty"`  // bytes; nil if unknown
	Unknown string `json:"unknown,omitempty"`      // why not all is known
}

// Reading is what a Gauge shows at one moment. What is nil cannot be read.
type Reading struct {
	Memory *int64   // bytes in use
	Busy   *float64 // percent of the time since the reading before, or of a moment that the driver chose
	// Energy counts joules from a moment that the driver chose. Where there is no such counter, Power is in watts.
	Energy, Power *float64
}

// Gauge reads what a device that is lent to a container does.
type Gauge interface {
	// Read may take as long as the driver does.
	Read() Reading
	// Lacks says in words why what Read leaves out cannot be read; "" if nothing is left out.
	Lacks() string
}

// Gauged is a device to be measured: a whole one, a slice, or a share that the processes of a container have.
type Gauged struct {
	Unit
	Shared bool
	PID    int // the container's first process, from which all of its processes descend
}

// Deaf is a gauge of what cannot be read at all, for a reason.
type Deaf string

var _ Gauge = Deaf("")

// Read reads nothing.
func (Deaf) Read() Reading { return Reading{} }

// Lacks is the reason.
func (d Deaf) Lacks() string { return string(d) }
