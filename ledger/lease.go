package ledger

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/berth-project/berth"
)

// Lease is what was lent, held by this process. It lives as long as one of its holders: this process until
// it releases the lease or dies, each process that adopted it, and each Holder that was added.
type Lease struct {
	ledger *Ledger

	mu    sync.Mutex
	file  *os.File // nil where nothing was lent, or after Release
	entry Entry
}

// ID names the lease for Ledger.Adopt; "" where nothing was lent.
func (ls *Lease) ID() string { return ls.entry.ID }

// Devices are the devices that were lent.
func (ls *Lease) Devices() []Device { return slices.Clone(ls.entry.Devices) }

// AddHolder adds what keeps the lease alive beside the processes that hold it. berth.ErrConflict after
// Release.
func (ls *Lease) AddHolder(ctx context.Context, h Holder) error {
	return ls.change(ctx, func(e *Entry) error {
		if slices.Contains(e.Holders, h) {
			return nil
		}
		if len(e.Holders) >= holdersMax {
			return fmt.Errorf("%w: it has %d holders", berth.ErrExhausted, holdersMax)
		}
		e.Holders = append(slices.Clone(e.Holders), h)
		return nil
	})
}

// RemoveHolder takes a holder away again; no error if there is no such holder.
func (ls *Lease) RemoveHolder(ctx context.Context, h Holder) error {
	return ls.change(ctx, func(e *Entry) error {
		e.Holders = slices.DeleteFunc(slices.Clone(e.Holders), func(o Holder) bool { return o == h })
		return nil
	})
}

// Handover makes h a holder in place of this process.
func (ls *Lease) Handover(ctx context.Context, h Holder) error {
	if err := ls.AddHolder(ctx, h); err != nil {
		return err
	}
	ls.Release()
	return nil
}

// change rewrites the entry under the ledger's lock, as it stands there: another process may have changed it.
func (ls *Lease) change(ctx context.Context, edit func(*Entry) error) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.ID() == "" {
		return nil
	}
	if ls.file == nil {
		return fmt.Errorf("lease %s: %w: it has been released", ls.ID(), berth.ErrConflict)
	}
	unlock, err := ls.ledger.lock(ctx)
	if err != nil {
		return fmt.Errorf("lease %s: %w", ls.ID(), err)
	}
	defer unlock()
	e, err := ls.current()
	if err != nil {
		return fmt.Errorf("lease %s: %w", ls.ID(), err)
	}
	before, err := json.Marshal(&e)
	if err != nil {
		return fmt.Errorf("lease %s: %w", ls.ID(), err)
	}
	if err := edit(&e); err != nil {
		return fmt.Errorf("lease %s: %w", ls.ID(), err)
	}
	if after, err := json.Marshal(&e); err == nil && bytes.Equal(before, after) {
		return nil // the file only grows
	}
	if err := appendEntry(ls.file, &e); err != nil {
		return err
	}
	ls.entry = e
	return nil
}

func (ls *Lease) current() (Entry, error) {
	dir, name := filepath.Split(ls.entry.path)
	return ls.ledger.read(int(ls.file.Fd()), filepath.Clean(dir), name)
}

// Refresh puts the lease's file back where something has removed it: logind removes what users who log out
// have in /dev/shm. Whoever holds leases for long calls it now and then.
func (ls *Lease) Refresh(ctx context.Context) error {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.file == nil || !removed(ls.file) {
		return nil
	}
	unlock, err := ls.ledger.lock(ctx)
	if err != nil {
		return fmt.Errorf("lease %s: %w", ls.ID(), err)
	}
	defer unlock()
	f, err := ls.ledger.restore(ls.file, &ls.entry)
	if err == nil {
		ls.file = f
	}
	return err
}

// Release ends this process's hold. What was lent is free once nobody holds it. It may be called again, and
// on a nil lease.
func (ls *Lease) Release() {
	if ls == nil {
		return
	}
	ls.mu.Lock()
	defer ls.mu.Unlock()
	if ls.file == nil {
		return
	}
	// Under the lock, so that nobody adopts what is being removed. Without it (somebody sits on it) the file
	// stays: it is dead once closed, and swept by the next who looks.
	if unlock, err := ls.ledger.lock(context.Background()); err == nil {
		defer unlock()
		e, err := ls.current()
		// Where something has removed the file, another of that name is its restorer's.
		if err == nil && !removed(ls.file) && !heldFile(int(ls.file.Fd())) && !ls.ledger.holdersAlive(&e) {
			_ = os.Remove(ls.entry.path)
		}
	}
	_ = ls.file.Close()
	ls.file = nil
}
