package ledger

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// lock takes the ledger's one lock. It waits at most for Config.LockTimeout: anybody who may read the
// directory can hold it.
func (l *Ledger) lock(ctx context.Context) (unlock func(), err error) {
	dir := l.cfg.Dirs.lockDir()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("lock ledger %s: %w: %w", dir, berth.ErrDenied, err)
	}
	deadline := time.Now().Add(l.cfg.LockTimeout)
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 8*time.Millisecond) {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = unix.Close(fd) }, nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(deadline) {
			who := lockOwner(fd)
			_ = unix.Close(fd)
			return nil, fmt.Errorf("lock ledger %s: %w: %s holds its lock (%w)", dir, berth.ErrUnavailable, who, err)
		}
		select {
		case <-ctx.Done():
			_ = unix.Close(fd)
			return nil, context.Cause(ctx)
		case <-time.After(pause/2 + rand.N(pause)): //nolint:gosec // to spread tries, no secret
		}
	}
}

// lockOwner names who has the flock on fd's file, as far as /proc/locks tells.
func lockOwner(fd int) string {
	var st unix.Stat_t
	data, err := os.ReadFile("/proc/locks")
	if err != nil || unix.Fstat(fd, &st) != nil {
		return "another process"
	}
	file := fmt.Sprintf("%02x:%02x:%d", unix.Major(st.Dev), unix.Minor(st.Dev), st.Ino)
	for line := range bytes.Lines(data) {
		// 1: FLOCK  ADVISORY  WRITE 1234 00:19:12345 0 EOF; one that waits has "->" as its second field.
		f := strings.Fields(string(line))
		if len(f) < 6 || f[1] != "FLOCK" || f[5] != file {
			continue
		}
		comm, err := os.ReadFile("/proc/" + f[4] + "/comm")
		if err != nil {
			return "process " + f[4]
		}
		return fmt.Sprintf("process %s (%s, %s)", f[4], strings.TrimSpace(string(comm)), procUser(f[4]))
	}
	return "another process"
}

func procUser(pid string) string {
	st, err := lstat("/proc/" + pid)
	if err != nil {
		return "gone"
	}
	return userName(st.Uid)
}
