package docker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/scratch"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// Sandbox is a sandbox of this engine: a record and volumes in the data directory. The daemon knows of it by
// the labels of its containers.
type Sandbox struct {
	e    *Engine
	spec berth.SandboxSpec
	area *scratch.Area // nil where there are no volumes, or where they are on another machine
	// remote: the volumes are the daemon's own. It is on another machine, unless here says otherwise.
	remote, here bool
	// flushed is when the record is on the disk; nil where another has written it.
	flushed *flush
	half    bool // it has no record: a process died that made it
	files   daemonFiles
}

var (
	_ berth.Sandbox        = (*Sandbox)(nil)
	_ berth.VolumeArchiver = (*Sandbox)(nil)
)

func checkSandbox(s *berth.SandboxSpec) error {
	if err := berth.CheckID(s.ID); err != nil {
		return err
	}
	if s.Network.Mode == "" {
		s.Network.Mode = berth.NetworkNone
	}
	if err := checkPorts(s.Network); err != nil {
		return err
	}
	if _, err := grant.Parse(s.Grants); err != nil {
		return err
	}
	if err := checkLimits(s.Limits); err != nil {
		return err
	}
	if err := berth.CheckCgroupParent(s.CgroupParent); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, v := range s.Volumes {
		if !path.IsAbs(v.Path) || path.Clean(v.Path) != v.Path || v.Path == "/" || seen[v.Path] {
			return fmt.Errorf("volume %q: %w: a volume has an absolute, clean path, not /, of its own", v.Path, berth.ErrInvalid)
		}
		seen[v.Path] = true
	}
	return nil
}

func checkLimits(l berth.Limits) error {
	switch {
	case math.IsNaN(l.CPU), l.CPU < 0, l.CPU > 0 && l.CPU < 0.01:
		return fmt.Errorf("CPU limit of %v: %w: it is at least 0.01 cores", l.CPU, berth.ErrInvalid)
	case l.Memory < 0:
		return fmt.Errorf("memory limit of %d: %w: it is a number of bytes", l.Memory, berth.ErrInvalid)
	case l.Disk < 0:
		return fmt.Errorf("disk limit of %d: %w: it is a number of bytes", l.Disk, berth.ErrInvalid)
	case l.PIDs < -1:
		return fmt.Errorf("pids limit of %d: %w: it is a number of processes, or -1 for none", l.PIDs, berth.ErrInvalid)
	case l.PIDs > berth.MaxPIDs:
		return fmt.Errorf("pids limit of %d: %w: Linux takes %d at most; -1 is no limit", l.PIDs, berth.ErrInvalid, berth.MaxPIDs)
	}
	return nil
}

func (e *Engine) sandboxDir(id string) string { return filepath.Join(e.cfg.Dir, "sandboxes", id) }

const sandboxFile = "sandbox.json"

func (e *Engine) readSandbox(id string) (berth.SandboxSpec, error) {
	var spec berth.SandboxSpec
	if err := readJSON(filepath.Join(e.sandboxDir(id), sandboxFile), &spec); err != nil {
		return spec, fmt.Errorf("sandbox %s: %w", id, err)
	}
	return spec, nil
}

// Open makes a sandbox.
func (e *Engine) Open(ctx context.Context, spec berth.SandboxSpec) (berth.Sandbox, error) {
	if err := checkSandbox(&spec); err != nil {
		return nil, err
	}
	dir := e.sandboxDir(spec.ID)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w: %w", spec.ID, kindOf(err), err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, fmt.Errorf("sandbox %s: %w: %w", spec.ID, berth.ErrUnavailable, err)
	}
	defer func() { _ = lock.Close() }()
	have, err := e.readSandbox(spec.ID)
	if err == nil {
		a, _ := json.Marshal(have)
		b, _ := json.Marshal(spec)
		if !bytes.Equal(a, b) {
			return nil, fmt.Errorf("sandbox %s: %w: it is open with another spec", spec.ID, berth.ErrConflict)
		}
		return e.Attach(ctx, spec.ID)
	} else if !errors.Is(err, berth.ErrNotFound) { // it may be open
		return nil, err
	}
	s := &Sandbox{e: e, spec: spec}
	err = s.bind(dir)
	if err == nil {
		err = s.make(ctx, dir)
	}
	if err == nil && s.kept() {
		_, err = e.keeper.tell(ctx, spec.ID)
	}
	if err != nil {
		err = errors.Join(fmt.Errorf("sandbox %s: %w", spec.ID, err), e.undoOpen(ctx, spec.ID))
		e.unbind(spec.ID)
		return nil, err
	}
	return s, nil
}

// undoOpen leaves nothing of a sandbox that could not be opened. Where the daemon does not give up what it has of it, the
// directory stays, without a record, for the sweep.
func (e *Engine) undoOpen(ctx context.Context, id string) error {
	dir := e.sandboxDir(id)
	if !exists(filepath.Join(dir, remoteFile)) {
		return scratch.Remove(dir)
	}
	if err := os.Remove(filepath.Join(dir, sandboxFile)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	ctx, cancel := e.call(context.WithoutCancel(ctx))
	defer cancel()
	return (&Sandbox{e: e, spec: berth.SandboxSpec{ID: id}, remote: true, half: true}).Close(ctx)
}

// boundFile of a bound sandbox is locked by the process that opened it.
const boundFile = "bound"

// bind has a bound sandbox end with this process.
func (s *Sandbox) bind(dir string) error {
	if !s.spec.Bound {
		return nil
	}
	f, err := os.OpenFile(filepath.Join(dir, boundFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return fmt.Errorf("%w: another process has opened it: %w", berth.ErrConflict, err)
	}
	s.e.mu.Lock()
	s.e.bound[s.spec.ID] = f
	s.e.mu.Unlock()
	s.e.stay.Do(func() { s.e.wg.Go(func() { s.e.keeper.stay(s.e.ctx) }) })
	return nil
}

// unbind forgets a sandbox that is gone.
func (e *Engine) unbind(id string) {
	e.mu.Lock()
	if f := e.bound[id]; f != nil {
		_ = f.Close()
		delete(e.bound, id)
	}
	e.mu.Unlock()
	e.keeper.forget(id)
}

// lockDir locks a directory as long as the file is open.
func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func (s *Sandbox) make(ctx context.Context, dir string) error {
	host, err := s.e.daemon(ctx)
	if err != nil {
		return err
	}
	if err := host.driver.refuse(s.spec.CgroupParent); err != nil {
		return err
	}
	if host.cgroups && s.spec.CgroupParent != "" {
		if err := s.e.keepParent(s.spec.CgroupParent); err != nil {
			return err
		}
	}
	if s.remote, s.here = host.remote || host.above && len(s.spec.Volumes) > 0, !host.remote; s.remote {
		if len(s.spec.Grants) > 0 && s.away() {
			return s.e.notHere("GPUs")
		}
		err = (&remote{s: s, state: remoteState{Here: s.here}}).make(ctx)
	} else {
		err = s.makeArea(ctx, dir)
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(dir, "steps"), 0o700); err != nil {
		return err
	}
	s.flushed, err = s.e.writeSoon(filepath.Join(dir, sandboxFile), s.spec)
	return err
}

// makeArea makes the volumes, of this machine.
func (s *Sandbox) makeArea(ctx context.Context, dir string) error {
	space := filepath.Join(dir, "scratch")
	if old, err := scratch.Reopen(ctx, space, s.e.cfg.Logger); err == nil { // a process died here
		if err := old.Close(); err != nil {
			return err
		}
	}
	if len(s.spec.Volumes) > 0 {
		// The daemon's own seccomp profile lets the owner of a file take it out of a quota.
		cfg := scratch.Config{Logger: s.e.cfg.Logger, Prefer: []berth.DiskEnforcement{berth.DiskLoop, berth.DiskSampled}, Thin: true}
		for i, v := range s.spec.Volumes {
			cfg.Volumes = append(cfg.Volumes, scratch.Volume{Name: scratch.VolumeName(i, v.Path), Size: v.Size})
		}
		area, err := scratch.Open(ctx, space, cfg)
		if err != nil {
			return err
		}
		s.area = area
	}
	for i, v := range s.spec.Volumes {
		p, err := s.area.Volume(scratch.VolumeName(i, v.Path))
		if err != nil {
			return err
		}
		if err := os.Chmod(p, volumeMode(v)); err != nil {
			return err
		}
	}
	return nil
}

// away reports whether the daemon is on another machine.
func (s *Sandbox) away() bool { return s.remote && !s.here }

func volumeMode(v berth.Volume) fs.FileMode {
	if v.Mode == 0 {
		return 0o777 | fs.ModeSticky
	}
	return v.Mode
}

// volumeName names the volume of a daemon on another machine that is the task's i-th.
func volumeName(i int) string { return "v" + strconv.Itoa(i) }

// Attach finds a sandbox again.
func (e *Engine) Attach(ctx context.Context, id string) (berth.Sandbox, error) {
	if err := berth.CheckID(id); err != nil {
		return nil, err
	}
	spec, err := e.readSandbox(id)
	if err != nil {
		return nil, err
	}
	s := &Sandbox{e: e, spec: spec}
	r := &remote{s: s}
	if s.remote, err = r.read(); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", id, err)
	}
	s.here = r.state.Here
	if len(spec.Volumes) > 0 && !s.remote {
		if s.area, err = scratch.Reopen(ctx, filepath.Join(e.sandboxDir(id), "scratch"), e.cfg.Logger); err != nil {
			return nil, fmt.Errorf("sandbox %s: %w", id, err)
		}
	}
	return s, nil
}

// ID is the sandbox's id.
func (s *Sandbox) ID() string { return s.spec.ID }

// DiskEnforcement says how disk limits are kept. Writable layers are the daemon's, so that a limit of the
// whole is looked at.
func (s *Sandbox) DiskEnforcement() berth.DiskEnforcement {
	if s.spec.Limits.Disk > 0 || s.remote && s.sized() {
		return berth.DiskSampled
	}
	if s.area == nil {
		return berth.DiskNone
	}
	return s.area.Enforcement()
}

// stepsDir holds a directory for each step; it is there as long as the sandbox is.
func (s *Sandbox) stepsDir() string { return filepath.Join(s.e.sandboxDir(s.spec.ID), "steps") }

// Dir is the directory of this host in which the sandbox's volumes lie; the writable layers are the daemon's.
func (s *Sandbox) Dir() string { return s.e.sandboxDir(s.spec.ID) }

// Volume opens the directory of a volume.
func (s *Sandbox) Volume(_ context.Context, p string) (*os.Root, error) {
	for i, v := range s.spec.Volumes {
		if v.Path != p {
			continue
		}
		if s.remote {
			return nil, fmt.Errorf("volume %s of sandbox %s: %w: it is the daemon's", p, s.spec.ID, berth.ErrUnsupported)
		}
		dir, err := s.area.Volume(scratch.VolumeName(i, v.Path))
		if err != nil {
			return nil, err
		}
		return os.OpenRoot(dir)
	}
	return nil, fmt.Errorf("volume %s of sandbox %s: %w", p, s.spec.ID, berth.ErrNotFound)
}

// Close ends what runs and removes everything of the sandbox. What lies on the disk is taken away at once, and its room is
// free a little later: to remove files takes time. ErrConflict where all is gone but a volume that the daemon takes for mounted,
// which Purge removes later: see removeVolume.
func (s *Sandbox) Close(ctx context.Context) error {
	steps, err := os.ReadDir(s.stepsDir())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("close %s: %w: %w", s.spec.ID, kindOf(err), err)
	}
	mine := s.e.filter().Add("label", LabelSandbox+"="+s.spec.ID)
	rest := s.findRest(ctx, mine, steps)
	lives := s.e.livesOf(s.spec.ID)
	for _, d := range steps {
		l := s.e.life(s.spec.ID, d.Name())
		if err := l.takeAway(ctx, l.docker()); err != nil {
			_, lerr := rest()
			if unconnected(lerr) { // which says the same
				lerr = nil
			}
			return errors.Join(fmt.Errorf("close %s: %w", s.spec.ID, err), lerr)
		}
	}
	lives = append(lives, s.e.livesOf(s.spec.ID)...) // what was begun meanwhile
	for _, l := range lives {
		s.e.drop(l)
	}
	// They hold volumes, as the container does through which files come and go; and while the directory is there, who fails
	// here can come again.
	strays, err := rest()
	if err != nil {
		return err
	}
	gone, err := s.removeAll(ctx, strays)
	tellRemoved(lives, gone)
	if err != nil {
		return err
	}
	held := s.removeVolumes(ctx, mine)
	if held != nil && !errors.Is(held, errHeld) {
		return held
	}
	for _, p := range s.spec.Scratch {
		if err := scratch.Remove(p); err != nil {
			return fmt.Errorf("close %s: %w", s.spec.ID, err)
		}
	}
	if s.area != nil { // last: without it the sandbox cannot be attached to, to be closed
		if err := s.area.Close(); err != nil {
			return fmt.Errorf("close %s: %w", s.spec.ID, err)
		}
	}
	remove, err := s.discard()
	if err != nil {
		return fmt.Errorf("close %s: %w", s.spec.ID, err)
	}
	s.e.wg.Go(func() {
		// What was made while the sandbox was closed; who has made it, and lives, finds no record and removes it, too.
		strays, err := s.list(context.WithoutCancel(ctx), mine)
		if err == nil && !exists(s.e.sandboxDir(s.spec.ID)) { // else it was opened anew, and they may be that one's
			var gone []string
			gone, err = s.removeAll(context.WithoutCancel(ctx), strays)
			tellRemoved(append(lives, s.e.livesOf(s.spec.ID)...), gone)
		}
		if s.spec.CgroupParent != "" {
			err = errors.Join(err, s.e.removeParents())
		}
		if err = errors.Join(err, remove()); err != nil {
			s.e.cfg.Logger.Error("what a sandbox left is not removed", "sandbox", s.spec.ID, "error", err)
		}
	})
	s.e.unbind(s.spec.ID)
	return held
}

// owns reports whether what has these labels is this sandbox's. The daemon is asked for nothing else; but where it is
// asked for volumes with two labels, Podman 4 answers with those that have either.
func (s *Sandbox) owns(labels map[string]string) bool {
	return labels[LabelOwner] == s.e.owner && labels[LabelSandbox] == s.spec.ID
}

// removeVolumes removes the volumes that mountVolume has made. An error is errHeld where those alone are left that are held.
func (s *Sandbox) removeVolumes(ctx context.Context, mine client.Filters) error {
	if !s.half && !s.remote && !s.copiesUp() {
		return nil
	}
	cctx, cancel := s.e.call(ctx)
	defer cancel()
	vols, err := s.e.api().VolumeList(cctx, client.VolumeListOptions{Filters: mine})
	if err != nil {
		return wrap(cctx, "close "+s.spec.ID, err)
	}
	var held []error
	for _, v := range vols.Items {
		if !s.owns(v.Labels) {
			continue
		}
		_, err := s.e.removeVolume(ctx, s.spec.ID, v.Name, true)
		switch {
		case errors.Is(err, errHeld):
			held = append(held, fmt.Errorf("close %s: %w", s.spec.ID, err))
		case err != nil:
			return wrap(ctx, "close "+s.spec.ID, err)
		}
	}
	return errors.Join(held...)
}

// findRest begins to find containers that have no record, as of a start that has failed and could not be undone. steps are
// those that have, which may be removed meanwhile. Podman is asked when they are: what goes may make its answer an error.
func (s *Sandbox) findRest(ctx context.Context, mine client.Filters, steps []fs.DirEntry) (wait func() ([]string, error)) {
	names := make([]string, len(steps))
	for i, d := range steps {
		names[i] = d.Name()
	}
	find := func() ([]string, error) { return s.list(ctx, mine, names...) }
	if host, err := s.e.daemon(ctx); err != nil || host.podman {
		return find
	}
	var all []string
	var err error
	done := make(chan struct{})
	s.e.wg.Go(func() {
		defer close(done)
		all, err = find()
	})
	return func() ([]string, error) { <-done; return all, err }
}

// list finds the sandbox's containers but for those of some steps.
func (s *Sandbox) list(ctx context.Context, mine client.Filters, but ...string) (ids []string, err error) {
	ctx, cancel := s.e.call(ctx)
	defer cancel()
	res, err := s.e.listContainers(ctx, client.ContainerListOptions{All: true, Filters: mine})
	if err != nil {
		return nil, wrap(ctx, "close "+s.spec.ID, err)
	}
	for _, c := range res.Items {
		if !s.owns(c.Labels) || slices.Contains(but, c.Labels[LabelStep]) {
			continue
		}
		theirs, err := s.e.inherits(ctx, c)
		if err != nil {
			return nil, fmt.Errorf("close %s: %w", s.spec.ID, err)
		}
		if !theirs {
			ids = append(ids, c.ID)
		}
	}
	return ids, nil
}

// removeAll removes containers, and answers which are gone.
func (s *Sandbox) removeAll(ctx context.Context, ids []string) (gone []string, err error) {
	ctx, cancel := s.e.call(ctx)
	defer cancel()
	for _, id := range ids {
		_, err := s.e.removeContainer(ctx, id)
		switch {
		case err == nil:
			gone = append(gone, id)
		case !is(err, berth.ErrConflict): // which who starts it removes
			return gone, wrap(ctx, "close "+s.spec.ID, err)
		}
	}
	return gone, nil
}

func (e *Engine) trash() string { return filepath.Join(e.cfg.Dir, "trash") }

// halfAge is how old the directory of a sandbox without a record is, at least, when it is nobody's.
const halfAge = time.Minute

// isHalf reports whether a sandbox was not made to its end, and has no record, or was not closed to its end, and cannot be attached to,
// as its volumes are gone.
func (e *Engine) isHalf(id string) bool {
	dir := e.sandboxDir(id)
	if !written(filepath.Join(dir, sandboxFile)) {
		return true
	}
	spec, err := e.readSandbox(id)
	return err == nil && len(spec.Volumes) > 0 && !exists(filepath.Join(dir, remoteFile)) && !exists(filepath.Join(dir, "scratch"))
}

// Sweep removes what processes left that were killed while they made or closed a sandbox, and what a daemon left that was
// killed while it started a container. It leaves alone what is of an open sandbox.
func (e *Engine) Sweep(ctx context.Context) error {
	e.sweepHeld(ctx)
	errs := []error{scratch.Sweep(ctx, e.trash()), e.sweepCgroups()}
	entries, err := os.ReadDir(filepath.Join(e.cfg.Dir, "sandboxes"))
	for _, d := range entries {
		dir := e.sandboxDir(d.Name())
		st, err := d.Info()
		if err != nil || time.Since(st.ModTime()) < halfAge || !e.isHalf(d.Name()) {
			continue
		}
		lock, err := lockDir(dir)
		if err != nil {
			continue
		}
		if e.isHalf(d.Name()) {
			s := &Sandbox{e: e, spec: berth.SandboxSpec{ID: d.Name()}, remote: exists(filepath.Join(dir, remoteFile)), half: true}
			if s.area, err = scratch.Reopen(ctx, filepath.Join(dir, "scratch"), e.cfg.Logger); err != nil {
				s.area = nil
			}
			errs = append(errs, s.Close(ctx))
		}
		_ = lock.Close()
	}
	return errors.Join(append(errs, err)...)
}
