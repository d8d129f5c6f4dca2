package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// A container that runs on when its daemon ends writes into pipes that containerd's shim keeps, and the next daemon reads them: but of
// a container that has ended by then it does not, and when the shim closes them the last that it wrote is gone, 64 KiB of each
// stream and more. So while a daemon of this host is away, berth has the pipes open, too. It reads them when the container has ended
// and nobody else has them, and what it finds is the end of the logs. The daemon's own log lacks it.
//
// The pipes are found at the shim, by the names that dockerd gives to them and containerd to its shims, and are no part of any API. Where
// they are not to be had, as by users who are not root, the exit's detail says that something may be missing.

// rest is what a container left in its pipes.
type rest struct {
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	// Whole: nobody else has read of it, and it was read to its end.
	Whole bool      `json:"whole"`
	Read  time.Time `json:"read"`
	// At is where in the logs it begins, once it is there or about to be.
	At *restAt `json:"at,omitempty"`
}

type restAt struct {
	Stdout int64 `json:"stdout"`
	Stderr int64 `json:"stderr"`
}

const (
	restFile     = "rest.json"
	restMost     = 4 << 20                // bytes of a stream: more than pipes and shim hold
	restTime     = 5 * time.Second        // for the shim to hand over the last of an ended container
	restWait     = 2 * time.Second        // for others to have read them, of an ended container
	restPoll     = 100 * time.Millisecond // doubles, while others have the pipes
	restPollMost = 5 * time.Second
	lookAgain    = 500 * time.Millisecond // doubles, where the pipes could not be looked at, as when descriptors have run out
)

// pipeGuard has a container's pipes from when its daemon is found to be away until that is back.
type pipeGuard struct {
	cancel context.CancelFunc
	done   chan struct{} // nil: it has none
}

// guardPipes begins to, unless that was done already.
func (l *life) guardPipes(ctx context.Context, g *pipeGuard) {
	l.mu.Lock()
	id, rec := l.id, l.rec
	l.mu.Unlock()
	if g.done != nil || id == "" || rec == nil || l.e.isPodman.Load() || os.Geteuid() != 0 {
		return
	}
	ctx, g.cancel = context.WithCancel(ctx)
	done := make(chan struct{})
	g.done = done
	// The engine's end does not wait for it, as a look at a process that hangs in its file system hangs, too: end does, while
	// it may be about to write.
	go func() {
		defer close(done)
		left := l.insistRest(ctx, id, rec.Spec.TTY)
		if left == nil {
			return
		}
		l.mu.Lock()
		l.rest = left
		l.mu.Unlock()
		if err := l.putRest(left); err != nil {
			l.e.cfg.Logger.Warn("what a container wrote last is not recorded before it is in its logs", "container", l.String(), "error", err)
		}
	}()
}

// insistRest is awaitRest, tried again where the pipes could not be looked at.
func (l *life) insistRest(ctx context.Context, id string, tty bool) *rest {
	for pause := lookAgain; ; pause = min(2*pause, restPollMost) {
		left, err := l.e.awaitRest(ctx, id, tty)
		if err == nil {
			if left != nil && pause > lookAgain {
				left.Whole = false // nobody has looked at who reads them meanwhile
			}
			return left
		}
		l.e.cfg.Logger.Debug("pipes of a container whose daemon is away", "container", l.String(), "error", err)
		if left != nil || errors.Is(err, berth.ErrNotFound) || errors.Is(err, berth.ErrConflict) {
			return left
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// end lets go of the pipes, if they have not been read within some time.
func (g *pipeGuard) end(most time.Duration) {
	if g.done == nil {
		return
	}
	select {
	case <-g.done:
	case <-time.After(most):
	}
	g.cancel()
	select {
	case <-g.done:
	case <-time.After(restTime + restWait): // it hangs in a look at this host's processes, and reads nothing after that
	}
	g.done = nil
}

func (l *life) putRest(r *rest) error {
	f, err := putJSON(filepath.Join(l.dir, restFile), r)
	if err != nil {
		return err
	}
	return f.Close()
}

// takeRest ends the logs of an ended container with what it left in its pipes, and reports whether that is all. alone: no daemon can have read
// of it that logged it nowhere.
func (l *life) takeRest(o *output, alone bool) (whole bool, err error) {
	l.mu.Lock()
	left := l.rest
	l.mu.Unlock()
	if left == nil {
		left = &rest{}
		if err := readJSON(filepath.Join(l.dir, restFile), left); errors.Is(err, berth.ErrNotFound) {
			return false, nil
		} else if err != nil {
			return false, fmt.Errorf("what the command wrote last: %w", err)
		}
	}
	left.Whole = left.Whole && alone
	if left.At == nil {
		left.At = &restAt{Stdout: o.out.n}
		if o.err != nil {
			left.At.Stderr = o.err.n
		}
		if err := l.putRest(left); err != nil {
			l.e.cfg.Logger.Warn("where a container's last output begins is not recorded", "container", l.String(), "error", err)
		}
	}
	for _, s := range o.sinks() {
		if left.Whole && s.brokenAt.After(left.Read) { // another was attached to when nothing more came
			s.broken = false
		}
		text, at := left.Stdout, left.At.Stdout
		if s == o.err {
			text, at = left.Stderr, left.At.Stderr
		}
		err = errors.Join(err, s.endWith(text, at))
	}
	return left.Whole && err == nil, err
}

// endWith has a log end with p from an offset on. Some of it may be there already. The daemon's log, which lacks it, has no more to come.
func (s *sink) endWith(p []byte, at int64) error {
	p = p[min(max(0, s.n-at), int64(len(p))):]
	if len(p) == 0 {
		return nil
	}
	s.sew(time.Time{}, time.Time{}, sight{})
	_, err := s.Write(p)
	return err
}

// awaitRest has a container's pipes until it has ended and nobody else reads them, and answers what it has left in them; nil where ctx
// ends before.
func (e *Engine) awaitRest(ctx context.Context, id string, tty bool) (*rest, error) {
	scan, err := e.shims.scan(time.Now())
	if err != nil {
		return nil, err
	}
	sh := scan.shims[id]
	if sh == nil || len(sh.pipes) == 0 {
		return nil, fmt.Errorf("no shim of it has pipes: %w", berth.ErrNotFound)
	}
	p, err := e.openPipes(sh, id)
	if err != nil {
		return nil, err
	}
	defer p.close()
	// alone: nobody but the shim has the pipes. handed: somebody may have read them when the container ended, or later.
	alone, handed := false, sh.pipes["stdout"] == 0 || sh.pipes["stderr"] == 0 && !tty
	ended := p.init < 0
	var due time.Time
	for pause := restPoll; ctx.Err() == nil; {
		taken, err := e.opened.told(&p.opened)
		if err != nil {
			return nil, err
		}
		if now := time.Now(); !alone && !now.Before(due) {
			if scan, err = e.shims.scan(now); err != nil {
				return nil, err
			}
			alone = !scan.read[id]
			due, pause = now.Add(pause), min(2*pause, restPollMost)
			if now := scan.shims[id]; ended && now != nil && now.init != 0 && now.init != sh.init {
				return nil, fmt.Errorf("its first process is %d, not %d: %w", now.init, sh.init, berth.ErrConflict)
			}
		}
		handed = handed || taken || ended && !alone
		switch {
		case ctx.Err() != nil:
		case ended && alone:
			left, err := p.read()
			left.Whole = left.Whole && !handed
			return left, err
		case ended:
			time.Sleep(restPoll)
		default:
			if ended, err = p.await(restPoll); err != nil {
				return nil, err
			} else if ended {
				handed = handed || !alone
				alone, due, pause = false, time.Time{}, restPoll // it is looked at once more
			}
		}
	}
	return nil, nil
}

// heldPipes are a container's pipes, had open.
type heldPipes struct {
	e       *Engine
	ends    map[string]int
	watches []int
	opened  bool // somebody else has opened them; of e.opened
	init    int  // a pidfd, readable when the container has ended; -1: it has
}

// openPipes opens the pipes of a container.
func (e *Engine) openPipes(sh *shim, id string) (_ *heldPipes, err error) {
	p := &heldPipes{e: e, ends: map[string]int{}, init: -1}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	for stream, n := range sh.pipes {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/fd/%d", sh.pid, n), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &fs.PathError{Op: "open", Path: stream + " of its shim", Err: err}
		}
		p.ends[stream] = fd
		if err := isPipeOf(fd, id, stream); err != nil { // the shim may have ended, and another process be what it was
			return nil, err
		}
	}
	for _, fd := range p.ends {
		watch, err := e.opened.add(fd, &p.opened)
		if err != nil {
			return nil, err
		}
		p.watches = append(p.watches, watch)
	}
	if sh.init == 0 {
		return p, nil
	}
	fd, err := unix.PidfdOpen(sh.init, 0)
	if errors.Is(err, unix.ESRCH) {
		return p, nil
	} else if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	p.init = fd
	if now, err := lookAt(sh.init); err != nil || now.parent != sh.pid || now.began != sh.began { // another by now
		_ = unix.Close(fd)
		p.init = -1
	}
	return p, nil
}

func procFD(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func isPipeOf(fd int, id, stream string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	name, err := os.Readlink(procFD(fd))
	if c, s := pipeOf(name); err == nil && (st.Mode&unix.S_IFMT != unix.S_IFIFO || c != id || s != stream) {
		err = fmt.Errorf("%s is no pipe of the container's: %w", name, berth.ErrInvalid)
	}
	return err
}

func (p *heldPipes) close() {
	for _, w := range p.watches {
		p.e.opened.remove(w)
	}
	for _, fd := range p.ends {
		_ = unix.Close(fd)
	}
	if p.init >= 0 {
		_ = unix.Close(p.init)
	}
}

// await waits for the container's end, for some time.
func (p *heldPipes) await(most time.Duration) (ended bool, err error) {
	fds := []unix.PollFd{{Fd: int32(p.init), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, int(most.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
		return false, os.NewSyscallError("poll", err)
	}
	return fds[0].Revents != 0, nil
}

// read reads what is left, until the shim closes them.
func (p *heldPipes) read() (*rest, error) {
	left := &rest{Read: time.Now()}
	texts := map[string]*[]byte{"stdout": &left.Stdout, "stderr": &left.Stderr}
	buf := make([]byte, 64<<10)
	for end := time.Now().Add(restTime); len(p.ends) > 0 && time.Now().Before(end); {
		got := 0
		for stream, fd := range p.ends {
			n, err := unix.Read(fd, buf)
			switch {
			case errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR):
			case err != nil:
				return left, os.NewSyscallError("read", err)
			case n == 0:
				_ = unix.Close(fd)
				delete(p.ends, stream)
			default:
				text := texts[stream]
				*text = append(*text, buf[:n]...)
				if got += n; len(*text) > restMost {
					return left, fmt.Errorf("%s: more than %d bytes are left: %w", stream, restMost, berth.ErrInvalid)
				}
			}
		}
		if got == 0 && len(p.ends) > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	taken, err := p.e.opened.told(&p.opened)
	left.Whole = len(p.ends) == 0 && !taken && err == nil
	return left, err
}
