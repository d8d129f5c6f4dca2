package runtime

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// reapOrphans waits for what a failed exec of the runtime left in the container's pid namespace: a process of
// the runtime (of crun) that died before it became the command, and is now ours. Until it is waited for, the
// container cannot end.
func (p *process) reapOrphans() {
	own, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.pid))
	if err != nil {
		return // it has ended, and all in its namespace with it
	}
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		raw, _ := os.ReadFile(list)
		for f := range strings.FieldsSeq(string(raw)) {
			pid, err := strconv.Atoi(f)
			if err != nil || !p.isRuntime(pid) {
				continue
			}
			if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && ns == own {
				p.reap(pid)
			}
		}
	}
}

// reap waits for a process that is about to die, and gives up on one that is not.
func (p *process) reap(pid int) {
	for range 1000 {
		n, err := unix.Wait4(pid, nil, unix.WNOHANG, nil)
		if n != 0 || err != nil || !p.isRuntime(pid) {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// isRuntime reports whether the process still is the runtime's program, and no command of a container.
func (p *process) isRuntime(pid int) bool {
	const nameMax = 15 // bytes of a process's name
	name := filepath.Base(p.rt.cfg.Command)
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && strings.TrimSpace(string(comm)) == name[:min(len(name), nameMax)]
}
