package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// ticket is a request on its way to a lease.
type ticket struct {
	ledger  *Ledger
	req     *Request
	entry   Entry    // as last written
	file    *os.File // nil until the ticket is in the ledger
	why     string   // what it waits for
	before  int      // how many are before it
	fitting map[string]time.Time
}

func (t *ticket) published() bool { return t.file != nil }

// claim looks at the ledger under its lock and takes what is asked for where it is free. Where it is not,
// the ticket takes its place in line, and the lease is nil.
func (t *ticket) claim(ctx context.Context) (*Lease, error) {
	l := t.ledger
	if l.cfg.Dirs.PerUser == "" { // the directory is the lock
		if _, err := l.ownDir(); err != nil {
			return nil, err
		}
	}
	unlock, err := l.lock(ctx)
	if err != nil {
		return nil, fmt.Errorf("lend to %s: %w", t.req.Task, err)
	}
	defer unlock()
	if err := t.restore(); err != nil {
		return nil, err
	}
	v := l.look()
	v.sweep()
	d, err := t.judge(&v, time.Now())
	if err != nil {
		return nil, fmt.Errorf("lend to %s: %w", t.req.Task, err)
	}
	t.why, t.before = d.why, d.before
	if !d.ok && t.req.NoWait {
		return nil, fmt.Errorf("lend to %s: %w: %s", t.req.Task, berth.ErrUnavailable, d.why)
	}
	if d.ok {
		return t.take(&v, d.devices)
	}
	return nil, t.publish(&v)
}

// take turns the ticket into a lease. The ledger is locked.
func (t *ticket) take(v *view, devices []Device) (*Lease, error) {
	was := t.entry
	t.entry.Lent, t.entry.Chooses, t.entry.Devices = true, false, devices
	var err error
	if t.published() {
		err = appendEntry(t.file, &t.entry)
	} else {
		err = t.create(v)
	}
	if err != nil {
		t.entry = was
		return nil, err
	}
	return &Lease{ledger: t.ledger, file: t.file, entry: t.entry}, nil
}

// publish puts the ticket at the end of the line, unless it stands in it. The ledger is locked.
func (t *ticket) publish(v *view) error {
	if t.published() {
		return nil
	}
	t.entry.Devices, t.entry.Chooses = t.req.Devices, t.req.Choose != nil
	return t.create(v)
}

// restore writes the ticket's file again where something has removed it, with its old place in line. The
// ledger is locked.
func (t *ticket) restore() error {
	if !t.published() || !removed(t.file) {
		return nil
	}
	f, err := t.ledger.restore(t.file, &t.entry)
	if err == nil {
		t.file = f
	}
	return err
}

// create writes the entry as the last in order of arrival.
func (t *ticket) create(v *view) error {
	l, r := t.ledger, t.req
	dir, err := l.ownDir()
	if err != nil {
		return err
	}
	e := &t.entry
	e.ID, e.Task, e.Owner, e.Instance = newName(r.Task), r.Task, l.id.hostUID, l.cfg.Instance
	e.Boot, e.PID, e.Seq, e.Arrived = l.id.boot, l.id.pid, v.lastSeq()+1, time.Now()
	e.CPU, e.Memory, e.Disk = r.CPU, r.Memory, r.Disk
	e.Pool, e.DiskOf = l.cfg.Capacity.Pool, l.cfg.Capacity.DiskOf
	t.file, err = l.create(dir, e)
	return err
}

// afterRing is when to look once more: the kernel tells that a dead holder's file is closed shortly before
// it drops the lock.
const afterRing = 5 * time.Millisecond

// wait waits in line until the ticket has become a lease.
func (t *ticket) wait(ctx context.Context) (*Lease, error) {
	bell := newBell(ctx)
	defer bell.close()
	told, again := "", time.Duration(0)
	for {
		dirs, _ := t.ledger.dirs()
		bell.watch(dirs) // before the look, so that no change falls between
		lease, err := t.look(ctx)
		if lease != nil || err != nil {
			return lease, err
		}
		if t.req.Waiting != nil && t.why != told {
			told = t.why
			t.req.Waiting(told)
		}
		// The further back, the less often: nearly every change rings.
		pause := t.ledger.cfg.Poll * time.Duration(min(1+t.before, 4))
		if again > 0 {
			pause = min(pause, again)
		}
		rang, err := bell.wait(pause)
		switch {
		case err != nil:
			return nil, err
		case rang && t.before > 0: // one look for several rings
			time.Sleep(time.Duration(min(t.before, 20)) * time.Millisecond)
			again = afterRing
		case rang:
			again = afterRing
		case again > 0 && again < 8*afterRing: // a busy host may take its time
			again *= 2
		default:
			again = 0
		}
	}
}

// look gives a sign of life and claims what has become free. Most looks find nothing, and take no lock.
func (t *ticket) look(ctx context.Context) (*Lease, error) {
	_ = unix.Futimes(int(t.file.Fd()), nil)
	v := t.ledger.look()
	d, err := t.judge(&v, time.Now())
	if err != nil {
		return nil, fmt.Errorf("lend to %s: %w", t.req.Task, err)
	}
	t.why, t.before = d.why, d.before
	if !d.ok && !removed(t.file) {
		return nil, nil
	}
	lease, err := t.claim(ctx)
	if errors.Is(err, berth.ErrUnavailable) && ctx.Err() == nil {
		// Somebody sits on the lock. The place in line is worth more than an error.
		t.why = err.Error()
		return nil, nil
	}
	return lease, err
}

// drop takes the ticket out of the line.
func (t *ticket) drop() {
	if t.file != nil {
		_ = os.Remove(t.entry.path)
		_ = t.file.Close()
	}
}
