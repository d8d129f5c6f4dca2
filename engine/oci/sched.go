package oci

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"github.com/berth-project/berth/engine/oci/monitor"
	"github.com/berth-project/berth/engine/oci/thread"
	"golang.org/x/sys/unix"
)

// beOrdinary takes from this process what the command has of its own that happened to start the monitor, as far as the kernel
// lets it: a scheduling policy, a nice value, an affinity, limits of what a process may use, a score for the kernel's choice
// of whom to kill, how late timers may be. The tasks are those of all commands to come. That a real-time policy cannot be left is
// an error: cgroups with CPU limits take no such thread on v1.
func beOrdinary() error {
	for again := true; again; { // a thread has what the one has that made it, so that the last ones are ordinary
		again = false
		tasks, err := os.ReadDir("/proc/self/task")
		if err != nil {
			return err
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil {
				continue
			}
			changed, err := ordinaryThread(tid)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("leave the real-time scheduling policy: %w", err)
			}
			again = again || changed
		}
	}
	_ = easeRuntime() // that it could not only costs time
	ordinaryLimits()
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0o644) // to lower it takes CAP_SYS_RESOURCE
	return nil
}

// ordinaryThread gives a thread the ordinary policy, the nice value 0 and all CPUs, and reports whether it had others. What it
// is not allowed it leaves as it is.
func ordinaryThread(tid int) (changed bool, err error) {
	changed = allCPUs(tid)
	_ = thread.SetSlack(tid, thread.OrdinarySlack)
	a, err := unix.SchedGetAttr(tid, 0)
	if err != nil {
		return changed, err
	}
	realTime := a.Policy == unix.SCHED_FIFO || a.Policy == unix.SCHED_RR || a.Policy == unix.SCHED_DEADLINE
	if a.Policy == unix.SCHED_NORMAL && a.Nice == 0 {
		return changed, nil
	}
	err = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr}, 0)
	if err != nil && realTime { // an ordinary user may not lower the nice value
		prio, perr := unix.Getpriority(unix.PRIO_PROCESS, tid) // 20 less the nice value
		if perr != nil {
			prio = 20
		}
		err = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Nice: int32(20 - prio)}, 0)
	}
	switch {
	case err == nil:
		return true, nil
	case realTime:
		return changed, err
	}
	return changed, nil
}

// easedSlack is by how many nanoseconds the timers of the Go runtime's watcher may be late.
const easedSlack = 200_000

// easeRuntime has the thread with which the Go runtime watches itself wake up less often, and returns it; 0 where it could not. While
// anything runs, and the monitor runs for a millisecond here and there, it does so each 20 µs and what timers may be late by, and takes
// the processor for 20 µs from whatever is on the way to a command: a fifth of it. What it is for, to find goroutines that block or do
// not end, has more time than that. It is the first thread that a Go program makes beside its main one; were it not, another would have
// timers that are late by 0.2 ms. So have threads that it makes, and what these execute, but for what makes containers: see
// thread.BeOrdinary.
func easeRuntime() (tid int) {
	dir, err := os.Open("/proc/self/task")
	if err != nil {
		return 0
	}
	defer func() { _ = dir.Close() }()
	names, _ := dir.Readdirnames(2) // the main thread, and then as they were made
	if len(names) < 2 {
		return 0
	}
	tid, err = strconv.Atoi(names[1])
	if err != nil || thread.SetSlack(tid, easedSlack) != nil {
		return 0
	}
	return tid
}

// allCPUs lets a thread run on all CPUs that its cgroup may use, and reports whether it could not before.
func allCPUs(tid int) bool {
	var before, all, after unix.CPUSet
	for i := range all {
		all[i] = ^all[i]
	}
	// A host of more CPUs than a set holds refuses to tell; it is left alone.
	if unix.SchedGetaffinity(tid, &before) != nil || unix.SchedSetaffinity(tid, &all) != nil || unix.SchedGetaffinity(tid, &after) != nil {
		return false
	}
	return before != after
}

// ordinaryStack is how large a stack may grow, in bytes, as the kernel has it for the first process.
const ordinaryStack = 8 << 20

// ordinaryLimits lifts the limits that would end the monitor, or a task for what another command was allowed: for root for
// good, else to what this user may have. Of processes, which are counted by user, nobody may have more than that. Core files are for
// who asks for them, and so are stacks of another size than the kernel's: without a limit, processes lay out their memory otherwise.
func ordinaryLimits() {
	for _, kind := range []int{unix.RLIMIT_CPU, unix.RLIMIT_FSIZE, unix.RLIMIT_AS, unix.RLIMIT_DATA} {
		lift(kind, unix.RLIM_INFINITY)
	}
	lift(unix.RLIMIT_NPROC, 0)
	soft(unix.RLIMIT_CORE, 0)
	soft(unix.RLIMIT_STACK, ordinaryStack)
	var l unix.Rlimit
	if unix.Prlimit(0, unix.RLIMIT_NOFILE, nil, &l) == nil && l.Max < monitor.MaxFiles {
		lift(unix.RLIMIT_NOFILE, monitor.MaxFiles)
	}
}

// soft sets a soft limit, to the hard one at most.
func soft(kind int, n uint64) {
	var l unix.Rlimit
	if unix.Prlimit(0, kind, nil, &l) == nil {
		l.Cur = min(n, l.Max)
		_ = unix.Prlimit(0, kind, &l, nil)
	}
}

// lift raises a hard limit to at least n, where that is allowed, and the soft limit to it.
func lift(kind int, n uint64) {
	var l unix.Rlimit
	if unix.Prlimit(0, kind, nil, &l) != nil {
		return
	}
	l.Max = max(l.Max, n)
	l.Cur = l.Max
	if unix.Prlimit(0, kind, &l, nil) == nil {
		return
	}
	if unix.Prlimit(0, kind, nil, &l) == nil {
		l.Cur = l.Max
		_ = unix.Prlimit(0, kind, &l, nil)
	}
}
