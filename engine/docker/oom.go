package docker

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/moby/moby/api/types/events"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// oomWatch sees that the kernel kills processes of a container at its memory limit. Podman 4 never says so: conmon notes
// it in a file of its working directory, and Podman looks for that in the container's.
//
// With cgroup v2 the count of the step's own cgroup is read at the end. With v1 the count is the container's cgroup's
// alone, which is gone by then, so its events are listened to from before the start on.
type oomWatch struct {
	control string // the container's memory.oom_control
	done    chan struct{}
	events  atomic.Uint64
	killed  atomic.Bool
}

const (
	oomSettle = 200 * time.Millisecond // from the event to the count
	oomLast   = 2 * time.Second        // from the end of a container to that of its cgroup's events
)

// watchOOM begins to watch where the daemon does not.
func (l *life) watchOOM(r *record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	dir := filepath.Join(cgroupRoot, "memory", r.Cgroup, "libpod-"+l.id)
	if !exists(dir) { // Docker's, whose own word may come after that of the end
		dir = filepath.Join(cgroupRoot, "memory", r.Cgroup, l.id)
	}
	if l.oom != nil || r.Cgroup == "" || !exists(filepath.Join(dir, "memory.oom_control")) {
		return
	}
	w := &oomWatch{control: filepath.Join(dir, "memory.oom_control"), done: make(chan struct{})}
	events, err := listenOOM(dir, w.control)
	if err != nil {
		l.e.cfg.Logger.Warn("ends by the memory limit will not be told", "container", l.String(), "error", err)
		return
	}
	kills, _ := w.kills() // before it was listened to
	w.killed.Store(kills > 0)
	l.oom = w
	l.e.wg.Go(func() {
		stop := make(chan struct{})
		l.e.wg.Go(func() {
			select {
			case <-l.e.ctx.Done():
			case <-stop:
			}
			_ = events.Close()
		})
		w.run(events)
		close(stop)
	})
}

// listenOOM has the kernel count in a descriptor: each time that the limit cannot be kept without a kill, and once when
// the cgroup goes.
func listenOOM(dir, control string) (*os.File, error) {
	f, err := os.Open(control) // a cgroup's file
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, err
	}
	line := strconv.Itoa(fd) + " " + strconv.FormatUint(uint64(f.Fd()), 10)
	if err := os.WriteFile(filepath.Join(dir, "cgroup.event_control"), []byte(line), 0o600); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "oom events"), nil
}

// run reads events until a kill is known or the cgroup is gone.
func (w *oomWatch) run(events *os.File) {
	defer close(w.done)
	var n [8]byte
	for !w.killed.Load() {
		if _, err := events.Read(n[:]); err != nil {
			return
		}
		w.events.Add(binary.NativeEndian.Uint64(n[:]))
		for end := time.Now().Add(oomSettle); !w.killed.Load() && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			kills, there := w.kills()
			w.killed.Store(kills > 0)
			if !there {
				// The last event was the cgroup's end.
				w.killed.Store(w.events.Load() > 1)
				_ = events.SetReadDeadline(time.Now().Add(oomSettle))
				break
			}
		}
	}
}

// kills reads the count.
func (w *oomWatch) kills() (n int, there bool) {
	raw, err := os.ReadFile(w.control)
	return countOf(raw, "oom_kill"), err == nil
}

func countOf(raw []byte, name string) int {
	for s := bufio.NewScanner(bytes.NewReader(raw)); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), name+" "); ok {
			n, _ := strconv.Atoi(v)
			return n
		}
	}
	return 0
}

// outOfMemory reports whether the kernel has killed a process of an ended container at its limit, where the daemon does
// not say. ok: the command ended well.
func (l *life) outOfMemory(r *record, ok bool) bool {
	if r.Cgroup == "" || r.Limits.Memory == 0 {
		return false
	}
	if raw, err := os.ReadFile(filepath.Join(cgroupRoot, r.Cgroup, "memory.events")); err == nil {
		return countOf(raw, "oom_kill") > 0
	}
	l.mu.Lock()
	w := l.oom
	l.mu.Unlock()
	if w == nil {
		return false
	}
	if ok { // not worth a wait: what was killed before the end is known
		return w.killed.Load() || w.events.Load() > 1
	}
	if kills, there := w.kills(); there {
		return kills > 0
	}
	select {
	case <-w.done:
		return w.killed.Load()
	case <-time.After(oomLast):
		return false
	}
}

const (
	// lateMax is how much later than the end of a container a daemon may tell that its memory was out, and lateKilled of one that was killed.
	lateMax    = time.Second
	lateKilled = 3 * time.Second
	// blindFor is for how long from its start a container's memory may be out and no daemon ever tell: containerd begins to listen to
	// the kernel for it when it has started it.
	blindFor = time.Second
)

// onlyTold reports whether nobody but the daemon can say that the container's memory was out.
func (l *life) onlyTold(r *record) bool {
	return r.Limits.Memory > 0 && (r.Cgroup == "" || l.isRemote())
}

// toldLate reports whether the daemon says that the container reached its memory limit, where it does not say so of its end: it may hear
// of the end first, and tells of the other then as of something that has happened. Only for a container that failed is that waited for. On this
// machine a process that was killed, and is not the one that the container ends with, was so well before the end.
func (l *life) toldLate(r *record, code int, past func() history) bool {
	if !l.onlyTold(r) || !l.isRemote() && code != 128+int(unix.SIGKILL) {
		return false
	}
	if past != nil && past().oom {
		return true
	}
	l.mu.Lock()
	id := l.id
	l.mu.Unlock()
	late := lateMax
	if code == 128+int(unix.SIGKILL) {
		late = lateKilled
	}
	for end := time.Now().Add(late); code != 0; {
		ctx, cancel := l.e.call(l.e.ctx)
		res, err := l.e.api().ContainerInspect(ctx, id, client.ContainerInspectOptions{})
		told := err == nil && res.Container.State != nil && res.Container.State.OOMKilled
		if err == nil && !told {
			err = l.e.events(ctx, r.Created.Add(-time.Minute), client.Filters{}.Add("type", "container").Add("container", id).Add("event", "oom"), func(events.Message) { told = true })
		}
		cancel()
		if told || err != nil || time.Now().After(end) {
			return told
		}
		select {
		case <-time.After(lateMax / 10):
		case <-l.e.ctx.Done():
			return false
		}
	}
	return false
}
