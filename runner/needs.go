package runner

import (
	"context"
	"time"

	"github.com/berth-project/berth/ledger"
)

// Ledger lends what this host has, to the tasks of every user and data directory; *ledger.Ledger does.
type Ledger interface {
	Check(req ledger.Request) error
	Acquire(ctx context.Context, req ledger.Request) (*ledger.Lease, error)
	Adopt(ctx context.Context, id string) (*ledger.Lease, error)
}

// Keeper is a berth.Sandbox that says what of it runs on this host, so that what was lent to a task is given
// back when that has ended, not when the process that asked for it has. Found by type assertion; a task
// with a lease is never parked on an engine without it.
type Keeper interface {
	// Monitor is the process with which the containers of the sandbox end; 0 if there is none.
	Monitor() int
	// Cgroup is the directory below /sys/fs/cgroup in which the processes of its containers are; "" if
	// there is none.
	Cgroup() string
}

// Clock tells and waits for time.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }
