package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/scratch"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// Start starts a step.
func (s *Sandbox) Start(ctx context.Context, spec berth.StepSpec) (berth.Container, error) {
	if err := checkStep(&spec); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.ID, err)
	}
	hash, err := specHash(spec)
	if err != nil {
		return nil, err
	}
	l := s.e.life(s.spec.ID, spec.ID)
	l.starting.Lock()
	defer l.starting.Unlock()
	if exists(s.e.sandboxDir(s.spec.ID)) {
		if err := os.MkdirAll(l.dir, 0o700); err != nil {
			return nil, fmt.Errorf("start %s: %w: %w", spec.ID, kindOf(err), err)
		}
	}
	lock, err := s.claim(ctx, l, hash)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.ID, err)
	}
	if lock == nil { // it was started before, or by another process
		l.watch(s, nil, nil)
		return &Container{life: l, sb: s}, nil
	}
	la := &launch{s: s, l: l, spec: spec, hash: hash}
	if err := la.run(ctx); err != nil {
		la.undo(ctx)
		_ = lock.Close()
		return nil, fmt.Errorf("start %s: %w", spec.ID, err)
	}
	l.watch(s, lock, la.out)
	return &Container{life: l, sb: s}, nil
}

// claim takes the right to start a step; nil where it is started already. ErrConflict where that has another
// spec.
func (s *Sandbox) claim(ctx context.Context, l *life, hash string) (*os.File, error) {
	for {
		lock, err := l.tryLock()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", kindOf(err), err)
		}
		started, err := l.startedAs(ctx, hash)
		if err == nil && !started && lock != nil {
			return lock, nil
		}
		if lock != nil {
			_ = lock.Close()
		}
		if err != nil || started {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(lockPoll):
		}
	}
}

// startedAs reports whether the step was started, with this spec.
func (l *life) startedAs(ctx context.Context, hash string) (bool, error) {
	r, err := l.readRecord()
	if errors.Is(err, berth.ErrNotFound) { // it is written before a container is made
		return false, nil
	} else if err != nil {
		return false, err
	}
	have, started := r.Hash, true
	c, err := l.inspect(ctx, l.e.containerName(l.sandbox, l.step))
	switch {
	case err == nil:
		have = c.Config.Labels[labelSpec]
		if started = isOver(c.State) || c.State.Status != container.StateCreated || l.known(); started {
			l.setID(c.ID)
		}
	case !errors.Is(err, berth.ErrNotFound):
		return false, err
	case !l.known(): // else somebody else removed that of an ended step
		return false, nil
	}
	if have != hash {
		return false, fmt.Errorf("%w: the step was started with another spec", berth.ErrConflict)
	}
	return started, nil
}

// launch is one start.
type launch struct {
	s    *Sandbox
	l    *life
	spec berth.StepSpec
	hash string
	out  *output
	made bool
	lent *lending // nil where nothing was
	// flushed is when the step's record is on the disk.
	flushed *flush
}

func (la *launch) run(ctx context.Context) error {
	l, s := la.l, la.s
	name := s.e.containerName(s.spec.ID, la.spec.ID)
	host, err := s.e.daemon(ctx)
	if err != nil {
		return err
	}
	opts, lent, err := s.plan(ctx, host, &la.spec, la.hash, name)
	if err != nil {
		return err
	}
	la.lent = lent
	made, err := s.e.parts(ctx)
	if err != nil {
		return err
	}
	rec := &record{Hash: la.hash, Spec: la.spec, Limits: s.limits(host, la.spec.Limits), Runtime: made.all, Created: time.Now()}
	rec.Spec.Env = nil
	if host.cgroups {
		rec.Cgroup = opts.HostConfig.CgroupParent
	}
	if la.flushed, err = s.e.writeSoon(filepath.Join(l.dir, recordFile), rec); err != nil {
		return fmt.Errorf("%w: %w", kindOf(err), err)
	}
	l.mu.Lock()
	l.rec, l.held = rec, rec.Spec.Hold && s.spec.Bound
	l.mu.Unlock()
	if s.kept() && !s.spec.Bound {
		if _, err := s.e.keeper.tell(ctx, s.spec.ID); err != nil {
			return err
		}
	}
	s.e.hear(host)
	opened := la.openLogs(rec)
	err = la.create(ctx, host, opts)
	if oerr := opened(); err == nil {
		err = oerr
	}
	if err != nil {
		return err
	}
	refused := la.prepare(ctx, host)
	if refused != nil && startCode(refused.Error()) == 0 {
		return refused
	}
	if err := la.connect(ctx, rec, refused == nil); err != nil {
		return err
	}
	if refused != nil {
		return la.neverStarted(refused)
	}
	return la.start(ctx)
}

// openLogs begins to open the logs, which the daemon need not be waited for. Not where volumes get copies of them: what the
// daemon is to fill from the image must be empty.
func (la *launch) openLogs(rec *record) (wait func() error) {
	if la.spec.Stdout != "" || la.spec.Stderr != "" {
		return func() error { return nil }
	}
	var err error
	done := make(chan struct{})
	la.s.e.wg.Go(func() {
		defer close(done)
		la.out, err = la.l.openOutput(rec, nil)
	})
	return func() error { <-done; return err }
}

// create makes the container. One of that name is there where a process died before it was started; where a start
// was given up, the daemon may be making it still: its name is taken then, though there is nothing to remove yet.
func (la *launch) create(ctx context.Context, host *hostInfo, opts client.ContainerCreateOptions) (err error) {
	kind := creating
	if la.s.copiesUp() && !la.s.filled() {
		kind = filling
		if err := la.s.emptyAgain(); err != nil {
			return fmt.Errorf("%w: %w", kindOf(err), err)
		}
	}
	leave, err := la.s.e.pressure.turn(ctx, kind)
	if err != nil {
		return err
	}
	defer func() { leave(err) }()
	if host.podman { // which, told to give it up, may leave half of a container for ever, whose name is taken and which fails each list
		ctx = context.WithoutCancel(ctx)
	}
	ctx, cancel := la.s.e.call(ctx)
	defer cancel()
	res, err := la.s.e.createContainer(ctx, host, la.l.dir, opts)
	if err != nil && opts.HostConfig.StorageOpt != nil && strings.Contains(err.Error(), "storage-opt") {
		la.s.e.noQuota(err)
		opts.HostConfig.StorageOpt = nil
		res, err = la.s.e.createContainer(ctx, host, la.l.dir, opts)
	}
	for is(err, berth.ErrConflict) {
		if c, ierr := la.l.inspect(ctx, opts.Name); ierr == nil && c.Config != nil && (c.Config.Labels[LabelSandbox] != la.l.sandbox || c.Config.Labels[LabelStep] != la.l.step) {
			err = fmt.Errorf("%w: the container %s is not this step's", berth.ErrConflict, opts.Name)
			break
		}
		if _, rerr := la.s.e.api().ContainerRemove(ctx, opts.Name, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true}); rerr != nil && !is(rerr, berth.ErrNotFound) && !is(rerr, berth.ErrConflict) {
			err = rerr
			break
		}
		if res, err = la.s.e.createContainer(ctx, host, la.l.dir, opts); !is(err, berth.ErrConflict) {
			break
		}
		select {
		case <-ctx.Done():
			return wrap(ctx, "create", err)
		case <-time.After(reconnect):
		}
	}
	if err != nil {
		if why := hint(err.Error()); why != "" {
			err = fmt.Errorf("%w; %s", err, why)
		}
		return wrapHost(ctx, "create", err)
	}
	la.made = true
	for _, w := range res.Warnings {
		la.s.e.cfg.Logger.Warn("docker", "container", la.l.String(), "warning", w)
	}
	la.l.mu.Lock()
	la.l.id = res.ID
	la.l.mu.Unlock()
	if !la.s.copiesUp() {
		return nil
	}
	return la.s.markFilled()
}

// copiesUp reports whether the daemon is to fill volumes from the image.
func (s *Sandbox) copiesUp() bool {
	return slices.ContainsFunc(s.spec.Volumes, func(v berth.Volume) bool { return v.CopyUp })
}

// emptyAgain has the volumes be empty that a daemon may have filled in part: it fills no other. Whoever has put something into one before
// the first time keeps that.
func (s *Sandbox) emptyAgain() error {
	if s.area == nil {
		return nil
	}
	var dirs, empty []string
	for i, v := range s.spec.Volumes {
		if v.CopyUp {
			dir, err := s.area.Volume(scratch.VolumeName(i, v.Path))
			if err != nil {
				return err
			}
			dirs = append(dirs, dir)
		}
	}
	note := filepath.Join(s.e.sandboxDir(s.spec.ID), "filling")
	err := readJSON(note, &empty)
	again := err == nil
	if err != nil && !errors.Is(err, berth.ErrNotFound) && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		switch {
		case !again && len(entries) == 0:
			empty = append(empty, dir)
		case again && slices.Contains(empty, dir):
			for _, d := range entries {
				if err := os.RemoveAll(filepath.Join(dir, d.Name())); err != nil {
					return err
				}
			}
		}
	}
	if again {
		return nil
	}
	f, err := putJSON(note, empty) // which a crash may lose, and then the volumes are as they are
	if err != nil {
		return err
	}
	return f.Close()
}

// filled: a step was created, so that the daemon has copied up what volumes get from the image.
func (s *Sandbox) filled() bool { return exists(s.filledFile()) }

func (s *Sandbox) filledFile() string { return filepath.Join(s.e.sandboxDir(s.spec.ID), "filled") }

func (s *Sandbox) markFilled() error {
	if s.filled() {
		return nil
	}
	return os.WriteFile(s.filledFile(), nil, 0o600)
}

// connect opens the logs and attaches to the container's streams, if it has any.
func (la *launch) connect(ctx context.Context, rec *record, streams bool) error {
	copies, err := la.s.openCopies(ctx, &la.spec)
	if err != nil {
		return err
	}
	var input io.ReadCloser
	if la.spec.Stdin != "" {
		if input, err = la.openInput(ctx, la.spec.Stdin); err != nil {
			closeAll(copies)
			return fmt.Errorf("standard input %s: %w", la.spec.Stdin, err)
		}
	}
	fed := false
	defer func() {
		if input != nil && !fed {
			_ = input.Close()
		}
	}()
	if la.out == nil {
		if la.out, err = la.l.openOutput(rec, copies); err != nil {
			return err
		}
	}
	if !streams {
		return nil
	}
	if err := la.l.attach(ctx, la.out, la.spec.OpenStdin || input != nil); err != nil {
		return err
	}
	if fed = input != nil; fed {
		la.l.feed(input)
	}
	return nil
}

// openInput opens the file of the container that is its standard input.
func (la *launch) openInput(ctx context.Context, p string) (io.ReadCloser, error) {
	p = path.Clean("/" + p)
	for _, m := range la.spec.Mounts {
		if m.Type != berth.MountTmpfs && path.Clean(m.Target) == p {
			f, err := os.Open(m.Source)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", kindOfFile(err), err)
			}
			return f, nil
		}
	}
	if root, name, err := la.s.volumeFile(ctx, p); err == nil {
		defer func() { _ = root.Close() }()
		f, err := openRegular(root, name, os.O_RDONLY)
		if err != nil {
			return nil, err
		}
		return f, nil
	}
	return la.l.openFile(ctx, p)
}

// start starts the container. A command that cannot be started is no error: the daemon keeps why.
//
// From here on the command may run, so the daemon's answer is waited for whatever becomes of ctx: to give the call up
// and start again would run the command twice.
func (la *launch) start(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	// Intent before effect, even if the machine crashes.
	if err := errors.Join(la.s.flushed.wait(), la.flushed.wait()); err != nil {
		return fmt.Errorf("%w: %w", kindOf(err), err)
	}
	kind := starting
	if la.lent != nil {
		kind = startingLent
	}
	leave, err := la.s.e.pressure.turn(ctx, kind)
	if err != nil {
		return err
	}
	la.l.mu.Lock()
	la.l.told = la.s.e.hearing.of(la.l.id)
	la.l.mu.Unlock()
	cctx, cancel := la.s.e.call(context.WithoutCancel(ctx))
	defer cancel()
	_, err = la.s.e.api().ContainerStart(cctx, la.l.docker(), client.ContainerStartOptions{})
	leave(err)
	if err == nil {
		la.l.mu.Lock()
		la.l.started = time.Now()
		la.l.mu.Unlock()
		la.l.watchOOM(la.l.rec)
		if !exists(filepath.Join(la.s.e.sandboxDir(la.s.spec.ID), sandboxFile)) {
			return fmt.Errorf("sandbox %s: %w: it was closed meanwhile", la.s.spec.ID, berth.ErrNotFound)
		}
		return la.prove(cctx)
	}
	if startCode(err.Error()) == 0 {
		if why := hint(err.Error()); why != "" {
			err = fmt.Errorf("%w; %s", err, why)
		}
		return wrapHost(cctx, "daemon", err)
	}
	la.out.hangUp()
	return la.neverStarted(err)
}

// neverStarted records that the command could not be started.
func (la *launch) neverStarted(why error) error {
	if err := la.out.close(); err != nil {
		return err
	}
	msg := why.Error()
	err := la.l.conclude(berth.Exit{Reason: berth.NeverStarted, Code: startCode(msg), Detail: startWords(argv(&la.spec), msg), Runtime: la.l.rec.Runtime}, la.l.rec)
	if err == nil {
		la.l.deliver(la.s.e.ctx, la.l.rec)
	}
	return err
}

// undo leaves nothing of a start that failed. Of one whose container is not removed it leaves the record: that container may
// run, though the daemon's answer was lost, and who comes next asks for it.
func (la *launch) undo(ctx context.Context) {
	ctx, cancel := la.s.e.call(context.WithoutCancel(ctx))
	defer cancel()
	la.l.mu.Lock()
	la.s.e.hearing.forget(la.l.id)
	la.l.mu.Unlock()
	if la.out != nil {
		_ = la.out.close()
	}
	if la.made {
		if _, err := la.s.e.removeContainer(ctx, la.l.docker()); err != nil {
			la.s.e.cfg.Logger.Error("container of a failed start not removed", "container", la.l.String(), "error", err)
			la.s.e.drop(la.l)
			return
		}
	}
	if r, err := la.l.readRecord(); err == nil {
		removeCgroup(r.Cgroup)
	}
	if err := scratch.Remove(la.l.dir); err != nil {
		la.s.e.cfg.Logger.Error("record of a failed start not removed", "container", la.l.String(), "error", err)
	}
	la.s.e.drop(la.l)
}

// Container finds a step that was started.
func (s *Sandbox) Container(ctx context.Context, id string) (berth.Container, error) {
	if err := berth.CheckID(id); err != nil {
		return nil, err
	}
	l := s.e.life(s.spec.ID, id)
	if _, err := l.readRecord(); err != nil {
		s.e.drop(l)
		return nil, err
	}
	if !l.known() {
		c, err := l.inspect(ctx, l.docker())
		if err == nil && c.State.Status == container.StateCreated && !isOver(c.State) {
			err = fmt.Errorf("container %s: %w: it was never started", l, berth.ErrNotFound)
		}
		if err != nil {
			s.e.drop(l)
			return nil, err
		}
		l.setID(c.ID)
		l.watch(s, nil, nil)
	}
	return &Container{life: l, sb: s}, nil
}
