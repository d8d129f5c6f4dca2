package runner

import (
	"context"
	"errors"
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
	if st, err := os.Lstat(r.reserveFile()); err == nil && st.Size() == reserveSize {
		return
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(r.cfg.DataDir, &fs); err != nil || int64(fs.Bavail)*fs.Bsize < reserveFrom {
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

// withReserve makes a call again with the room that was set aside, where there is no other.
func (r *Runner) withReserve(call func() error) error {
	err := call()
	if errors.Is(err, berth.ErrExhausted) && os.Remove(r.reserveFile()) == nil {
		err = call()
	}
	return err
}

// append records an event that must not be lost.
func (r *Runner) append(ctx context.Context, e store.Event) error {
	return r.withReserve(func() error {
		_, err := r.cfg.Store.Append(ctx, e)
		return err
	})
}
