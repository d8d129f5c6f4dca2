package runner

import (
	"context"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/ledger"
)

// Ledger lends what this host has, to the tasks of every user and data directory; *ledger.Ledger does.
type Ledger interface {
	Check(ctx context.Context, req ledger.Request) error
	Acquire(ctx context.Context, req ledger.Request) (*ledger.Lease, error)
	Adopt(ctx context.Context, id string) (*ledger.Lease, error)
}

// Devices are the host's that tasks ask for by Resources.GPUs; *device.Pool has them. What is lent is the ledger's to
// say.
type Devices interface {
	// Check reports whether the host could ever give what the task asks for.
	Check(ctx context.Context, task *berth.Task) error
	// Choose is for ledger.Request; nil if the task asks for none.
	Choose(ctx context.Context, task *berth.Task) (func(map[string]ledger.Taken) ([]ledger.Device, error), error)
	// Grants says what lent devices bring into the containers of the task, whose environments are given; notes
	// are for people.
	Grants(ctx context.Context, task *berth.Task, lent []ledger.Device, envs [][]string) (grants []berth.Grant, notes []string, err error)
	// Preflight says what is to run in the task's container before each step's command, as the step's user: a static
	// program of this host, and its arguments. "" if the task does not ask for it.
	Preflight(task *berth.Task, grants []berth.Grant) (program string, args []string, err error)
	// Faults says in words which of lent devices have failed.
	Faults(ctx context.Context, lent []ledger.Device) ([]string, error)
}

// Meter measures what lent devices do while a step has them, beside this process: whoever dies meanwhile, it goes on.
type Meter interface {
	// Start begins to measure, until the process pid has ended, and does not wait. It does nothing where somebody
	// measures for the same file.
	Start(file string, pid int, grants []berth.Grant) error
	// Read returns what was measured of each device, and why not where nothing was. It waits, for patience at most, for
	// who measures to have seen the end.
	Read(ctx context.Context, file string, patience time.Duration, grants []berth.Grant) []berth.GPUUse
}

// Checker is a berth.Engine that says what it would refuse later, before anything is recorded or pulled. The
// specs have of an image what it is called, no log directories, and of the mounts only those that the task names.
type Checker interface {
	Check(ctx context.Context, spec berth.SandboxSpec, steps []berth.StepSpec) error
}

// Purger is a berth.Engine that tells what it has made by its marks, also where it has no record of the sandbox.
type Purger interface {
	// Orphans names the sandboxes of this owner of which there is anything, and no record here: there may be one elsewhere.
	Orphans(ctx context.Context) ([]string, error)
	// Purge removes all that there is of a sandbox without a record. It reports whether there was something.
	Purge(ctx context.Context, id string) (bool, error)
}

// Stayer is a berth.Sandbox that can be had to stay, although it is bound to this process.
type Stayer interface {
	Keep(ctx context.Context) error
}

// Unclosed is a berth.Sandbox that is closed later by the engine itself, where Close has failed when its task had ended: a bound one
// once its opener is gone, another when it is told to.
type Unclosed interface {
	CloseLater() error
}

// Placed is a berth.Sandbox that says in which directory of this host what its containers write lies.
type Placed interface {
	Dir() string
}

// What a task was lent is given back when what uses it has ended, not when the process that asked for it has.
// So the runner asks engines of this host who that is, by type assertion.
type (
	// Keeper is a berth.Sandbox that names the process with which its containers end. A task with a lease
	// is never parked on an engine without it.
	Keeper interface {
		Monitor(ctx context.Context) (pid int, err error)
	}
	// Process is a berth.Container that names its first process on this host; 0 if there is none.
	Process interface {
		Pid() int
	}
)

// Runtimed is a berth.Container that says what started it, in the words of berth.Exit.Runtime.
type Runtimed interface {
	Runtime() string
}

// Feeder is a berth.Container that may get its standard input from this process. A task is not parked before Fed is closed.
type Feeder interface {
	Fed() <-chan struct{}
}

// Clock tells and waits for time.
type Clock interface {
	Now() time.Time
	After(d time.Duration) <-chan time.Time
}

type systemClock struct{}

func (systemClock) Now() time.Time                         { return time.Now() }
func (systemClock) After(d time.Duration) <-chan time.Time { return time.After(d) }
