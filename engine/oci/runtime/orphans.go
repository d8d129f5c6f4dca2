package runtime

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// orphanTime is how long a dead child must stay before nobody else is taken to wait for it: who waits for a
// container's process does so at once. One that lives is looked at again, orphanTries times.
const (
	orphanTime  = 50 * time.Millisecond
	orphanTries = 20
)

// reapOrphans waits for what a failed exec of the runtime left in the container's pid namespace: a process of
// the runtime (of crun) that died before it became the command, and is now ours. Until it is waited for, the
// container cannot end.
func (r *Runtime) reapOrphans() {
	dead := map[int]bool{} // a while ago
	for range orphanTries {
		found := r.orphans()
		if len(found) == 0 {
			return
		}
		for _, pid := range found {
			if dead[pid] {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
			dead[pid], _ = r.isOrphan(pid)
		}
		time.Sleep(orphanTime)
	}
}

// orphans are those of our children that look like one.
func (r *Runtime) orphans() (pids []int) {
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		raw, _ := os.ReadFile(list)
		for f := range strings.FieldsSeq(string(raw)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				continue
			}
			if _, orphan := r.isOrphan(pid); orphan {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// isOrphan reports whether a process has the runtime's name, so that it never became a command, in a pid
// namespace below ours; and whether it is dead.
func (r *Runtime) isOrphan(pid int) (dead, orphan bool) {
	const nameMax = 15 // bytes of a process's name
	name := filepath.Base(r.cfg.Command)
	name = name[:min(len(name), nameMax)]
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false, false
	}
	named, below := false, false
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch value = strings.TrimSpace(value); key {
		case "Name":
			named = value == name
		case "State":
			dead = strings.HasPrefix(value, "Z")
		case "NSpid":
			below = len(strings.Fields(value)) > 1
		}
	}
	return dead, named && below
}
