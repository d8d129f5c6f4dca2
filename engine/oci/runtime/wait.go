package runtime

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/berth-project/berth/engine/oci/bundle"
	"golang.org/x/sys/unix"
)

// waitPidfd waits for a child by its pidfd. No thread waits: the pidfd is polled with everything else.
func waitPidfd(pidfd *os.File) (bundle.Status, error) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return bundle.Status{}, err
	}
	var info unix.Siginfo
	var usage unix.Rusage
	var werr error
	err = raw.Read(func(fd uintptr) bool {
		for {
			info = unix.Siginfo{}
			werr = unix.Waitid(unix.P_PIDFD, int(fd), &info, unix.WEXITED|unix.WNOHANG, &usage)
			if !errors.Is(werr, unix.EINTR) {
				break
			}
		}
		if errors.Is(werr, unix.EAGAIN) {
			return false
		}
		return werr != nil || info.Signo != 0
	})
	if err == nil {
		err = werr
	}
	if err != nil {
		return bundle.Status{}, fmt.Errorf("wait for the container: %w", err)
	}
	st := bundle.Status{CPU: time.Duration(usage.Utime.Nano() + usage.Stime.Nano())}
	st.Code, st.Signal = splitInfo(&info)
	return st, nil
}

const (
	cldExited = 1
)

// siginfoChild is the part of siginfo_t that SIGCHLD fills.
type siginfoChild struct {
	Signo, Errno, Code int32
	_                  int32
	Pid, UID, Status   int32
}

func split(ws syscall.WaitStatus) (int, syscall.Signal) {
	if ws.Signaled() {
		return 0, ws.Signal()
	}
	return ws.ExitStatus(), 0
}
