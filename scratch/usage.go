package scratch

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// recent is for how long Full reports what Sample saw: a program that is out of space often removes what
// it wrote before it gives up.
const recent = 3 * time.Second

// lastBlocks is the number of blocks at which a file system is full: it keeps a few from the last writer.
const lastBlocks = 8

// lastWrite is how much of a quota may be left where it is full, in bytes: the kernel refuses a large write
// as a whole.
const lastWrite = 1 << 20

// Over says which limit was passed, and by how much.
type Over struct {
	What  string // "disk limit" or "volume NAME"; FilesOf before it where it has room for bytes, but for no more files
	Limit int64  // bytes
	Used  int64  // bytes
}

// FilesOf is before the name of a limit that is full of files, and not of bytes.
const FilesOf = "number of files in the "

func (o Over) String() string {
	return fmt.Sprintf("the %s of %s was passed by %s: %s are used",
		o.What, berth.SizeInWords(o.Limit), berth.SizeInWords(o.Used-o.Limit), berth.SizeInWords(o.Used))
}

// Usage is how much the area holds, in bytes of disk: writable layers and all volumes. It reads the whole
// tree where the area has no quota or file system of its own.
func (a *Area) Usage() (used int64, err error) {
	uses, err := a.measure(context.Background(), true)
	if err != nil {
		return 0, err
	}
	for _, u := range uses {
		used += u.used
	}
	return used, nil
}

// Full reports whether a limit is full, or was in the last seconds while Sample looked: which one, in
// words, its size and what is used of it, in bytes. It reads the whole tree where limits are sampled.
func (a *Area) Full() (which string, limit, used int64, full bool) {
	if len(a.rec.Parts) == 0 {
		return "", 0, 0, false
	}
	uses, err := a.measure(context.Background(), false)
	if err != nil {
		return "", 0, 0, false
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, o := range a.overs(uses, true) {
		return o.What, o.Limit, o.Used, true
	}
	return "", 0, 0, false
}

// Met are the hard limits that are full, or were when Sample looked since then: as Full, they may have a little room
// left. It looks at file systems and quotas, at no tree.
func (a *Area) Met(since time.Time) []Over {
	var met []Over
	uses, err := a.measureParts(context.Background(), a.hard(), false)
	if err != nil {
		return nil
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, u := range uses {
		if seen, ok := a.seen[u.Name]; u.full || ok && !seen.at.Before(since) {
			u.files = u.files || !u.full && seen.files
			met = append(met, Over{u.limit(a.rec.Limit), u.Size, u.used})
		}
	}
	return met
}

// hard are the parts whose limits cannot be passed.
func (a *Area) hard() (hard []part) {
	for _, p := range a.rec.Parts {
		if p.Way == berth.DiskQuota || p.Way == berth.DiskLoop {
			hard = append(hard, p)
		}
	}
	return hard
}

// FullNow are the hard limits that are full at this moment, as Met looks at them.
func (a *Area) FullNow() (full []Over) {
	uses, err := a.measureParts(context.Background(), a.hard(), false)
	if err != nil {
		return nil
	}
	for _, u := range uses {
		if u.full {
			full = append(full, Over{u.limit(a.rec.Limit), u.Size, u.used})
		}
	}
	return full
}

// Sample looks at the area until ctx is done, and calls over for each limit that is passed, at each look:
// only for limits that are sampled, since the hard ones cannot be passed. What it sees of the hard ones
// serves Full. It looks at intervals of every, or longer where looking takes long: it keeps a processor
// busy for a fifth of the time at most. The error is context.Cause(ctx).
func (a *Area) Sample(ctx context.Context, every time.Duration, over func(Over)) error {
	if len(a.rec.Parts) == 0 {
		<-ctx.Done()
		return context.Cause(ctx)
	}
	wait := every
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(wait):
		}
		start := time.Now()
		uses, err := a.measure(ctx, false)
		if err != nil && ctx.Err() == nil {
			a.log.Debug("scratch space was not measured", "dir", a.dir, "err", err)
		}
		if err == nil {
			a.note(uses)
			for _, o := range a.overs(uses, false) {
				over(o)
			}
		}
		wait = max(every, 4*time.Since(start))
	}
}

// use is what one part holds.
type use struct {
	part
	used  int64 // bytes
	full  bool  // of a hard limit
	files bool  // it is full of files, and has room for bytes
}

// sight is of a limit that was full.
type sight struct {
	at    time.Time
	files bool // as in use
}

// limit names the limit.
func (u use) limit(of int64) string {
	if u.files {
		return FilesOf + u.what(of)
	}
	return u.what(of)
}

// note remembers which hard limits are full.
func (a *Area) note(uses []use) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, u := range uses {
		if u.full {
			a.seen[u.Name] = sight{time.Now(), u.files}
		}
	}
}

// overs are the limits that are passed, or, with hard, those that are full.
func (a *Area) overs(uses []use, hard bool) []Over {
	var out []Over
	var total int64
	sampled := a.rec.SampleTotal
	for _, u := range uses {
		total += u.used
		switch u.Way {
		case berth.DiskSampled:
			sampled = true
			if u.Name != mainName && (u.used > u.Size || hard && u.used >= u.Size) {
				out = append(out, Over{u.limit(a.rec.Limit), u.Size, u.used})
			}
		case berth.DiskQuota, berth.DiskLoop:
			if seen := a.seen[u.Name]; hard && (u.full || time.Since(seen.at) < recent) {
				u.files = u.files || !u.full && seen.files
				out = append(out, Over{u.limit(a.rec.Limit), u.Size, u.used})
			}
		case berth.DiskNone:
		}
	}
	if sampled && a.rec.Limit > 0 && (total > a.rec.Limit || hard && total >= a.rec.Limit) {
		out = append(out, Over{"disk limit", a.rec.Limit, total})
	}
	return out
}

// measure reads what each part holds; without all, only what limits are compared with.
func (a *Area) measure(ctx context.Context, all bool) ([]use, error) {
	if len(a.rec.Parts) == 0 {
		used, err := du(ctx, a.dir)
		return []use{{used: used}}, err
	}
	return a.measureParts(ctx, a.rec.Parts, all)
}

func (a *Area) measureParts(ctx context.Context, parts []part, all bool) ([]use, error) {
	var q *quotas
	var out []use
	for _, p := range parts {
		u := use{part: p}
		var err error
		switch p.Way {
		case berth.DiskLoop:
			err = u.statfs(p.dir(a.dir))
		case berth.DiskQuota:
			if q == nil {
				if q, err = openQuotas(a.dir); err != nil {
					return nil, err
				}
				defer q.close()
			}
			err = u.quota(q)
		case berth.DiskSampled, berth.DiskNone:
			if all || p.Way == berth.DiskSampled || a.rec.SampleTotal {
				u.used, err = du(ctx, p.dir(a.dir))
			}
		}
		if err != nil {
			return nil, fmt.Errorf("measure %s: %w", p.dir(a.dir), err)
		}
		out = append(out, u)
	}
	return out, nil
}

func (u *use) statfs(dir string) error {
	if !isMountPoint(dir) {
		return fmt.Errorf("%w: its file system is no longer mounted", berth.ErrNotFound)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return err
	}
	// What is free for all but the kernel itself ends at Bavail.
	u.used = min(int64(st.Blocks-st.Bfree)*st.Bsize, u.Size)
	u.full = st.Bavail <= lastBlocks
	u.files = st.Ffree == 0 && !u.full
	u.full = u.full || u.files
	return nil
}

func (u *use) quota(q *quotas) error {
	used, limit, files, err := q.get(u.Project)
	if err != nil {
		return err
	}
	u.used = used
	u.full = limit > 0 && used > limit-min(lastWrite, limit/32)
	u.files = files && !u.full
	u.full = u.full || u.files
	return nil
}

// du is how much disk the tree at dir takes, in bytes: a file with several names counts once, and what
// vanishes meanwhile does not count.
func du(ctx context.Context, dir string) (int64, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, kindOf(err)
	}
	defer unix.Close(fd)
	for range 3 {
		n, err := duFD(ctx, fd)
		if !errors.Is(err, errMoved) {
			return n, err
		}
	}
	return 0, errMoved
}

func duFD(ctx context.Context, fd int) (int64, error) {
	var blocks int64
	seen := map[inode]bool{}
	add := func(parent int, name string) {
		var st unix.Stat_t
		if unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != nil {
			return
		}
		if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if seen[inodeOf(&st)] {
				return
			}
			seen[inodeOf(&st)] = true
		}
		if st.Blocks > 0 && blocks < math.MaxInt64/1024 {
			blocks += st.Blocks
		}
	}
	add(fd, "")
	err := walk(fd, visitor{
		file:  func(dir int, e dirent) error { add(dir, e.name); return nil },
		enter: func(dir int, name string) bool { add(dir, name); return false },
		halt:  func() error { return context.Cause(ctx) },
	})
	return blocks * 512, err
}
