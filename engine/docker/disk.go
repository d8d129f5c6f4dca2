package docker

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/scratch"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// diskEvery is how often the use of disk is looked at; a look takes a fifth of the time at most.
const diskEvery = time.Second

// keepDisk ends the container when a disk limit of its sandbox is passed, until ctx ends.
func (l *life) keepDisk(ctx context.Context) {
	l.mu.Lock()
	sb := l.sb
	l.mu.Unlock()
	var wg sync.WaitGroup
	if sb.area != nil && sb.area.Enforcement() != berth.DiskNone {
		wg.Go(func() {
			_ = sb.area.Sample(ctx, diskEvery, func(o scratch.Over) {
				l.enforce(ctx, intent{Reason: berth.OutOfDisk, Detail: sb.limitName(o.What) + " was passed: " + o.String()}, 0)
			})
		})
	}
	if sb.spec.Limits.Disk > 0 {
		wg.Go(func() { l.sampleDisk(ctx, sb) })
	}
	wg.Wait()
}

// sampleDisk looks at what all of the sandbox holds.
func (l *life) sampleDisk(ctx context.Context, sb *Sandbox) {
	limit, pause := sb.spec.Limits.Disk, diskEvery
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		began := time.Now()
		used, err := sb.diskUsed(ctx)
		switch {
		case err != nil && ctx.Err() == nil:
			l.e.cfg.Logger.Warn("use of disk not known", "container", l.String(), "error", err)
		case used > limit:
			l.enforce(ctx, intent{
				Reason: berth.OutOfDisk,
				Detail: fmt.Sprintf("the disk limit of %s was passed: %s are used", berth.SizeInWords(limit), berth.SizeInWords(used)),
			}, 0)
		}
		pause = max(diskEvery, 4*time.Since(began))
	}
}

// diskUsed is what the sandbox's volumes and the writable layers of its containers hold, in bytes.
func (s *Sandbox) diskUsed(ctx context.Context) (int64, error) {
	cctx, cancel := s.e.call(ctx)
	defer cancel()
	res, err := s.e.api.ContainerList(cctx, client.ContainerListOptions{
		All: true, Size: true, Filters: s.e.filter().Add("label", LabelSandbox+"="+s.spec.ID),
	})
	if err != nil {
		return 0, wrap(cctx, "size of containers", err)
	}
	var used int64
	for _, c := range res.Items {
		used += c.SizeRw
	}
	if s.area != nil {
		vols, err := s.area.Usage()
		if err != nil {
			return 0, err
		}
		used += vols
	}
	return used, nil
}

// mayQuota: the daemon has not said yet that it cannot limit writable layers.
func (e *Engine) mayQuota() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return !e.unlimited
}

// noQuota notes that the daemon cannot limit writable layers: berth alone looks at them.
func (e *Engine) noQuota(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.unlimited {
		e.cfg.Logger.Info("the daemon cannot limit writable layers; berth looks at them each second", "because", err)
	}
	e.unlimited = true
}

// over says that the disk limit of the whole is full, or was passed since it was last looked at; "" if not.
func (l *life) over(sb *Sandbox) string {
	limit := sb.spec.Limits.Disk
	if limit <= 0 {
		return ""
	}
	used, err := sb.diskUsed(l.e.ctx)
	if err != nil || used <= limit-min(leastRoom, limit/32) {
		return ""
	}
	return fmt.Sprintf("the disk limit of %s is full: %s are used", berth.SizeInWords(limit), berth.SizeInWords(used))
}

// diskFull says which hard limit is full; "" if none.
func (l *life) diskFull() string {
	l.mu.Lock()
	sb := l.sb
	l.mu.Unlock()
	if full := l.e.daemonFull(); full != "" || sb == nil {
		return full
	}
	if full := l.over(sb); full != "" || sb.area == nil {
		return full
	}
	what, limit, used, full := sb.area.Full()
	if !full {
		return ""
	}
	return fmt.Sprintf("the %s of %s is full: %s are used", sb.limitName(what), berth.SizeInWords(limit), berth.SizeInWords(used))
}

// leastRoom is what a file system has left, in bytes, where it is full: a large write is refused as a whole.
const leastRoom = 1 << 20

// daemonFull says that the file system of the daemon's writable layers is full; "" if it is not, or not of this host.
func (e *Engine) daemonFull() string {
	full, _ := e.daemonRoom()
	return full
}

// daemonRoom is daemonFull, and whether that can be seen from here.
func (e *Engine) daemonRoom() (full string, seen bool) {
	e.mu.Lock()
	h := e.host
	e.mu.Unlock()
	var st unix.Statfs_t
	if h == nil || h.root == "" || unix.Statfs(h.root, &st) != nil {
		return "", false
	}
	if left := int64(st.Bavail) * st.Bsize; left >= leastRoom {
		return "", true
	}
	return fmt.Sprintf("the daemon's disk is full: the file system of %s, of %s", h.root, berth.SizeInWords(int64(st.Blocks)*st.Bsize)), true
}

// limitName names a limit of the area by the volume's path.
func (s *Sandbox) limitName(what string) string {
	if n, ok := strings.CutPrefix(what, "volume v"); ok {
		if i, err := strconv.Atoi(n); err == nil && i < len(s.spec.Volumes) {
			return "volume " + s.spec.Volumes[i].Path
		}
	}
	return what
}
