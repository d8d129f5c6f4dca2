package docker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// logDisk is the disk that the daemon keeps a log on which berth follows. While it is full, the daemon drops what it cannot log, and
// tells nobody but its own log of that.
type logDisk struct {
	once sync.Once
	end  context.CancelFunc
	full atomic.Bool
}

const (
	diskFullPoll = 500 * time.Millisecond
	diskFullAt   = 64 << 10 // bytes that root has left
)

// watch looks at the disk from now on, where it is of this machine.
func (d *logDisk) watch(ctx context.Context, o *output) {
	if o.ephemeral {
		return
	}
	host, err := o.l.e.daemon(ctx)
	if err != nil || host.root == "" {
		return
	}
	d.once.Do(func() {
		ctx, d.end = context.WithCancel(ctx)
		o.l.e.wg.Go(func() {
			tick := time.NewTicker(diskFullPoll)
			defer tick.Stop()
			for !d.look(host.root) {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
			}
		})
	})
}

// look reports whether the disk is full.
func (d *logDisk) look(dir string) bool {
	var st unix.Statfs_t
	if unix.Statfs(dir, &st) != nil || st.Blocks == 0 || st.Bfree > uint64(diskFullAt/st.Bsize) {
		return false
	}
	d.full.Store(true)
	return true
}

func (d *logDisk) leave() {
	d.once.Do(func() {})
	if d.end != nil {
		d.end()
	}
}

// wasFull says that some of the output may be missing.
func (d *logDisk) wasFull() error {
	if !d.full.Load() {
		return nil
	}
	return errors.New("the disk of the daemon was full while berth followed its log: what was written then may be missing")
}
