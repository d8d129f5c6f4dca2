package direct

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/initbin"
	"github.com/berth-project/berth/engine/oci/seccomp"
)

// Process is a started container.
type Process struct {
	s       *Starter
	child   *child
	root    *os.File
	report  *os.File // of berth's init, or the trampoline
	init    bool
	mntns   int // keeps the container's mounts, so that its end does not pay for taking them down; -1 where none
	notes   []string
	console *os.File
	confine confinement

	closing sync.Once
	closed  error
}

// confinement is what a further process of a container shares with it, beside its mounts.
type confinement struct {
	namespaces uint64 // CLONE_NEW*, of those that the container has for itself
	userNS     bool
	uids, gids []specs.LinuxIDMapping
	filter     *seccomp.Filter
	cgroup     bundle.Cgroup
	admin      bool // its root is closed to those with CAP_SYS_ADMIN
	keepGroups bool
}

// allNamespaces are the flags of the namespaces that clone3 makes here.
const allNamespaces = unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWUSER

// confined says how the plan's container is confined.
func (p *plan) confined() confinement {
	c := confinement{
		namespaces: p.flags & allNamespaces, userNS: p.userNS, uids: p.spec.Linux.UIDMappings, gids: p.spec.Linux.GIDMappings,
		filter: p.filter, cgroup: p.bundle.Cgroup, admin: p.admin, keepGroups: p.keepGroups,
	}
	if _, ok := namespace(p.spec, specs.CgroupNamespace); ok {
		c.namespaces |= unix.CLONE_NEWCGROUP
	}
	if _, ok := namespace(p.spec, specs.NetworkNamespace); ok || p.bundle.NetNS != nil {
		c.namespaces |= unix.CLONE_NEWNET
	}
	return c
}

var _ bundle.Process = (*Process)(nil)

// started makes the process of what the thread answered, or the error of the step that failed.
func (s *Starter) started(p *plan, r *request, root, report *os.File) (*Process, error) {
	if r.errno != 0 {
		_ = report.Close()
		return nil, fmt.Errorf("make process: %w", cloneError(r.errno))
	}
	if err := s.threadsFor(p).unlocked(); err != nil {
		p.note("with CAP_SYS_ADMIN the container can detach its root and reach the machine's initial ramdisk, as in one of runc: its root could not be locked: " + err.Error())
	}
	if p.hosted && p.admin && !s.inUserNS {
		p.note("with CAP_SYS_ADMIN the container can detach its root and reach the machine's initial ramdisk, as in one of runc: it has hooks")
	}
	proc := &Process{s: s, child: newChild(r.pid, int(r.pidfd)), root: root, mntns: r.mntns, report: report, init: p.bundle.Init, notes: p.notes, confine: p.confined()}
	err := p.b.failure(r.prog.failed, r.prog.errno)
	switch {
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENFILE):
		// The kernel's words where a memory cgroup refuses.
		err = fmt.Errorf("start container: %w: the memory limit may be too low for anything to start: %w", berth.ErrExhausted, err)
	case err != nil:
		err = fmt.Errorf("start container: %w", err)
	case proc.init:
		err = awaitInit(report, p.spec.Process.Args[0])
	default:
		err = awaitTrampoline(report, p.spec.Process.Args[0])
	}
	if err == nil {
		proc.console, err = p.console()
	}
	if err != nil {
		proc.discard()
		return nil, err
	}
	return proc, nil
}

// cloneError adds berth's kind to an errno of clone3.
func cloneError(errno syscall.Errno) error {
	switch errno { //nolint:exhaustive // the others have no kind
	case unix.EPERM:
		return fmt.Errorf("%w: %w: this process may not make namespaces", berth.ErrDenied, errno)
	case unix.ENOSPC, unix.EUSERS:
		return fmt.Errorf("%w: %w: a limit below /proc/sys/user is reached", berth.ErrExhausted, errno)
	case unix.EAGAIN, unix.ENOMEM:
		return fmt.Errorf("%w: %w", berth.ErrUnavailable, errno)
	}
	return errno
}

// discard ends a process that did not come to its command. The root stays open.
func (p *Process) discard() {
	_ = p.child.kill(unix.SIGKILL)
	_, _ = p.child.wait()
	p.root = nil
	_ = p.Close()
}

// Pid is the process id of the container's pid 1, in this process's namespace.
func (p *Process) Pid() int { return p.child.pid }

// Notes says what is not as the spec wanted it, and why.
func (p *Process) Notes() []string { return p.notes }

// Wait implements bundle.Process. Where berth's init is pid 1, it tells how the command ended; should the
// init itself have been killed, its own end is the answer.
func (p *Process) Wait() (bundle.Status, error) {
	st, err := p.child.wait()
	if err != nil || !p.init {
		return st, err
	}
	// What the init had to say is in the pipe by now. Nobody waits for more: with CAP_SYS_PTRACE a container can
	// open the init's end of it, and give that to somebody who outlives it.
	_ = p.report.SetReadDeadline(time.Now().Add(reportTime))
	rec, err := initbin.ReadRecord(p.report)
	if err != nil || rec.Kind != initbin.Ended {
		return st, nil //nolint:nilerr // no record: the init did not live to write it
	}
	st.Code, st.Signal = 0, 0
	if ws := syscall.WaitStatus(rec.Value); ws.Signaled() {
		st.Signal = ws.Signal()
	} else {
		st.Code = ws.ExitStatus()
	}
	return st, nil
}

// reportTime is how long the end of the init's report may take after the init's own.
const reportTime = 100 * time.Millisecond

// Kill implements bundle.Process.
func (p *Process) Kill() error { return p.child.kill(unix.SIGKILL) }

// Signal implements bundle.Process.
func (p *Process) Signal(sig syscall.Signal) error { return p.child.kill(sig) }

// Console is the master of the container's terminal; nil without one.
func (p *Process) Console() *os.File { return p.console }

// RootFS is the container's root. As long as the container runs, a walk from it crosses into what is mounted
// there; afterwards there is only the root itself.
func (p *Process) RootFS() *os.File { return p.root }

// Close frees what the process holds; with it go the container's mounts, which may take some milliseconds.
// When it returns, nothing holds the upper directory any more. Closing again does nothing.
func (p *Process) Close() error {
	p.closing.Do(func() {
		if p.mntns >= 0 {
			_ = unix.Close(p.mntns)
		}
		errs := []error{p.child.close(), p.report.Close()}
		for _, f := range []*os.File{p.console, p.root} {
			if f != nil {
				errs = append(errs, f.Close())
			}
		}
		p.closed = errors.Join(errs...)
	})
	return p.closed
}

// child is a process that was made here, held by a pidfd. Its end is waited for through the runtime's poller:
// a thousand waiting goroutines need no thread.
type child struct {
	pid   int
	pidfd *os.File
}

func newChild(pid, pidfd int) *child {
	_ = unix.SetNonblock(pidfd, true) // for the poller
	return &child{pid: pid, pidfd: os.NewFile(uintptr(pidfd), "pidfd")}
}

// siginfoChild is siginfo_t as waitid(2) fills it.
type siginfoChild struct {
	signo, errno, code int32
	_                  int32
	pid                int32
	uid                uint32
	status             int32
	_                  [100]byte
}

func (c *child) wait() (bundle.Status, error) {
	conn, err := c.pidfd.SyscallConn()
	if err != nil {
		return bundle.Status{}, fmt.Errorf("wait for process %d: %w", c.pid, err)
	}
	var info siginfoChild
	var usage unix.Rusage
	var errno syscall.Errno
	err = conn.Read(func(fd uintptr) bool {
		for {
			_, _, errno = unix.Syscall6(unix.SYS_WAITID, unix.P_PIDFD, fd, uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG|unix.WALL, uintptr(unsafe.Pointer(&usage)), 0)
			if errno != unix.EINTR {
				break
			}
		}
		return errno != unix.EAGAIN && (errno != 0 || info.pid != 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		return bundle.Status{}, fmt.Errorf("wait for process %d: %w", c.pid, err)
	}
	st := bundle.Status{CPU: time.Duration(usage.Utime.Nano() + usage.Stime.Nano())}
	switch info.code {
	case 1: // CLD_EXITED
		st.Code = int(info.status)
	default: // CLD_KILLED, CLD_DUMPED
		st.Signal = syscall.Signal(info.status)
	}
	return st, nil
}

// kill sends a signal; no error if the process has ended.
func (c *child) kill(sig syscall.Signal) error {
	conn, err := c.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	if err := conn.Control(func(fd uintptr) { serr = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return nil //nolint:nilerr // it was closed, and so had ended
	}
	if serr != nil && !errors.Is(serr, unix.ESRCH) {
		return fmt.Errorf("signal process %d: %w", c.pid, serr)
	}
	return nil
}

func (c *child) close() error { return c.pidfd.Close() }
