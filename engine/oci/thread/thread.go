// Package thread runs functions on threads of their own, for what the kernel keeps for each thread and Go for none: ids, the umask,
// namespaces.
package thread

import (
	"os"
	"runtime"

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
