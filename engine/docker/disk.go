package docker

import (
	"context"
	"fmt"
	"slices"
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
				o.What = sb.limitName(o.What)
				l.enforce(ctx, intent{Reason: berth.OutOfDisk, Detail: o.String()}, 0)
			})
		})
	}
	if sb.spec.Limits.Disk > 0 || sb.remote && sb.sized() {
		wg.Go(func() { l.sampleDisk(ctx, sb) })
	}
	wg.Wait()
}

// sampleDisk looks at what all of the sandbox holds.
func (l *life) sampleDisk(ctx context.Context, sb *Sandbox) {
	pause := diskEvery
	var word sparse
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		began := time.Now()
		over, err := sb.diskOver(ctx)
		if err == nil {
			if late, said := word.over(); said {
				l.e.cfg.Logger.Info("use of disk known again", "container", l.String(), "late", late)
			}
		} else if since, due := word.due(began); due && ctx.Err() == nil {
			l.e.cfg.Logger.Warn("use of disk not known", "container", l.String(), "since", since, "error", err)
		}
		if over != "" {
			l.enforce(ctx, intent{Reason: berth.OutOfDisk, Detail: over}, 0)
		}
		pause = max(diskEvery, 4*time.Since(began))
	}
}

// sized reports whether a volume has a limit of its own.
func (s *Sandbox) sized() bool {
	return slices.ContainsFunc(s.spec.Volumes, func(v berth.Volume) bool { return v.Size > 0 })
}

// diskOver says which limit was passed; "" if none. Of volumes of this machine package scratch keeps their own.
func (s *Sandbox) diskOver(ctx context.Context) (string, error) {
	var sizes map[string]int64
	if s.remote && s.sized() {
		var err error
		if sizes, err = s.e.sizes.of(ctx, s.e); err != nil {
			return "", err
		}
		for i, v := range s.spec.Volumes {
			if used := sizes[(&remote{s: s}).volume(volumeName(i))]; v.Size > 0 && used > v.Size {
				return fmt.Sprintf("volume %s was passed: its limit is %s, %s are used", v.Path, berth.SizeInWords(v.Size), berth.SizeInWords(used)), nil
			}
		}
	}
	limit := s.spec.Limits.Disk
	if limit <= 0 {
		return "", nil
	}
	used, err := s.diskUsed(ctx)
	if err != nil || used <= limit {
		return "", err
	}
	return fmt.Sprintf("the disk limit of %s was passed: %s are used", berth.SizeInWords(limit), berth.SizeInWords(used)), nil
}

// diskUsed is what the sandbox's volumes, the writable layers of its containers and the files beside them hold, in bytes.
func (s *Sandbox) diskUsed(ctx context.Context) (int64, error) {
	cctx, cancel := s.e.call(ctx)
	defer cancel()
	res, err := s.e.listContainers(cctx, client.ContainerListOptions{
		All: true, Size: true, Filters: s.e.filter().Add("label", LabelSandbox+"="+s.spec.ID),
	})
	if err != nil {
		return 0, wrap(cctx, "size of containers", err)
	}
	used, err := s.daemonFilesUsed(ctx, res.Items)
	if err != nil {
		return 0, err
	}
	used += s.loneUsed()
	for _, c := range res.Items {
		used += c.SizeRw
	}
	if s.remote && len(s.spec.Volumes) > 0 {
		sizes, err := s.e.sizes.of(ctx, s.e)
		if err != nil {
			return 0, err
		}
		for i := range s.spec.Volumes {
			used += sizes[(&remote{s: s}).volume(volumeName(i))]
		}
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

// volumeSizes is what the daemon's volumes hold, which it looks at all of for an answer: one is for all who ask within
// diskEvery.
type volumeSizes struct {
	mu    sync.Mutex
	at    time.Time
	sizes map[string]int64 // bytes, by name
}

const (
	dfBusy  = "disk usage operation is already running" // of another process
	dfPause = 100 * time.Millisecond

	// lastLook bounds the look at the disk of what has ended well: a daemon that does not answer keeps no task from its end.
	lastLook = 20 * time.Second
)

func (v *volumeSizes) of(ctx context.Context, e *Engine) (map[string]int64, error) {
	for !v.mu.TryLock() {
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("size of volumes: %w", context.Cause(ctx))
		case <-time.After(dfPause):
		}
	}
	defer v.mu.Unlock()
	if v.sizes != nil && time.Since(v.at) < diskEvery/2 {
		return v.sizes, nil
	}
	ctx, cancel := e.call(ctx)
	defer cancel()
	began := time.Now()
	res, err := e.api().DiskUsage(ctx, client.DiskUsageOptions{Volumes: true, Verbose: true})
	for err != nil && strings.Contains(err.Error(), dfBusy) && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(dfPause):
		}
		res, err = e.api().DiskUsage(ctx, client.DiskUsageOptions{Volumes: true, Verbose: true})
	}
	if err != nil {
		return nil, wrap(ctx, "size of volumes", err)
	}
	sizes := map[string]int64{}
	for _, vol := range res.Volumes.Items {
		if vol.UsageData != nil && vol.UsageData.Size > 0 {
			sizes[vol.Name] = vol.UsageData.Size
		}
	}
	v.at, v.sizes = began, sizes
	return sizes, nil
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
	if sb.remote {
		if over, err := sb.diskOver(l.e.ctx); err == nil && over != "" {
			return over
		}
	}
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

// diskPassed says which limit of disk that only looks keep was passed; "" if none. A look may have been too early: what
// lies above its limit at the end was written all the same.
func (l *life) diskPassed() string {
	l.mu.Lock()
	sb := l.sb
	l.mu.Unlock()
	if sb == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(l.e.ctx, lastLook)
	defer cancel()
	if over, err := sb.diskOver(ctx); err == nil && over != "" {
		return over
	}
	if sb.area == nil || sb.area.Enforcement() != berth.DiskSampled {
		return ""
	}
	if what, limit, used, full := sb.area.Full(); full && used > limit {
		return fmt.Sprintf("the %s of %s was passed: %s are used", sb.limitName(what), berth.SizeInWords(limit), berth.SizeInWords(used))
	}
	return ""
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
	if of, ok := strings.CutPrefix(what, scratch.FilesOf); ok {
		return scratch.FilesOf + s.limitName(of)
	}
	for i, v := range s.spec.Volumes {
		if what == "volume "+scratch.VolumeName(i, v.Path) {
			return "volume " + v.Path
		}
	}
	return what
}
