package vmtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// runBound runs a command that the kernel kills when this process dies, however that is.
func runBound(c *exec.Cmd) error {
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	done := make(chan error)
	go func() {
		// The signal is sent when the thread ends that started the command.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- c.Run()
	}()
	return <-done
}

var errOrphan = errors.New("the go command that ran these tests has ended")

// untilParentEnds is a context that ends with the go command that started this process: killing that leaves its
// test binaries running. stop ends it too, and waits for what looks after it.
func untilParentEnds(ctx context.Context) (orphaned context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	end := func() { cancel(context.Canceled) }
	parent := os.Getppid()
	fd, err := unix.PidfdOpen(parent, unix.PIDFD_NONBLOCK)
	if err != nil {
		return ctx, end
	}
	if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", parent)); err != nil || string(name) != "go\n" || os.Getppid() != parent {
		_ = unix.Close(fd)
		return ctx, end
	}
	var watch sync.WaitGroup
	watch.Go(func() {
		defer func() { _ = unix.Close(fd) }()
		for ctx.Err() == nil {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
			if n > 0 {
				cancel(errOrphan)
			}
			if err != nil && !errors.Is(err, unix.EINTR) {
				return
			}
		}
	})
	return ctx, func() {
		end()
		watch.Wait()
	}
}
