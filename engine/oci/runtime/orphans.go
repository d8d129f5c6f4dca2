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
// container's process does so at once. It is also how often orphans are looked for at first, orphanMax later.
const (
	orphanTime = 50 * time.Millisecond
	orphanMax  = time.Second
)

// reapOrphans waits for what failed execs of the runtime left in the container's pid namespace: a process of
// the runtime that died before it became the command, as when the container was ended meanwhile, and is now ours. Until it is waited for, the
// container cannot end; it may live for a while on a slow machine, so they are looked for until the container has
// ended.
func (r *Runtime) reapOrphans(ended <-chan struct{}) {
	dead := map[int]bool{} // a while ago
	for wait := orphanTime; ; wait = min(2*wait, orphanMax) {
		for _, pid := range r.orphans() {
			if dead[pid] {
				_, _ = unix.Wait4(pid, nil, unix.WNOHANG, nil)
			}
			dead[pid], _ = r.isOrphan(pid)
		}
		select {
		case <-ended:
			return
		case <-time.After(wait):
		}
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

// runcStage begins the names that runc gives its processes on the way into a container: "runc:[2:INIT]".
const runcStage = "runc:["

// isOrphan reports whether a process has the runtime's name, so that it never became a command, in a pid
// namespace below ours; and whether it is dead.
func (r *Runtime) isOrphan(pid int) (dead, orphan bool) {
	const nameMax = 15 // bytes of a process's name
	name := filepath.Base(r.cfg.Command)
	inMemory := "memfd:" + name
	name, inMemory = name[:min(len(name), nameMax)], inMemory[:min(len(inMemory), nameMax)]
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false, false
	}
	named, below := false, false
	for line := range strings.Lines(string(raw)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		switch value = strings.TrimSpace(value); key {
		case "Name":
			// crun executes a copy of itself in memory where it cannot protect its own file otherwise.
			named = value == name || strings.HasPrefix(value, inMemory) || strings.HasPrefix(value, runcStage)
		case "State":
			dead = strings.HasPrefix(value, "Z")
		case "NSpid":
			below = len(strings.Fields(value)) > 1
		}
	}
	return dead, named && below
}
