package docker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// logDisk is the disk that the daemon keeps the logs on which berth follows. While it is full, the daemon drops what it cannot log, and
// tells nobody but its own log of that. It is looked at while a log is followed. The zero value is ready.
type logDisk struct {
	mu        sync.Mutex
	followers int
	end       context.CancelFunc
	host      *hostInfo
	// When it was seen to be full, and to have room again, in turns.
	turns []time.Time
	count atomic.Int64 // of turns
}

const (
	diskFullPoll = 100 * time.Millisecond
	diskFullAt   = 64 << 10 // bytes that the daemon can have still
)

// follow looks at the disk of the daemon's directory until leave is called. It answers how many turns are of before.
func (d *logDisk) follow(e *Engine, host *hostInfo) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.followers++; d.followers == 1 {
		ctx, end := context.WithCancel(e.ctx)
		d.end, d.host = end, host
		d.lookLocked()
		e.wg.Go(func() { d.watch(ctx) })
	}
	return len(d.turns) &^ 1 // where it is full now, that is not of before
}

func (d *logDisk) leave() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.followers--; d.followers == 0 {
		d.end()
	}
}

func (d *logDisk) watch(ctx context.Context) {
	tick := time.NewTicker(diskFullPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.look()
		}
	}
}

// look notes whether the disk is full.
func (d *logDisk) look() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lookLocked()
}

func (d *logDisk) lookLocked() {
	room, err := roomOf(d.host.root, !d.host.rootless)
	if full := room <= diskFullAt; err == nil && full == (len(d.turns)%2 == 0) {
		d.turns = append(d.turns, time.Now())
		d.count.Store(int64(len(d.turns)))
	}
}

// after is the turn after so many; none is no time.
func (d *logDisk) after(n int) time.Time {
	if d.count.Load() <= int64(n) {
		return time.Time{}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.turns[n]
}

// roomOf is what can be written yet to the file system of a directory, in bytes, by root or by others.
func roomOf(dir string, root bool) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, err
	}
	left := int64(st.Bavail)
	// The kind of ext2 and its successors keeps some for root, and ext4 some from everybody, which counts as free all the same.
	if ext := st.Type == unix.EXT4_SUPER_MAGIC; ext && root && left*st.Bsize <= diskFullAt {
		left = int64(st.Bfree) - keptByExt4(dir)
	}
	return left * st.Bsize, nil
}

// keptByExt4 is how many blocks ext4 gives to nobody.
func keptByExt4(dir string) int64 {
	var st unix.Stat_t
	if unix.Stat(dir, &st) != nil {
		return 0
	}
	device, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return 0
	}
	raw, err := os.ReadFile(filepath.Join("/sys/fs/ext4", filepath.Base(device), "reserved_clusters"))
	if err != nil {
		return 0
	}
	n, _ := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
	return n
}

// watchDisk has the disk of the daemon's log looked at from now on, where it is of this machine.
func (o *output) watchDisk(ctx context.Context) {
	if o.ephemeral || o.disk != nil {
		return
	}
	host, err := o.l.e.daemon(ctx)
	if err != nil || host.root == "" {
		return
	}
	o.disk = &o.l.e.logDisk
	o.turns = o.disk.follow(o.l.e, host)
	for _, s := range o.sinks() {
		s.disk, s.turns, s.timed = o.disk, o.turns, !o.tty && !host.podman
	}
}

// hole marks where some may be missing as the daemon's disk was full, or as the daemon could not read its log: before what comes, a message
// of a time (zero is that nothing comes). What was dropped last is before the first message from after there was room again, or before the
// end; what came while it was full may have been logged in part.
func (s *sink) hole(at time.Time) {
	holed := s.unread
	s.unread = false
	if s.disk != nil {
		if !s.timed && !at.IsZero() {
			at = time.Now()
		}
		for turn := s.disk.after(s.turns); !turn.IsZero() && (at.IsZero() || at.After(turn)); turn = s.disk.after(s.turns) {
			s.turns++
			holed = true
		}
	}
	if !holed || len(s.holes) > 0 && s.holes[len(s.holes)-1] == s.n {
		return
	}
	s.holes = append(s.holes, s.n)
	if len(s.gaps) == 0 || s.gaps[len(s.gaps)-1] != s.n { // which says so
		s.w.Gap(s.n)
	}
}

// holesIn tells of what may be missing as the daemon has not logged it, or could not read it. There is nothing more to come.
func (o *output) holesIn() error {
	full := false
	if o.disk != nil {
		o.disk.look()
		full = !o.disk.after(o.turns).IsZero()
	}
	all := o.places(func(s *sink) []int64 {
		s.hole(time.Time{})
		return s.holes
	})
	if all == "" {
		return nil
	}
	var why []string
	if full {
		why = append(why, "the disk of the daemon was full while berth followed its log, and what it cannot log it drops")
	}
	if o.said != "" {
		why = append(why, "the daemon could not read its log on ("+string(o.said)+")")
	}
	return fmt.Errorf("%s: some may be missing of %s", strings.Join(why, "; "), all)
}
