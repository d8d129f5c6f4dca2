package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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
	Whole bool `json:"whole"`
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
	shimName     = "containerd-shim"
)

// pipeGuard has a container's pipes from when its daemon is found to be away until that is back.
type pipeGuard struct {
	cancel context.CancelFunc
	done   chan struct{} // nil: it has none
}

// guardPipes begins to, unless that was done already.
func (l *life) guardPipes(ctx context.Context, g *pipeGuard) {
	l.mu.Lock()
	id := l.id
	l.mu.Unlock()
	if g.done != nil || id == "" || l.e.isPodman.Load() || os.Geteuid() != 0 {
		return
	}
	ctx, g.cancel = context.WithCancel(ctx)
	done := make(chan struct{})
	g.done = done
	l.e.wg.Go(func() {
		defer close(done)
		left, err := l.e.awaitRest(ctx, id)
		if err != nil {
			l.e.cfg.Logger.Debug("pipes of a container whose daemon is away", "container", l.String(), "error", err)
		}
		if left == nil {
			return
		}
		l.mu.Lock()
		l.rest = left
		l.mu.Unlock()
		if err := l.putRest(left); err != nil {
			l.e.cfg.Logger.Warn("what a container wrote last is not recorded before it is in its logs", "container", l.String(), "error", err)
		}
	})
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
	<-g.done
	g.done = nil
}

func (l *life) putRest(r *rest) error {
	f, err := putJSON(filepath.Join(l.dir, restFile), r)
	if err != nil {
		return err
	}
	return f.Close()
}

// takeRest ends the logs of an ended container with what it left in its pipes, and reports whether that is all.
func (l *life) takeRest(o *output) (whole bool, err error) {
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
	if left.At == nil {
		left.At = &restAt{Stdout: o.out.n}
		if o.err != nil {
			left.At.Stderr = o.err.n
		}
		if err := l.putRest(left); err != nil {
			l.e.cfg.Logger.Warn("where a container's last output begins is not recorded", "container", l.String(), "error", err)
		}
	}
	if left.Whole {
		o.out.broken = false
	}
	err = o.out.endWith(left.Stdout, left.At.Stdout)
	if o.err != nil {
		o.err.broken = o.out.broken
		err = errors.Join(err, o.err.endWith(left.Stderr, left.At.Stderr))
	}
	return left.Whole && err == nil, err
}

// endWith has a log end with p from an offset on. Some of it may be there already.
func (s *sink) endWith(p []byte, at int64) error {
	p = p[min(max(0, s.n-at), int64(len(p))):]
	if len(p) == 0 {
		return nil
	}
	s.sew(time.Time{}, time.Time{}, time.Time{})
	if err := s.lack(int64(len(p))); err != nil {
		return err
	}
	_, err := s.Write(p)
	return err
}

// awaitRest has a container's pipes until it has ended and nobody else reads them, and answers what it has left in them; nil where ctx
// ends before.
func (e *Engine) awaitRest(ctx context.Context, id string) (*rest, error) {
	scan, err := e.shims.scan(time.Now().Add(-time.Second))
	if err != nil {
		return nil, err
	}
	sh := scan.shims[id]
	if sh == nil || len(sh.pipes) == 0 {
		return nil, fmt.Errorf("no shim of it has pipes: %w", berth.ErrNotFound)
	}
	p, err := sh.open(id)
	if err != nil {
		return nil, err
	}
	defer p.close()
	alone, handed, ended := false, false, false
	var due time.Time
	for pause := restPoll; ctx.Err() == nil; {
		taken, err := p.taken()
		if err != nil {
			return nil, err
		}
		if taken {
			alone, handed = false, true
			due, pause = time.Time{}, restPoll
		}
		if now := time.Now(); !alone && !now.Before(due) {
			scan, err := e.shims.scan(now)
			if err != nil {
				return nil, err
			}
			alone = !scan.read[id]
			due, pause = now.Add(pause), min(2*pause, restPollMost)
		}
		switch {
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
				due, pause = time.Time{}, restPoll
			}
		}
	}
	return nil, nil
}

// shims knows the shims of this host's containers.
type shims struct {
	mu   sync.Mutex
	last *shimScan
}

// shimScan is what was found at one time.
type shimScan struct {
	began time.Time
	shims map[string]*shim // by container
	read  map[string]bool  // containers whose pipes another process than their shim reads
}

// shim is the process between containerd and a container.
type shim struct {
	pid   int
	pipes map[string]int // "stdout", "stderr": its descriptor
	init  int            // pid of the container's first process; 0 where it has none any more
	began uint64         // of init, in ticks
}

// scan looks at all processes, unless somebody has since a time.
func (s *shims) scan(since time.Time) (*shimScan, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil && !s.last.began.Before(since) {
		return s.last, nil
	}
	found := &shimScan{began: time.Now(), shims: map[string]*shim{}, read: map[string]bool{}}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	byPID := map[int]*shim{}
	type process struct {
		pid, parent int
		began       uint64
	}
	var all []process
	for _, d := range procs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		if parent, began, err := parentOf(pid); err == nil {
			all = append(all, process{pid, parent, began})
		}
		id := shimOf(pid)
		if id != "" {
			byPID[pid] = &shim{pid: pid, pipes: map[string]int{}}
			found.shims[id] = byPID[pid]
		}
		eachPipe(pid, func(container, stream string, fd int) {
			if sh := byPID[pid]; sh == nil {
				found.read[container] = true
			} else if container == id {
				sh.pipes[stream] = fd
			}
		})
	}
	for _, p := range all {
		// Those that were started in the container later are the shim's children, too.
		if sh := byPID[p.parent]; sh != nil && (sh.init == 0 || p.began < sh.began) {
			sh.init, sh.began = p.pid, p.began
		}
	}
	s.last = found
	return found, nil
}

// shimOf is the container of which a process is the shim; "" where it is none.
func shimOf(pid int) string {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	argv := strings.Split(string(raw), "\x00")
	if !strings.HasPrefix(filepath.Base(argv[0]), shimName) || !isHosts(pid) {
		return ""
	}
	for i, a := range argv[:len(argv)-1] {
		if a == "-id" {
			return argv[i+1]
		}
	}
	return ""
}

// isHosts reports whether a process is root's and in none of a container's namespaces: those may call themselves whatever they like.
func isHosts(pid int) bool {
	var st unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d", pid), &st) != nil || st.Uid != 0 {
		return false
	}
	for _, ns := range []string{"mnt", "pid", "user"} {
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		theirs, terr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil || terr != nil || ours != theirs {
			return false
		}
	}
	return true
}

// eachPipe calls do with the pipes of containers' first processes that a process reads, by what dockerd names them.
func eachPipe(pid int, do func(container, stream string, fd int)) {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return // it has ended
	}
	for _, d := range fds {
		link := filepath.Join(dir, d.Name())
		target, err := os.Readlink(link)
		if err != nil {
			continue
		}
		container, stream := pipeOf(target)
		if container == "" {
			continue
		}
		st, err := os.Lstat(link)
		if err != nil || st.Mode().Perm()&0o400 == 0 { // it cannot read from it
			continue
		}
		if fd, err := strconv.Atoi(d.Name()); err == nil {
			do(container, stream, fd)
		}
	}
}

// pipeOf is of which container's first process, and of which of its streams, a pipe is by the name that dockerd gives it; "" where
// it is none.
func pipeOf(name string) (container, stream string) {
	container = filepath.Base(filepath.Dir(name))
	process, stream, ok := strings.Cut(filepath.Base(name), "-std")
	if !ok || process != "init" && process != container || stream != "out" && stream != "err" { // init: before 23
		return "", ""
	}
	return container, "std" + stream
}

// parentOf is a process's parent, and when it began.
func parentOf(pid int) (parent int, began uint64, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, err
	}
	f := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:]) // from the third on
	const ppid, starttime = 4 - 3, 22 - 3
	if len(f) <= starttime {
		return 0, 0, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	if parent, err = strconv.Atoi(string(f[ppid])); err != nil {
		return 0, 0, err
	}
	began, err = strconv.ParseUint(string(f[starttime]), 10, 64)
	return parent, began, err
}

// heldPipes are a container's pipes, had open.
type heldPipes struct {
	ends   map[string]int
	opened int // an inotify, which tells who else opens them
	init   int // a pidfd, readable when the container has ended; -1: it has
}

// open opens the pipes of a container.
func (sh *shim) open(id string) (_ *heldPipes, err error) {
	p := &heldPipes{ends: map[string]int{}, opened: -1, init: -1}
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
	if p.opened, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	for _, fd := range p.ends {
		if _, err := unix.InotifyAddWatch(p.opened, procFD(fd), unix.IN_OPEN); err != nil {
			return nil, os.NewSyscallError("inotify_add_watch", err)
		}
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
	if parent, began, err := parentOf(sh.init); err != nil || parent != sh.pid || began != sh.began { // another by now
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
	for _, fd := range p.ends {
		_ = unix.Close(fd)
	}
	for _, fd := range []int{p.opened, p.init} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}

// taken reports whether somebody else has opened them since it was last asked.
func (p *heldPipes) taken() (bool, error) {
	n, err := unix.Read(p.opened, make([]byte, 4096))
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		return false, nil
	}
	return n > 0, os.NewSyscallError("read", err)
}

// await waits for the container's end, or somebody else, for some time.
func (p *heldPipes) await(most time.Duration) (ended bool, err error) {
	if p.init < 0 {
		return true, nil
	}
	fds := []unix.PollFd{{Fd: int32(p.init), Events: unix.POLLIN}, {Fd: int32(p.opened), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, int(most.Milliseconds())); err != nil && !errors.Is(err, unix.EINTR) {
		return false, os.NewSyscallError("poll", err)
	}
	return fds[0].Revents != 0, nil
}

// read reads what is left, until the shim closes them.
func (p *heldPipes) read() (*rest, error) {
	left := &rest{}
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
	taken, err := p.taken()
	left.Whole = len(p.ends) == 0 && !taken && err == nil
	return left, err
}
