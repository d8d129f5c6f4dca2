// Package ledger knows what of this host is lent, and to whom: CPU, memory, disk and devices. It is shared
// by every berth process, user and data directory on the host, needs no daemon, and is the line in which
// tasks wait for each other.
//
// It is not a scheduler (package queue decides what a server runs next) and enforces nothing: limits are the
// engine's.
package ledger

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Config says where the ledger lies and what there is to lend. The zero value of each field but Capacity is
// its default.
type Config struct {
	Dirs     Dirs
	Capacity Capacity // what this process may lend; see Host
	// Instance names the data directory on whose behalf entries are made.
	Instance string
	// LockTimeout bounds how long one look at the ledger waits for its lock. Default 10 s.
	LockTimeout time.Duration
	// StallAfter: a ticket that gives no sign of life for so long, or does not claim what it could have for
	// so long, is passed over until it comes back. Default 5 s.
	StallAfter time.Duration
	// Poll is how often the first in line looks for deaths that no notification tells of. Default 250 ms.
	Poll time.Duration
	// HideFigures: what is said of a request that waits does not tell how much there is, and how much of it is lent.
	HideFigures bool
}

// Ledger is this process's view of the host's ledger. All methods may be called concurrently.
type Ledger struct {
	cfg Config
	id  identity

	mu    sync.Mutex
	cache map[string]cached // by path: what was parsed of a file that has not changed since
}

// New returns the ledger that cfg describes. It touches no file: the directories are made by the first
// Acquire.
func New(cfg Config) (*Ledger, error) {
	if cfg.Dirs == (Dirs{}) {
		cfg.Dirs = DefaultDirs()
	}
	if cfg.LockTimeout == 0 {
		cfg.LockTimeout = 10 * time.Second
	}
	if cfg.StallAfter == 0 {
		cfg.StallAfter = 5 * time.Second
	}
	if cfg.Poll == 0 {
		cfg.Poll = 250 * time.Millisecond
	}
	id, err := whoami()
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	return &Ledger{cfg: cfg, id: id, cache: map[string]cached{}}, nil
}

// Request is what a task asks to be lent. 0 asks for none of that kind.
type Request struct {
	Task   string  // the task's ID
	CPU    float64 // cores
	Memory int64   // bytes
	Disk   int64   // bytes, on Capacity.DiskOf
	// Devices asks for these devices.
	Devices []Device
	// Choose picks devices beside Devices. It is called with the ledger locked, perhaps many times: it must
	// be quick and must not call the ledger, but for Snapshot. An error that wraps berth.ErrUnavailable means that what is
	// wanted is not free now: the request waits, and the error's text says for what. Any other error ends
	// the request.
	Choose func(taken map[string]Taken) ([]Device, error)
	// NoWait refuses with berth.ErrUnavailable what is not free now.
	NoWait bool
	// Waiting is told for what the request waits, whenever that changes. It must return soon.
	Waiting func(why string)
}

// Device is one lent device, or a share of it.
type Device struct {
	ID    string `json:"id"`
	Bytes int64  `json:"bytes,omitempty"` // of the device's memory; 0 lends the whole device to one task
	Total int64  `json:"total,omitempty"` // the device's memory, bytes; needed where Bytes is given
}

// Taken says how a device is lent.
type Taken struct {
	Exclusive bool
	Bytes     int64    // the sum of its shares
	Tasks     []string // who has it
}

func (r *Request) empty() bool {
	return r.CPU == 0 && r.Memory == 0 && r.Disk == 0 && len(r.Devices) == 0 && r.Choose == nil
}

func (r *Request) check() error {
	if err := berth.CheckID(r.Task); err != nil {
		return err
	}
	if !(r.CPU >= 0 && r.CPU < 1<<20) || r.Memory < 0 || r.Disk < 0 {
		return fmt.Errorf("lend to %s: %w: %g CPUs, %d bytes of memory, %d of disk", r.Task, berth.ErrInvalid, r.CPU, r.Memory, r.Disk)
	}
	return checkDevices(r.Task, r.Devices)
}

func checkDevices(task string, devices []Device) error {
	seen := map[string]bool{}
	for _, d := range devices {
		if d.ID == "" || len(d.ID) > deviceIDMax || d.Bytes < 0 || d.Bytes > 0 && d.Total < d.Bytes {
			return fmt.Errorf("lend to %s: %w: device %q with %d of %d bytes", task, berth.ErrInvalid, d.ID, d.Bytes, d.Total)
		}
		if seen[d.ID] {
			return fmt.Errorf("lend to %s: %w: device %s is asked for twice", task, berth.ErrInvalid, d.ID)
		}
		seen[d.ID] = true
	}
	return nil
}

// Check reports whether req makes sense and could ever be lent: what Acquire refuses without a look at the
// ledger. Errors: berth.ErrInvalid, and berth.ErrExhausted with what there is in its text. It waits for nothing: the
// context is for ledgers in this one's place, of machines that have to be asked.
func (l *Ledger) Check(_ context.Context, req Request) error {
	if err := req.check(); err != nil {
		return err
	}
	return l.cfg.Capacity.couldFit(&req)
}

// Acquire lends what req asks for, in order of arrival: it waits while the machine has no room, and while
// another waits that came before. A request for nothing is lent nothing, at once.
//
// Errors: berth.ErrExhausted where the machine could never give it; berth.ErrUnavailable where it is not
// free now and req.NoWait is set, and where the ledger's lock is held by another for too long;
// berth.ErrDenied where the ledger's directory cannot be trusted or made; context.Cause(ctx) at its end.
func (l *Ledger) Acquire(ctx context.Context, req Request) (*Lease, error) {
	if err := l.Check(ctx, req); err != nil {
		return nil, err
	}
	if req.empty() {
		return &Lease{ledger: l, entry: Entry{Task: req.Task}}, nil
	}
	t := &ticket{ledger: l, req: &req, fitting: map[string]time.Time{}}
	lease, err := t.claim(ctx)
	if lease != nil || err != nil {
		return lease, err
	}
	lease, err = t.wait(ctx)
	if err != nil {
		t.drop()
	}
	return lease, err
}

// Adopt makes this process a further holder of a lease that another process of this user holds: it lives on
// when that one is gone. berth.ErrNotFound if there is no such lease, or no longer.
func (l *Ledger) Adopt(ctx context.Context, id string) (*Lease, error) {
	unlock, err := l.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("adopt lease %s: %w", id, err)
	}
	defer unlock()
	if !validName(id) {
		return nil, fmt.Errorf("adopt lease %q: %w: not a lease's id", id, berth.ErrInvalid)
	}
	dirs, _ := l.dirs()
	for _, dir := range dirs {
		fd, err := openEntry(dir+"/"+id, unix.O_RDWR|unix.O_APPEND)
		if err != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), dir+"/"+id)
		e, err := l.read(fd, dir, id)
		if err != nil || !e.Lent || !l.alive(fd, &e) {
			_ = f.Close()
			continue
		}
		if err := holdFile(f); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("adopt lease %s: %w: %w", id, berth.ErrUnavailable, err)
		}
		return &Lease{ledger: l, file: f, entry: e}, nil
	}
	return nil, fmt.Errorf("adopt lease %s: %w: nobody holds it", id, berth.ErrNotFound)
}
