package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/fds"
)

// Pool gives groups out, and takes those of ended containers back. On v1 and hybrid hosts, where a group is
// a directory in each of several hierarchies, it keeps some for the next container; on v2, where peaks
// cannot be set back, it only removes them beside the way. It may be used concurrently.
type Pool struct {
	host     *Host
	instance string
	work     chan *Group
	done     sync.WaitGroup
	made     atomic.Int64

	mu     sync.Mutex
	parked []*Group
	size   int
	closed bool
}

// What may still be charged to a parked group, and to its next container therefore.
const (
	// maxResidue is how many bytes that an ended container used may be left: a little page cache, and memory of the
	// kernel that it is about to free.
	maxResidue = 384 << 10
	// reserve is how much the kernel charges in advance on each CPU where a group used memory, 64 pages. It is used by
	// nobody: the next container's first pages on that CPU come from it, as a new group's come from its own.
	reserve = 256 << 10
	// maxReserves is how many of them may be left, however many CPUs there are.
	maxReserves = 4
)

// maxCharged is how many bytes may be charged to a parked group in all.
func maxCharged() int64 { return maxResidue + int64(min(runtime.NumCPU(), maxReserves))*reserve }

// NewPool makes a pool of the instance's groups that parks up to size of them. Close it.
func (h *Host) NewPool(instance string, size int) *Pool {
	p := &Pool{host: h, instance: instance, size: size, work: make(chan *Group, 256)}
	if h.version == V2 {
		p.size = 0
	}
	for range 2 { // one may wait for a slow kernel
		p.done.Go(func() {
			for g := range p.work {
				p.recycle(g)
			}
		})
	}
	return p
}

// Get gives out a group that is as a new one. Its Path is the pool's choice; that of spec counts only where
// the pool has none that fits: one with another parent is always made, and one with other than the default devices
// where their rules would be the group's own. Errors are those of Make.
func (p *Pool) Get(spec Spec) (*Group, error) {
	if spec.Parent != "" || len(spec.Devices) > 0 && !p.host.sharesRules() || p.size == 0 {
		return p.host.Make(spec)
	}
	set, err := parseRules(spec.Devices)
	if err := errors.Join(spec.check(), p.host.supports(spec.Limits), err); err != nil {
		return nil, err
	}
	for {
		g := p.pop()
		if g == nil {
			return p.host.makeNamed(spec, fmt.Sprintf("%s/_pool-%d-%d", p.instance, os.Getpid(), p.made.Add(1)))
		}
		// A group that somebody removed meanwhile, say.
		if err := errors.Join(g.Set(spec.Limits), g.ruleBy(spec, set)); err != nil {
			_ = p.remove(g)
			continue
		}
		return g, nil
	}
}

// Put takes a group back when its container has ended and its usage was read; the group must not be used
// afterwards. What is still in it is killed. clean says that nothing in the container could write to cgroup
// files: it had neither CAP_SYS_ADMIN nor a cgroup file system of the host; only such a group is used again.
func (p *Pool) Put(g *Group, clean bool) {
	g.reuse = g.reuse && clean
	p.mu.Lock()
	closed := p.closed
	if !closed {
		select {
		case p.work <- g:
			p.mu.Unlock()
			return
		default: // more than the workers can do: the caller helps
		}
	}
	p.mu.Unlock()
	_ = p.remove(g)
}

// Close removes the parked groups and waits until those that were put back are gone.
func (p *Pool) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	close(p.work)
	p.mu.Unlock()
	p.done.Wait()
	var errs []error
	for g := p.pop(); g != nil; g = p.pop() {
		errs = append(errs, p.remove(g))
	}
	return errors.Join(errs...)
}

func (p *Pool) pop() *Group {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.parked)
	if n == 0 {
		return nil
	}
	g := p.parked[n-1]
	p.parked = p.parked[:n-1]
	return g
}

// recycle parks a group, or removes it.
func (p *Pool) recycle(g *Group) {
	p.mu.Lock()
	full := p.closed || len(p.parked) >= p.size
	p.mu.Unlock()
	if !full && g.reuse && !g.spent.Load() {
		p.host.holders.add(g)
		patience := 3
		if len(p.work) > 0 { // others wait for this worker
			patience = 0
		}
		if g.reset(patience) == nil {
			p.mu.Lock()
			defer p.mu.Unlock()
			p.parked = append(p.parked, g) // two workers may exceed the size by one
			return
		}
	}
	_ = p.remove(g)
}

func (p *Pool) remove(g *Group) error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	busy, err := g.Populated()
	if busy || err != nil {
		if err := g.Kill(ctx); err != nil {
			return err
		}
	}
	return g.Remove(ctx)
}

// errDirty says that a group is not as a new one.
var errDirty = errors.New("the cgroup is not as a new one")

// reset makes a group as a new one, or errs: it has no processes and no children, its limits are those that
// it was given, its peaks start at what is left of the last container, at most maxCharged, and its counters
// are remembered, to be subtracted. patience is how often the kernel is given a moment to free what it is about to.
func (g *Group) reset(patience int) error {
	if err := g.deserted(); err != nil {
		return err
	}
	if err := g.holds(); err != nil {
		return err
	}
	if err := g.resetMemory(patience); err != nil {
		return err
	}
	if err := g.renewPIDs(); err != nil {
		return err
	}
	return g.remember()
}

// deserted checks that the group has no processes and no children.
func (g *Group) deserted() error {
	renewed, err := g.renewed()
	if err != nil {
		return err
	}
	for _, dir := range g.dirs() {
		if renewed && dir == g.v1[pids] {
			continue // it can be removed only if it has none
		}
		if dir == g.v2 {
			if n, _, err := g.readKey(dir+"/cgroup.events", "populated"); err != nil || n > 0 {
				return errors.Join(errDirty, err)
			}
		} else if b, err := g.procs(dir); err != nil || len(b) > 0 {
			return errors.Join(errDirty, err)
		}
		// Not before: of a directory that was removed, and is still open, only this can be asked without an error.
		if leaf, err := g.leaf(dir); err != nil || !leaf {
			return errors.Join(errDirty, err)
		}
	}
	return nil
}

// holds checks what a container would have had to change to escape a limit, or to burden the next.
func (g *Group) holds() error {
	q, period := quota(g.limits.CPU)
	if g.limits.CPU == 0 {
		q = -1
	}
	limit := g.limits.Memory &^ int64(os.Getpagesize()-1)
	for _, f := range []struct {
		c    controller
		name string
		want int64
	}{
		{cpu, "cpu.cfs_quota_us", q},
		{cpu, "cpu.cfs_period_us", period},
		{cpu, "cpu.shares", 1024},
		{memory, "memory.limit_in_bytes", limit},
		{memory, "memory.memsw.limit_in_bytes", limit},
		{blkio, "notify_on_release", 0},
		{memory, "notify_on_release", 0},
	} {
		if g.v1[f.c] == "" || f.want == 0 && f.name[0] == 'm' {
			continue // unlimited memory is written as a number that depends on the kernel: see setMemory
		}
		got, err := g.readSigned(g.v1[f.c] + "/" + f.name)
		if optional(err) != nil || err == nil && got != f.want {
			return fmt.Errorf("%w: %s is %d: %w", errDirty, f.name, got, err)
		}
	}
	return nil
}

// resetMemory reclaims what the last container left in the page cache, so that the next is not billed for it, and
// has the peaks start at what is left.
func (g *Group) resetMemory(patience int) error {
	dir := g.v1[memory]
	if dir == "" {
		return nil
	}
	if err := g.unburden(dir, patience); err != nil {
		return err
	}
	disabled, _, err := g.readKey(dir+"/memory.oom_control", "oom_kill_disable")
	if err != nil || disabled != 0 {
		return errors.Join(errDirty, err)
	}
	return errors.Join(
		g.zero(dir+"/memory.max_usage_in_bytes"), g.zero(dir+"/memory.failcnt"),
		optional(g.zero(dir+"/memory.memsw.max_usage_in_bytes")), optional(g.zero(dir+"/memory.memsw.failcnt")),
	)
}

// unburden reclaims what a v1 memory cgroup has more of than may be left, or errs.
func (g *Group) unburden(dir string, patience int) error {
	for try := 0; ; try++ {
		charged, err := g.readInt(dir + "/memory.usage_in_bytes")
		if err != nil {
			return err
		}
		burdened, err := g.burdened(dir, charged)
		switch {
		case err != nil:
			return err
		case !burdened:
			return nil
		case charged > 256<<20: // removing it is quicker than reclaiming it
			return errDirty
		case try == 0:
			if err := write(dir+"/memory.force_empty", "0"); err != nil {
				return err
			}
		case try <= patience:
			time.Sleep(10 * time.Millisecond) // for RCU, by which the kernel frees what processes had, and files
		default:
			return errDirty
		}
	}
}

// burdened reports whether more of the last container is charged to a v1 memory cgroup than may be left. To reclaim
// takes far longer than to look, most of all where there is nothing to be found: after a short command most of what
// is charged are reserves.
func (g *Group) burdened(dir string, charged int64) (bool, error) {
	if charged <= maxResidue || charged > maxCharged() {
		return charged > maxResidue, nil
	}
	// The kernel adds up its counts of pages once there are enough of them, so a little page cache may be missing
	// in memory.stat: how much, maxCharged bounds. The other count is exact.
	kernel, err := g.readInt(dir + "/memory.kmem.usage_in_bytes")
	if err != nil {
		return true, optional(err)
	}
	stat, err := g.read(dir + "/memory.stat")
	if err != nil {
		return true, err
	}
	left := kernel
	for _, key := range []string{"cache", "rss"} {
		n, ok, err := parseKey(stat, key)
		if err != nil || !ok {
			return true, err
		}
		left += n
	}
	return left > maxResidue, nil
}

// renewed reports whether renewPIDs makes the pids cgroup anew.
func (g *Group) renewed() (bool, error) {
	dir := g.v1[pids]
	if dir == "" {
		return false, nil
	}
	peak, err := g.figure(dir + "/pids.peak")
	return peak != nil && !contains(g.v1[:pids], dir) && !contains(g.v1[pids+1:], dir), err
}

// renewPIDs makes the pids cgroup anew where it has a peak, which cannot be set back. Where it cannot, remember finds
// the peak.
func (g *Group) renewPIDs() error {
	if renewed, err := g.renewed(); err != nil || !renewed {
		return err
	}
	dir := g.v1[pids]
	g.held.forget(dir)
	if err := unix.Rmdir(dir); err != nil {
		return &os.PathError{Op: "rmdir", Path: dir, Err: err}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	fd, err := open(dir+"/tasks", unix.O_WRONLY)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fds.Aside(fd)), dir+"/tasks")
	g.mu.Lock()
	defer g.mu.Unlock()
	for i, f := range g.join {
		if f.Name() == file.Name() {
			_ = f.Close()
			g.join[i] = file
			return g.setPIDs(g.limits.PIDs)
		}
	}
	_ = file.Close()
	return errors.Join(errDirty, berth.ErrNotFound)
}

// remember keeps the counters as they are now, and finds the peaks where they shall start. With that all is open
// that the end of the next container is told from.
func (g *Group) remember() error {
	now, err := g.count()
	kills, err2 := g.kills()
	forks, err3 := g.forks()
	now.kills, now.forks = kills, forks
	g.base = now
	peaks, err4 := g.peaks()
	if peaks.PeakMemory != nil && *peaks.PeakMemory > maxCharged() || peaks.PeakPIDs != nil && *peaks.PeakPIDs > 0 {
		return errDirty
	}
	return errors.Join(err, err2, err3, err4)
}
