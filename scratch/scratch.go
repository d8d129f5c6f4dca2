// Package scratch lends disk space to one task: a directory for its writable layers and directories for its
// volumes, with limits that hold.
//
// It is not where images or logs live, and it does not choose limits.
package scratch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Config says how much space is lent, and for what. The zero value is space without a limit.
type Config struct {
	// Limit bounds everything in the area together, in bytes. 0 is no limit.
	Limit int64
	// Volumes are the directories besides the one for writable layers.
	Volumes []Volume
	// Prefer are the ways to keep the limits that may be used, the best first: berth.DiskQuota,
	// berth.DiskLoop, berth.DiskSampled. nil is all three, in this order. Where none works, Open fails.
	Prefer []berth.DiskEnforcement
	// Thin is for whom quotas would not hold: where the file system has some, a loop device whose image has no room gives
	// way to what else is preferred, as a quota takes no room either.
	Thin bool
	// Mkfs is the program that makes ext4 file systems; "" is mkfs.ext4, wherever it is.
	Mkfs string
	// Spare, where not nil, names a directory that may become the area's with what is in it, or answers "". It is used if it
	// lies on the same file system, and only where there is no limit.
	Spare func() string
	// Logger is told why a way was not used; nil is silent.
	Logger *slog.Logger
}

// Volume is a directory in an area.
type Volume struct {
	Name string // one path element of a-z, A-Z, 0-9, "-", "_" and "."
	Size int64  // bytes; 0 is bounded only by Config.Limit
}

// Area is the space of one task. Its methods may be called concurrently.
type Area struct {
	dir string
	log *slog.Logger
	rec record

	mu     sync.Mutex
	closed bool
	seen   map[string]sight // when a part was last seen full, by Sample
}

// The names in an area's directory.
const (
	mainName     = "main"
	volumePrefix = "volume-"
	imageSuffix  = ".img"
)

// Open makes an area at dir, which must not be there yet and whose parent must. It fails with ErrConflict
// if dir is there, ErrExhausted if the file system cannot hold so much, ErrInvalid for a bad Config, and
// ErrUnsupported if no way in Config.Prefer works here. After an error nothing is left.
//
// Mounts are made in the caller's mount namespace; they vanish with it.
func Open(ctx context.Context, dir string, cfg Config) (*Area, error) {
	if err := cfg.check(dir); err != nil {
		return nil, err
	}
	if err := cfg.makeDir(dir); err != nil {
		return nil, fmt.Errorf("open scratch space: %w", kindOf(err))
	}
	a := &Area{dir: dir, log: logger(cfg.Logger), seen: map[string]sight{}}
	if err := a.open(ctx, cfg); err != nil {
		return nil, errors.Join(err, a.Close())
	}
	return a, nil
}

func (c Config) makeDir(dir string) error {
	if parts, _ := c.split(); c.Spare != nil && len(parts) == 0 {
		if spare := c.Spare(); spare != "" {
			err := unix.Renameat2(unix.AT_FDCWD, spare, unix.AT_FDCWD, dir, unix.RENAME_NOREPLACE)
			if err == nil {
				return nil
			}
			_ = Remove(spare)
		}
	}
	return os.Mkdir(dir, 0o700)
}

// Reopen finds the area that Open made at dir, in this process or an earlier one. What was mounted and is
// no longer is mounted again, unless the host was started anew since then: file systems of areas do not
// survive that, and Volume fails. ErrNotFound if there is none.
func Reopen(_ context.Context, dir string, log *slog.Logger) (*Area, error) {
	if _, err := os.Lstat(dir); err != nil {
		return nil, fmt.Errorf("reopen scratch space: %w", kindOf(err))
	}
	a := &Area{dir: dir, log: logger(log), seen: map[string]sight{}}
	var err error
	if a.rec, err = readRecord(dir); err != nil {
		return nil, err
	}
	for _, p := range a.rec.Parts {
		if p.Way != berth.DiskLoop {
			continue
		}
		if err := remountLoop(dir, p, a.rec.Boot); err != nil {
			a.log.Warn("scratch space cannot be mounted again", "dir", dir, "part", p.Name, "err", err)
		}
	}
	return a, nil
}

// Dir is the directory for writable layers.
func (a *Area) Dir() string {
	if len(a.rec.Parts) == 0 {
		return a.dir
	}
	return filepath.Join(a.dir, mainName)
}

// Volume is the directory of a volume that was named in Config. ErrNotFound if there is none.
func (a *Area) Volume(name string) (string, error) {
	if !validName(name) {
		return "", fmt.Errorf("volume %q: %w", name, berth.ErrNotFound)
	}
	p, ok := a.rec.part(name)
	dir := filepath.Join(a.Dir(), volumePrefix+name)
	if ok {
		dir = p.dir(a.dir)
	}
	if main := a.main(); !ok {
		p = main
	}
	if p.Way == berth.DiskLoop && !isMountPoint(p.dir(a.dir)) {
		return "", fmt.Errorf("volume %s: %w: its file system is not mounted", name, berth.ErrNotFound)
	}
	if info, err := os.Lstat(dir); err != nil || !info.IsDir() {
		return "", fmt.Errorf("volume %s: %w", name, berth.ErrNotFound)
	}
	return dir, nil
}

// main is the part that holds writable layers and volumes without a size; zero without limits.
func (a *Area) main() part {
	if len(a.rec.Parts) == 0 {
		return part{}
	}
	return a.rec.Parts[0]
}

// Enforcement says how the limits are kept; where they are kept in several ways, the weakest.
func (a *Area) Enforcement() berth.DiskEnforcement {
	weakest := berth.DiskNone
	for _, p := range a.rec.Parts {
		weakest = weaker(weakest, p.Way)
	}
	if a.rec.SampleTotal {
		weakest = berth.DiskSampled
	}
	return weakest
}

// Close removes everything of the area: files, mounts, loop devices, quotas. No error if it is gone.
// Nothing may be using the area any more.
func (a *Area) Close() error {
	if err := a.release(); err != nil {
		return err
	}
	return Remove(a.dir)
}

// Discard takes the area away at once and leaves the slow part of it, removing the files, to the function
// it returns. The directory trash, on the same file system, holds them until then; see Sweep.
func (a *Area) Discard(trash string) (remove func() error, err error) {
	if err := a.release(); err != nil {
		return nil, err
	}
	return Discard(a.dir, trash)
}

func (a *Area) open(ctx context.Context, cfg Config) error {
	if err := a.lend(ctx, cfg); err != nil {
		return err
	}
	for _, v := range cfg.Volumes {
		if _, own := a.rec.part(v.Name); own {
			continue
		}
		if err := os.Mkdir(filepath.Join(a.Dir(), volumePrefix+v.Name), 0o755); err != nil {
			return fmt.Errorf("open scratch space: %w", kindOf(err))
		}
	}
	return nil
}

// lend makes the parts of the area, each in the best way that works for all of them.
func (a *Area) lend(ctx context.Context, cfg Config) error {
	parts, sampleTotal := cfg.split()
	if len(parts) == 0 {
		return nil
	}
	if err := checkRoom(a.dir, cfg); err != nil {
		return err
	}
	ways := cfg.Prefer
	if ways == nil {
		ways = []berth.DiskEnforcement{berth.DiskQuota, berth.DiskLoop, berth.DiskSampled}
	}
	var whys []error
	for i, way := range ways {
		err := a.lendBy(ctx, way, cfg, parts, sampleTotal)
		if err == nil {
			a.say(way, whys)
			return nil
		}
		thin := cfg.Thin && way == berth.DiskLoop && i+1 < len(ways) && a.hasQuotas()
		if errors.Is(err, berth.ErrExhausted) && !thin || errors.Is(err, berth.ErrInvalid) || ctx.Err() != nil {
			return err
		}
		whys = append(whys, fmt.Errorf("%s: %w", way, err))
	}
	return &fault{
		text: "scratch space at " + a.dir + ": its limits cannot be kept here: " + oneLine(whys),
		kind: berth.ErrUnsupported,
	}
}

// hasQuotas reports whether the area's file system has quotas.
func (a *Area) hasQuotas() bool {
	q, err := openQuotas(a.dir)
	if err != nil {
		return false
	}
	q.close()
	return true
}

// say tells why better ways were not used.
func (a *Area) say(way berth.DiskEnforcement, whys []error) {
	switch {
	case len(whys) == 0:
	case way == berth.DiskSampled:
		a.log.Warn("disk limits are only sampled", "dir", a.dir, "because", oneLine(whys))
	default:
		a.log.Debug("disk limits are kept another way", "dir", a.dir, "way", string(way), "because", oneLine(whys))
	}
}

// lendBy makes all parts in one way, or none.
func (a *Area) lendBy(ctx context.Context, way berth.DiskEnforcement, cfg Config, parts []part, sampleTotal bool) error {
	a.rec = record{Version: recordVersion, Boot: bootID(), Limit: cfg.Limit, SampleTotal: sampleTotal}
	for _, p := range parts {
		if p.Way = way; p.Size == 0 || p.Name == mainName && sampleTotal {
			p.Way = berth.DiskNone
		}
		a.rec.Parts = append(a.rec.Parts, p)
	}
	var q *quotas
	if way == berth.DiskQuota {
		var err error
		if q, err = openQuotas(a.dir); err != nil {
			return err
		}
		defer q.close()
	}
	if err := a.lendParts(ctx, way, cfg.Mkfs, q); err != nil {
		return errors.Join(err, a.unlend())
	}
	return nil
}

func (a *Area) lendParts(ctx context.Context, way berth.DiskEnforcement, mkfs string, q *quotas) error {
	if way == berth.DiskQuota {
		// The ids are written down before they have limits, so that a crash leaves none behind.
		unlock, err := q.choose(a.rec.Parts)
		if err != nil {
			return err
		}
		defer unlock()
	}
	if err := writeRecord(a.dir, a.rec); err != nil {
		return err
	}
	for _, p := range a.rec.Parts {
		dir := p.dir(a.dir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return kindOf(err)
		}
		var err error
		switch p.Way {
		case berth.DiskQuota:
			err = q.set(dir, p.Project, p.Size)
		case berth.DiskLoop:
			err = makeLoop(ctx, a.dir, mkfs, p)
		case berth.DiskSampled, berth.DiskNone:
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// unlend undoes lendParts, however far it came.
func (a *Area) unlend() error {
	err := a.release()
	a.mu.Lock()
	a.closed = false
	a.mu.Unlock()
	for _, p := range a.rec.Parts {
		err = errors.Join(err, Remove(p.dir(a.dir)), Remove(p.image(a.dir)))
	}
	err = errors.Join(err, Remove(filepath.Join(a.dir, recordName)))
	a.rec = record{}
	return err
}

// release gives back what of the area is not a file: mounts, loop devices, quotas.
func (a *Area) release() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil
	}
	var errs []error
	for _, p := range a.rec.Parts {
		switch p.Way {
		case berth.DiskLoop:
			errs = append(errs, dropLoop(p.dir(a.dir)))
		case berth.DiskQuota:
			errs = append(errs, dropQuota(a.dir, p.Project))
		case berth.DiskNone, berth.DiskSampled:
		}
	}
	err := errors.Join(errs...)
	a.closed = err == nil
	return err
}
