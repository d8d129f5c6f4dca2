package monitor

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// exitRoom is kept free for the record of an exit, in bytes: a disk that is full when a container ends must not
// make its exit unknown.
const exitRoom = 4096

// reserveExit makes the file of an exit that is not known yet: blanks, which its readers take for none.
func (c *container) reserveExit() error {
	return writeFile(filepath.Join(c.dir, exitFile), bytes.Repeat([]byte{' '}, exitRoom), 0o600)
}

// writeExit records an exit, by one call, in the room that was kept for it.
func (c *container) writeExit(exit berth.Exit) error {
	raw, err := json.Marshal(exit)
	if err != nil {
		return err
	}
	if len(raw) > exitRoom {
		exit.Detail = exit.Detail[:min(len(exit.Detail), exitRoom/8)] + "…" // of which JSON makes six times as much at most
		if raw, err = json.Marshal(exit); err != nil {
			return err
		}
	}
	raw = append(raw, bytes.Repeat([]byte{' '}, max(exitRoom-len(raw), 0))...)
	return writeFlags(filepath.Join(c.dir, exitFile), raw, 0, 0o600)
}

// fullDisk says of a container that failed that the disk beneath it is full, although no limit of its own is: it
// may have failed of that.
func (c *container) fullDisk() string {
	if !c.sb.onFullDisk() {
		return ""
	}
	return fmt.Sprintf("the disk of the data directory %s is full", c.sb.m.cfg.Dir)
}

// onFullDisk reports whether the disk is full on which the sandbox's containers write.
func (sb *sandbox) onFullDisk() bool {
	var st unix.Statfs_t
	err := unix.Statfs(sb.area.Dir(), &st)
	return err == nil && int64(st.Bavail)*st.Bsize < fullBelow //nolint:unconvert // their types differ between architectures
}

// fullBelow is how little room a full disk may have, in bytes: the last blocks are not always lent.
const fullBelow = 1 << 20

// saysFull gives an error for want of disk its kind, and says what to do.
func (m *Monitor) saysFull(err error) error {
	if errors.Is(err, berth.ErrExhausted) || !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	return fmt.Errorf("%w: the disk of the data directory %s, or the memory for its records, is full; free some of it, or choose another data directory: %w", berth.ErrExhausted, m.cfg.Dir, err)
}
