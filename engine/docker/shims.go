package docker

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// shims knows the shims of this host's containers: the processes between containerd and what runs.
type shims struct {
	mu   sync.Mutex
	last *shimScan
}

// shimScan is what was found at one time.
type shimScan struct {
	began time.Time
	shims map[string]*shim // by container
	read  map[string]bool  // containers whose pipes another process of this host reads than their shim
}

// shim is containerd's for runc, and what is called as runc is. Others' containers need not be children of theirs.
type shim struct {
	pid     int
	started uint64         // in ticks
	pipes   map[string]int // "stdout", "stderr": its descriptor
	init    int            // pid of the container's first process; 0 where it has ended, or is yet to begin
	began   uint64         // of init, in ticks
}

const shimName = "containerd-shim-runc-"

// scan looks at all processes, unless somebody has begun to since a time.
func (s *shims) scan(since time.Time) (*shimScan, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil && !s.last.began.Before(since) {
		return s.last, nil
	}
	for try := 1; ; try++ {
		found, err := lookAround()
		if err == nil {
			s.last = found
		}
		if err == nil || try == scanTries {
			return found, err
		}
	}
}

// scanTries is how often it is looked, as processes come and go meanwhile.
const scanTries = 3

// lookAround looks at all processes.
func lookAround() (*shimScan, error) {
	found := &shimScan{began: time.Now(), shims: map[string]*shim{}, read: map[string]bool{}}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	ours, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return nil, err
	}
	byPID := map[int]*shim{}
	children := map[int]process{} // of containers: the oldest that lives, by parent
	hidden := map[int]bool{}      // parents of what may not be looked at
	for _, d := range procs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		child, err := lookAt(pid)
		switch {
		case err != nil:
		case child.ns != ours:
			// What was started in the container later is the shim's child, too.
			if c, ok := children[child.parent]; !child.dead && (!ok || child.began < c.began) {
				children[child.parent] = child
			}
		default:
			err = found.look(child, byPID)
		}
		if errors.Is(err, os.ErrPermission) { // it may do more than root here, as some of the system's first; or it has just ended
			name, nerr := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			hidden[child.parent] = hidden[child.parent] || nerr == nil
			if err = nerr; bytes.Contains(name, []byte("docker")) {
				err = os.ErrPermission // it may be the daemon
			}
		}
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // it has ended
			return nil, fmt.Errorf("look at process %d: %w", pid, err)
		}
	}
	for pid, sh := range byPID {
		sh.init, sh.began = children[pid].pid, children[pid].began
		if hidden[pid] {
			sh.pipes = nil // whether its container runs is not known
		}
	}
	return found, nil
}

// look looks at a process that is in no container. Those of containers are let alone: they may be made to be slow to look at, and to look
// like anything.
func (s *shimScan) look(p process, byPID map[int]*shim) error {
	id, err := shimOf(p.pid)
	if err != nil {
		return err
	}
	if id != "" {
		sh := &shim{pid: p.pid, started: p.began, pipes: map[string]int{}}
		byPID[p.pid] = sh
		if other := s.shims[id]; other == nil || p.began < other.started { // a program that it is about to run is named as it is
			s.shims[id] = sh
		}
	}
	return eachPipe(p.pid, func(container, stream string, fd int) {
		if sh := byPID[p.pid]; sh == nil {
			s.read[container] = true
		} else if container == id {
			sh.pipes[stream] = fd
		}
	})
}

// shimOf is the container of which a process is the shim; "" where it is none.
func shimOf(pid int) (string, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return "", err
	}
	argv := strings.Split(string(raw), "\x00")
	if !strings.HasPrefix(filepath.Base(argv[0]), shimName) {
		return "", nil
	}
	if hosts, err := isHosts(pid); !hosts || err != nil {
		return "", err
	}
	for i, a := range argv[:len(argv)-1] {
		if a == "-id" {
			return argv[i+1], nil
		}
	}
	return "", nil
}

// isHosts reports whether a process is root's and in none of a container's namespaces: those may call themselves whatever they like.
func isHosts(pid int) (bool, error) {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d", pid), &st); err != nil {
		return false, os.NewSyscallError("stat", err)
	}
	for _, ns := range []string{"mnt", "pid", "user"} {
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		theirs, terr := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err := cmp.Or(err, terr); err != nil || ours != theirs {
			return false, err
		}
	}
	return st.Uid == 0, nil
}

// eachPipe calls do with the pipes of containers' first processes that a process reads.
func eachPipe(pid int, do func(container, stream string, fd int)) error {
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, d := range fds {
		link := filepath.Join(dir, d.Name())
		target, err := os.Readlink(link)
		if errors.Is(err, os.ErrNotExist) { // it is closed by now
			continue
		} else if err != nil {
			return err
		}
		container, stream := pipeOf(target)
		if container == "" {
			continue
		}
		st, err := os.Lstat(link)
		if errors.Is(err, os.ErrNotExist) || err == nil && st.Mode().Perm()&0o400 == 0 { // it cannot read from it
			continue
		} else if err != nil {
			return err
		}
		if fd, err := strconv.Atoi(d.Name()); err == nil {
			do(container, stream, fd)
		}
	}
	return nil
}

// pipeOf is of which container's first process, and of which of its streams, a pipe is by the name that dockerd gives it; "" where
// it is none.
func pipeOf(name string) (container, stream string) {
	container = filepath.Base(filepath.Dir(name))
	process, stream, ok := strings.Cut(filepath.Base(name), "-std")
	if !ok || process != "init" && process != container || stream != "out" && stream != "err" { // "init" is what 20.10 says
		return "", ""
	}
	return container, "std" + stream
}

// process is what is known of one.
type process struct {
	pid, parent int
	began       uint64 // in ticks
	dead        bool   // nobody has waited for it yet
	ns          string // its pid namespace
}

func lookAt(pid int) (process, error) {
	p := process{pid: pid}
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return p, err
	}
	f := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:]) // from the third on
	const state, ppid, threads, starttime = 0, 1, 17, 19
	if len(f) <= starttime {
		return p, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	alone := string(f[threads]) == "0" || string(f[threads]) == "1" // else its other threads live on
	p.dead = alone && (f[state][0] == 'Z' || f[state][0] == 'X')
	if p.parent, err = strconv.Atoi(string(f[ppid])); err != nil {
		return p, err
	}
	if p.began, err = strconv.ParseUint(string(f[starttime]), 10, 64); err != nil {
		return p, err
	}
	p.ns, err = os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	return p, err
}

// openers tells of files that somebody opens, by one inotify for all of an engine's: a user may have few of those.
type openers struct {
	mu     sync.Mutex
	fd     int
	opened map[int]*bool // by watch
}

// add begins to tell of what a descriptor is of.
func (o *openers) add(fd int, opened *bool) (watch int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.opened) == 0 {
		if o.fd, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
			return 0, os.NewSyscallError("inotify_init1", err)
		}
		o.opened = map[int]*bool{}
	}
	if watch, err = unix.InotifyAddWatch(o.fd, procFD(fd), unix.IN_OPEN); err != nil {
		o.tidy()
		return 0, os.NewSyscallError("inotify_add_watch", err)
	}
	if o.opened[watch] != nil {
		return 0, fmt.Errorf("it is watched already: %w", berth.ErrConflict)
	}
	o.opened[watch] = opened
	return watch, nil
}

// remove ends it.
func (o *openers) remove(watch int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, _ = unix.InotifyRmWatch(o.fd, uint32(watch))
	delete(o.opened, watch)
	o.tidy()
}

// tidy needs mu.
func (o *openers) tidy() {
	if len(o.opened) == 0 {
		_ = unix.Close(o.fd)
		o.fd = -1
	}
}

// told reports what was told: whether somebody has opened one of those that share it. It is never false again.
func (o *openers) told(opened *bool) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for buf := make([]byte, 16<<10); ; {
		n, err := unix.Read(o.fd, buf)
		if errors.Is(err, unix.EAGAIN) {
			return *opened, nil
		} else if errors.Is(err, unix.EINTR) {
			continue
		} else if err != nil {
			return false, os.NewSyscallError("read", err)
		}
		for at := 0; at+unix.SizeofInotifyEvent <= n; {
			watch, mask, name := eventAt(buf[at:])
			if mask&unix.IN_Q_OVERFLOW != 0 {
				for _, all := range o.opened {
					*all = true
				}
			} else if of := o.opened[watch]; of != nil && mask&unix.IN_OPEN != 0 {
				*of = true
			}
			at += unix.SizeofInotifyEvent + name
		}
	}
}

// eventAt is the inotify event that begins there: its watch, what has happened, and how long a name follows.
func eventAt(b []byte) (watch int, mask uint32, name int) {
	e := binary.NativeEndian
	return int(int32(e.Uint32(b))), e.Uint32(b[4:]), int(e.Uint32(b[12:]))
}
