package ledger

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// bell rings when something changes in the ledger's directories. A holder that is killed rings too: its end
// closes a file that was open for writing.
type bell struct {
	ctx  context.Context //nolint:containedctx // a bell lives within one wait
	file *os.File        // of inotify; nil where there is none to be had, and only time rings
	stop func() bool
	buf  [16 << 10]byte
}

const bellMask = unix.IN_DELETE | unix.IN_CLOSE_WRITE | unix.IN_MODIFY | unix.IN_ONLYDIR

func newBell(ctx context.Context) *bell {
	b := &bell{ctx: ctx, stop: func() bool { return true }}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return b
	}
	b.file = os.NewFile(uintptr(fd), "inotify")
	b.stop = context.AfterFunc(ctx, func() { _ = b.file.SetReadDeadline(time.Unix(1, 0)) })
	return b
}

// watch adds directories; those that are watched already stay so.
func (b *bell) watch(dirs []string) {
	if b.file == nil {
		return
	}
	conn, err := b.file.SyscallConn()
	if err != nil {
		return
	}
	for _, d := range dirs {
		_ = conn.Control(func(fd uintptr) { _, _ = unix.InotifyAddWatch(int(fd), d, bellMask) })
	}
}

// wait waits for a ring, at most for d. The error is the end of the context.
func (b *bell) wait(d time.Duration) (rang bool, err error) {
	if b.file == nil {
		select {
		case <-b.ctx.Done():
			return false, context.Cause(b.ctx)
		case <-time.After(d):
			return false, nil
		}
	}
	_ = b.file.SetReadDeadline(time.Now().Add(d))
	if b.ctx.Err() != nil {
		return false, context.Cause(b.ctx)
	}
	_, err = b.file.Read(b.buf[:])
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		select { // no notification is worth a busy loop
		case <-b.ctx.Done():
		case <-time.After(d):
		}
	}
	if b.ctx.Err() != nil {
		return false, context.Cause(b.ctx)
	}
	return err == nil, nil
}

func (b *bell) close() {
	b.stop()
	if b.file != nil {
		_ = b.file.Close()
	}
}
