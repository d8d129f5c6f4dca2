// Package thread runs functions on threads of their own, for what the kernel keeps for each thread and Go for none: ids, the umask,
// namespaces, how late timers may be.
package thread

import (
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Own runs f on a thread that ends with it, and that is not the main one: that would stay as f left it, and /proc tells of the process
// what the main thread is. A child that f starts is not killed by its end, but with Pdeathsig set.
//
// So any thread of the process may end whose goroutine has not locked it: who starts a child with Pdeathsig locks its own until the child
// has ended.
func Own(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			done <- f()
			return // locked: the thread ends
		}
		err := Own(f) // on another thread, as this one is taken
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}

// OrdinarySlack is by how many nanoseconds the timers of a process may be late, as the kernel has it for the first one. Threads and
// processes have what the thread has that makes them.
const OrdinarySlack = 50_000

// BeOrdinary gives this thread the ordinary slack, before it makes what is to have that. The caller has locked it.
func BeOrdinary() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, OrdinarySlack, 0, 0, 0) }

// SetSlack sets the slack of any thread of this process, in nanoseconds. Of another than its own it needs CAP_SYS_NICE.
func SetSlack(tid, slack int) error {
	return os.WriteFile("/proc/"+strconv.Itoa(tid)+"/timerslack_ns", strconv.AppendInt(nil, int64(slack), 10), 0)
}
