package direct

import (
	"context"
	"errors"
	"fmt"
	"os"
	"reflect"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
)

// execProcess is a further process in a container.
type execProcess struct {
	child   *child
	console *os.File
}

var _ bundle.ExecProcess = (*execProcess)(nil)

func (e *execProcess) Pid() int { return e.child.pid }

func (e *execProcess) Wait() (bundle.Status, error) {
	st, err := e.child.wait()
	if err == nil {
		err = e.child.close()
	}
	return st, err
}

func (e *execProcess) Kill() error { return e.child.kill(unix.SIGKILL) }

func (e *execProcess) Console() *os.File { return e.console }

// Exec implements bundle.Process. The errors are those of Start; berth.ErrConflict says that the container has
// ended.
//
// Unlike a start, it never shares this process's memory with a process that others in the container can see:
// the child is a copy, which nobody may trace or dump, and has closed every descriptor before it enters.
func (p *Process) Exec(ctx context.Context, e *bundle.Exec) (bundle.ExecProcess, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	if err := p.s.checkExec(e.Process); err != nil {
		return nil, err
	}
	if caps, err := parseCapabilities(e.Process.Capabilities); err != nil || caps.any().has(capSysAdmin) && !p.confine.admin {
		return nil, errors.Join(fmt.Errorf("process.capabilities: CAP_SYS_ADMIN, which the container does not have: %w: its root is not locked", berth.ErrUnsupported), err)
	}
	pl := &plan{
		s: p.s, b: p.s.builders.take(), dirs: map[string]arg{}, filter: p.confine.filter, userNS: p.confine.userNS, keepGroups: p.confine.keepGroups,
		// What a plan looks up in a spec and a bundle, and no more.
		spec:   &specs.Spec{Linux: &specs.Linux{UIDMappings: p.confine.uids, GIDMappings: p.confine.gids}, Process: e.Process},
		bundle: &bundle.Bundle{Stdin: e.Stdin, Stdout: e.Stdout, Stderr: e.Stderr, Cgroup: p.confine.cgroup},
	}
	defer pl.close()
	return p.exec(pl)
}

// checkExec checks the process as Check does that of a spec.
func (s *Starter) checkExec(proc *specs.Process) error {
	if proc == nil || len(proc.Args) == 0 {
		return fmt.Errorf("process.args: %w: there is no command", berth.ErrInvalid)
	}
	if err := s.known.check(reflect.ValueOf(specs.Spec{Process: proc})); err != nil {
		return err
	}
	return s.checkProcess(proc)
}

func (p *Process) exec(pl *plan) (bundle.ExecProcess, error) {
	shared, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("exec: map report: %w", err)
	}
	defer func() { _ = unix.Munmap(shared) }()
	rep := (*report)(unsafe.Pointer(unsafe.SliceData(shared)))
	pipeR, pipeW, err := pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = pipeR.Close() }()
	pl.report, pl.image = int(pipeW.Fd()), int(p.s.jump.Fd())
	r := &request{netns: -1}
	err = p.planExec(pl, r)
	if err == nil {
		pl.b.report = rep
		r.prog = pl.b.finish()
		forking := p.s.plain
		if pl.usual {
			forking = p.s.usual
		}
		err = forking.do(r)
	}
	_ = pipeW.Close()
	if err != nil {
		return nil, fmt.Errorf("exec: %w", err)
	}
	if r.errno != 0 {
		return nil, fmt.Errorf("exec: make process: %w", cloneError(r.errno))
	}
	// The process that entered the container ends at once; what it made is ours to wait for.
	first := newChild(r.pid, int(r.pidfd))
	_, _ = first.wait()
	_ = first.close()
	return p.executed(pl, rep, pipeR)
}

// executed waits until the command was executed or could not be.
func (p *Process) executed(pl *plan, rep *report, pipeR *os.File) (bundle.ExecProcess, error) {
	var c *child
	if rep.pid != 0 {
		fd, err := unix.PidfdOpen(int(rep.pid), 0)
		if err != nil {
			return nil, fmt.Errorf("exec: open process %d: %w", rep.pid, err)
		}
		c = newChild(int(rep.pid), fd)
	}
	err := awaitTrampoline(pipeR, pl.spec.Process.Args[0])
	if serr := pl.b.failure(rep.failed, rep.errno); serr != nil {
		err = fmt.Errorf("exec: %w", serr)
		if errors.Is(serr, unix.ESRCH) {
			err = fmt.Errorf("exec: %w: the container has ended", berth.ErrConflict)
		}
	}
	var console *os.File
	if err == nil && c == nil {
		err = errors.New("exec: the process that entered the container was killed")
	}
	if err == nil {
		console, err = pl.console()
	}
	if err != nil {
		if c != nil {
			_ = c.kill(unix.SIGKILL)
			_, _ = c.wait()
			_ = c.close()
		}
		return nil, err
	}
	return &execProcess{child: c, console: console}, nil
}

// planExec makes the program of a further process.
func (p *Process) planExec(pl *plan, r *request) error {
	b := pl.b
	if err := pl.streamsFirst(); err != nil {
		return err
	}
	b.doing("forbid dumps", "")
	b.call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if cg := p.confine.cgroup; cg != nil {
		if dir := cg.DirV2(); dir != nil {
			r.args.flags |= unix.CLONE_INTO_CGROUP
			r.args.cgroup = uint64(dir.Fd())
		}
	}
	pl.joinCgroups()
	if err := pl.oomScore(pl.spec.Process.OOMScoreAdj); err != nil {
		return err
	}
	b.doing("enter", "container")
	conn, err := p.child.pidfd.SyscallConn()
	if err != nil {
		return err
	}
	pidfd := -1
	if err := conn.Control(func(fd uintptr) {
		// A copy, so that the container may be closed meanwhile.
		pidfd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return fmt.Errorf("%w: the container has ended", berth.ErrConflict)
	}
	if err != nil {
		return err
	}
	pl.own(pidfd)
	b.call(unix.SYS_SETNS, pl.inherit(pidfd), arg(p.confine.namespaces))
	if p.confine.userNS {
		b.doing("become root of the user namespace", "")
		b.call(unix.SYS_SETRESGID, 0, 0, 0)
		b.call(unix.SYS_SETRESUID, 0, 0, 0)
		b.call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	}
	b.doing("make process in the", "container")
	b.add(modeFork, 0)
	b.doing("ask to die with berth", "")
	b.call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, arg(unix.SIGKILL), 0, 0, 0)
	b.doing("begin session", "")
	b.call(unix.SYS_SETSID)
	pl.keyring()
	b.doing("open", "container's root")
	pl.root = b.open(unix.SYS_OPENAT, atCwd, b.str("/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC)
	if err := pl.terminal(pl.root, pl.spec.Process); err != nil {
		return err
	}
	if err := pl.streams(); err != nil {
		return err
	}
	pl.control()
	if err := pl.person(pl.spec.Process); err != nil {
		return err
	}
	pl.signals()
	pl.command(pl.spec.Process, false)
	pl.begin()
	return nil
}
