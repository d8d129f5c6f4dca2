package network

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/fds"
)

// newNamespace makes a network namespace in which only loopback is up.
func newNamespace() (*os.File, error) {
	var made *os.File
	err := inThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w: %w", berth.ErrDenied, err)
		}
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("bring up loopback: %w", err)
		}
		var err error
		made, err = currentNamespace()
		return err
	})
	return made, err
}

// inThread runs f in a thread that is in a network namespace of its own choice when f returns; the thread
// then comes back to where it was, or ends. It is never the main one, which could not end, and whose namespace
// /proc/self and /proc/net show.
func inThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == os.Getpid() {
			err := inThread(f) // on another thread, as this one is taken
			runtime.UnlockOSThread()
			done <- err
			return
		}
		home, err := currentNamespace()
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		err = f()
		// A locked thread ends with its goroutine.
		if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		_ = home.Close()
		done <- err
	}()
	return <-done
}

func currentNamespace() (*os.File, error) {
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the network namespace: %w", err)
	}
	return os.NewFile(uintptr(fds.Aside(fd)), "net"), nil
}

// loopbackUp brings up lo in the thread's namespace, with the addresses that the kernel gives it.
func loopbackUp() error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(s) }()
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(s, unix.SIOCSIFFLAGS, req)
}
