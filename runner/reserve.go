package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/store"
)

// A task that fills the disk of the data directory, by its logs or by what it writes, would keep its own end
// from being recorded, and the record from being removed. So a little of the disk is set aside, and used for
// that alone.
const (
	reserveSize = 1 << 20
	reserveFrom = 16 << 20 // with less free, nothing is set aside
)

func (r *Runner) reserveFile() string { return filepath.Join(r.cfg.DataDir, "tasks", ".reserve") }

// reserve sets the room aside, where it is not and there is enough. That it cannot is no fault of a task.
func (r *Runner) reserve() {
	r.makeAside()
	if st, err := os.Lstat(r.reserveFile()); err == nil && st.Size() == reserveSize || r.free() < reserveFrom {
		return
	}
	f, err := os.OpenFile(r.reserveFile(), os.O_WRONLY|os.O_CREATE, 0o600)
	if err == nil {
		err = errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, reserveSize), f.Close())
	}
	if err != nil {
		_ = os.Remove(r.reserveFile())
		r.cfg.Logger.Warn("room set aside", "err", err)
	}
}

// free is what is free of the data directory's disk, in bytes; 0 where that is unknown.
func (r *Runner) free() int64 {
	var fs unix.Statfs_t
	if err := unix.Statfs(r.cfg.DataDir, &fs); err != nil {
		return 0
	}
	return int64(fs.Bavail) * fs.Bsize
}

// withReserve makes a call again with the room that was set aside, where there is no other.
func (r *Runner) withReserve(call func() error) error {
	err := call()
	if errors.Is(err, berth.ErrExhausted) && os.Remove(r.reserveFile()) == nil {
		err = call()
	}
	return r.full(err)
}

// recordRoom is what berth says that its records need of the disk, in bytes: a few pages of the database, twice.
const recordRoom = 256 << 10

// full says of an error of the store that the disk is full, where, and what helps.
func (r *Runner) full(err error) error {
	if !errors.Is(err, berth.ErrExhausted) {
		return err
	}
	return &plainError{fmt.Sprintf("the disk of the data directory is full: berth's records need %s, and %s are free; make room in %s "+
		"(berth rm --all, berth image prune), or give another --data-dir",
		berth.SizeInWords(recordRoom), berth.SizeInWords(r.free()), r.cfg.DataDir), err}
}

// append records an event that must not be lost.
func (r *Runner) append(ctx context.Context, e store.Event) error {
	_, err := r.put(ctx, e)
	return err
}

// put records an event. On a full disk, what has happened is set aside; that nothing comes before its turn, it is so too
// while something else is.
func (r *Runner) put(ctx context.Context, e store.Event) (aside bool, err error) {
	if err = r.CatchUp(ctx); err == nil {
		err = r.putNow(ctx, e)
	}
	if !errors.Is(err, berth.ErrExhausted) || !happened(Kind(e.Kind)) {
		return false, err
	}
	if bad := r.setAside(e); bad != nil {
		r.cfg.Logger.Error("event not set aside", "task", e.Task, "kind", e.Kind, "err", bad)
		return false, err
	}
	return true, nil
}

func (r *Runner) putNow(ctx context.Context, e store.Event) error {
	return r.withReserve(func() error {
		_, err := r.cfg.Store.Append(ctx, e)
		return err
	})
}
