package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/berth-project/berth"
)

// Holder is something that keeps a lease alive beside the processes that hold its file: a process that
// knows nothing of the ledger, or a cgroup.
type Holder struct {
	PID    int    `json:"pid,omitempty"`
	Start  uint64 `json:"start,omitempty"` // clock ticks since boot
	PIDNS  uint64 `json:"pidns,omitempty"` // inode of the pid namespace in which PID counts
	Cgroup string `json:"cgroup,omitempty"`
}

const cgroupRoot = "/sys/fs/cgroup/"

// Process is the running process pid as a holder. berth.ErrNotFound if there is none.
func Process(pid int) (Holder, error) {
	start, zombie, err := startTime(pid)
	if err != nil || zombie {
		return Holder{}, fmt.Errorf("hold by process %d: %w", pid, berth.ErrNotFound)
	}
	var ns syscall.Stat_t
	if err := syscall.Stat("/proc/self/ns/pid", &ns); err != nil {
		return Holder{}, fmt.Errorf("hold by process %d: %w", pid, err)
	}
	return Holder{PID: pid, Start: start, PIDNS: ns.Ino}, nil
}

// Cgroup is the cgroup at dir, a directory below /sys/fs/cgroup, as a holder: it holds while a process is in
// it or below it. It must belong to the lease's owner.
func Cgroup(dir string) (Holder, error) {
	if !validCgroup(dir) {
		return Holder{}, fmt.Errorf("hold by cgroup %q: %w: not a directory below %s", dir, berth.ErrInvalid, cgroupRoot)
	}
	return Holder{Cgroup: dir}, nil
}

func validCgroup(dir string) bool {
	return strings.HasPrefix(dir, cgroupRoot) && filepath.Clean(dir) == dir && len(dir) < pathMax
}

// alive reports whether the holder still holds an entry of owner. What cannot be judged holds: to lend
// twice is worse than to lend late.
func (h Holder) alive(id identity, owner uint32) bool {
	if h.Cgroup != "" {
		return validCgroup(h.Cgroup) && cgroupAlive(h.Cgroup, id, owner)
	}
	if h.PID <= 0 {
		return false
	}
	if h.PIDNS != id.pidns {
		return true
	}
	if errors.Is(syscall.Kill(h.PID, 0), syscall.ESRCH) {
		return false
	}
	start, zombie, err := startTime(h.PID)
	return err != nil || start == h.Start && !zombie
}

// cgroupsMax bounds how much of a tree of cgroups is looked at; a tree beyond it holds.
const cgroupsMax = 256

func cgroupAlive(dir string, id identity, owner uint32) bool {
	st, err := lstat(dir)
	if err != nil || st.Mode&syscall.S_IFMT != syscall.S_IFDIR {
		return false
	}
	// Else a user's entry could live for ever by naming a cgroup that is never empty.
	if st.Uid != owner && !id.hidden(st.Uid) {
		return false
	}
	if data, err := os.ReadFile(dir + "/cgroup.events"); err == nil {
		return strings.Contains("\n"+string(data), "\npopulated 1")
	}
	seen := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return nil //nolint:nilerr // removed meanwhile
		}
		if seen++; seen > cgroupsMax {
			return errPopulated
		}
		if procs, err := os.ReadFile(path + "/cgroup.procs"); err == nil && len(procs) > 0 { //nolint:gosec // cgroups have no symbolic links
			return errPopulated
		}
		return nil
	})
	return err != nil
}

var errPopulated = errors.New("populated")
