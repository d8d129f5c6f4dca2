package runner

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/berth-project/berth"
)

const (
	defaultGrace = 10 * time.Second
	// againMax bounds how often lost steps of one task are run again.
	againMax = 3
	// parkAfter: a step that ends sooner is waited for, rather than parked.
	parkAfter = 100 * time.Millisecond
)

func grace(t *berth.Task) time.Duration {
	if t.Grace < 0 {
		return defaultGrace
	}
	return t.Grace
}

// stepID is the ID of a step's container. Attempt 0 is the first.
func stepID(task string, step, attempt int) string {
	tail := fmt.Sprintf("-%d", step+1)
	if attempt > 0 {
		tail += fmt.Sprintf("-r%d", attempt)
	}
	const idMax = 40
	if len(task)+len(tail) > idMax {
		sum := sha256.Sum256([]byte(task))
		digest := "-" + hex.EncodeToString(sum[:4])
		task = task[:idMax-len(tail)-len(digest)] + digest
	}
	return task + tail
}

// timeLeft is what is left of the task's time limit after the steps that have ended; 0 is no limit. It
// depends on records alone, so that whoever continues the task computes the same.
func (d *drive) timeLeft() time.Duration {
	left := d.rec.Task.Timeout
	if left <= 0 {
		return 0
	}
	for _, s := range d.rec.exits() {
		left -= s.Exit.Ended.Sub(s.Exit.Started)
	}
	return max(left, -1)
}

func (d *drive) mayAgain() bool {
	return d.rec.Task.RunAgain && d.rec.Attempts < againMax && d.rec.Cancel == nil && d.ended() == nil
}

// runSteps runs the steps that have not ended, one after another, until one fails. An error is berth's, or
// says that the task is to end before its next step; what became of a step is in the records.
func (d *drive) runSteps(sandbox berth.Sandbox) error {
	for i := 0; i < len(d.rec.Task.Steps); {
		exit, err := d.runStep(sandbox, i)
		if err != nil {
			if d.mayElsewhere(i, err) {
				d.warn(err.Error())
				return errElsewhere
			}
			return err
		}
		if exit.Reason == berth.Lost && d.mayAgain() {
			d.warn(fmt.Sprintf("step %d was lost and is run again", i+1))
			if err := d.record(KindAgain, "", "", Stepped{Index: i}); err != nil {
				return err
			}
			continue
		}
		if !exit.OK() && d.faulty && d.mayAgain() {
			return errElsewhere
		}
		if !d.goesOn(i, exit) || exit.Unfilled != "" {
			return nil
		}
		i++
	}
	return nil
}

// errElsewhere: a device of the task failed, and the task is to be run again with another.
var errElsewhere = errors.New("a device of the task has failed")

// elsewhere runs the task again from its first step, with other devices.
func (d *drive) elsewhere() (berth.Sandbox, error) {
	d.faulty = false
	if err := d.makeWay(); err != nil {
		return nil, d.leaving(err)
	}
	d.lease.Release()
	d.lease = nil
	d.warn("the task is run again from its first step, with other devices")
	if err := d.record(KindAgain, "", "", Stepped{Index: -1}); err != nil {
		return nil, err
	}
	sandbox, err := d.open()
	if err != nil {
		return sandbox, err
	}
	return sandbox, d.runSteps(sandbox)
}

// goesOn reports whether the task goes on after step i ended so.
func (d *drive) goesOn(i int, e berth.Exit) bool {
	return e.OK() || d.rec.Task.Steps[i].IgnoreError && canIgnore(e.Reason)
}

// runStep brings one step to its recorded end, from wherever it stands.
func (d *drive) runStep(sandbox berth.Sandbox, i int) (berth.Exit, error) {
	known := *d.rec.step(i)
	if known.Exit != nil {
		return *known.Exit, d.tidyStep(sandbox, i)
	}
	c, err := d.startStep(sandbox, i, known)
	if err != nil {
		d.unbridge()
		return berth.Exit{}, err
	}
	if err := d.keep(c); err != nil {
		d.r.cfg.Logger.Warn("container does not hold the lease", "task", d.rec.Task.ID, "err", err)
	}
	d.unbridge()
	d.measure(i, c)
	if d.hooks.Started != nil {
		d.hooks.Started(i, c)
	}
	exit, err := d.await(sandbox, c)
	if err != nil {
		return exit, err
	}
	if err := d.unkeep(); err != nil {
		d.r.cfg.Logger.Warn("container still holds the lease", "task", d.rec.Task.ID, "err", err)
	}
	exit = d.recall(i, exit)
	exit.Usage.GPUs = d.measured(i, exit)
	d.at("step ended")
	if d.hooks.Ended != nil {
		d.hooks.Ended(i, exit)
	}
	// Record before remove: an exit that is lost would run the command again.
	text := ""
	if !exit.OK() {
		text = fmt.Sprintf("step %d %s", i+1, describe(exit))
	}
	if err := d.record(KindEnded, "", text, Stepped{Index: i, Exit: &exit}); err != nil {
		return exit, err
	}
	d.at("step recorded")
	if !exit.OK() {
		d.tellFaults()
	}
	if exit.Unfilled != "" && !d.goesOn(i, exit) {
		d.warn(fmt.Sprintf("step %d: %s", i+1, exit.Unfilled))
	}
	return exit, d.tidyStep(sandbox, i)
}

// startStep starts the step, or finds the container that a process before started.
func (d *drive) startStep(sandbox berth.Sandbox, i int, known StepRecord) (berth.Container, error) {
	if known.Started {
		return d.findStep(sandbox, known.Spec.ID)
	}
	if err := d.ended(); err != nil {
		// It may have been started by a process that died before it could say so.
		if known.Spec.ID != "" && !left(err) {
			if c, err := d.findStep(sandbox, known.Spec.ID); err == nil {
				return c, nil
			}
		}
		return nil, err
	}
	spec := known.Spec
	if spec.ID != "" && !d.lent() {
		// Who was to start it was killed, and what was lent with him is free: unless it was started, it waits again.
		if _, err := sandbox.Container(d.alive, spec.ID); errors.Is(err, berth.ErrNotFound) {
			if err := d.admit(true); err != nil {
				return nil, err
			}
		}
	}
	if spec.ID == "" {
		if err := d.admit(true); err != nil {
			return nil, err
		}
		if err := d.checkWays(i); err != nil {
			return nil, err
		}
		if err := d.preflight(sandbox, i); err != nil {
			return nil, err
		}
		spec = d.stepSpec(i)
		if d.rec.Task.Timeout > 0 && spec.Timeout <= 0 {
			return nil, berth.ErrDeadline
		}
		// Of an attempt before this one, which was lost, the logs are lost with it.
		if err := errors.Join(os.RemoveAll(spec.LogDir), os.MkdirAll(spec.LogDir, 0o700)); err != nil {
			return nil, fmt.Errorf("logs of step %d: %w", i+1, kind(err))
		}
		// Intent before effect: with the ID recorded, whoever comes next finds the container.
		info, err := d.r.cfg.Engine.Info(d.alive)
		if err != nil {
			return nil, d.leaving(fmt.Errorf("engine: %w", err))
		}
		d.bridge(sandbox)
		data := Starting{Index: i, Spec: spec, Engine: info.Name, Disk: sandbox.DiskEnforcement()}
		if err := d.record(KindStarting, "", "", data); err != nil {
			return nil, err
		}
	}
	d.at("step starting")
	var c berth.Container
	err := d.retry(d.alive, func() (err error) {
		c, err = sandbox.Start(d.alive, spec)
		return err
	})
	if err != nil {
		return nil, d.leaving(fmt.Errorf("start %s: %w", d.stepName(i), err))
	}
	d.at("step start")
	state := berth.State("")
	if d.rec.State == berth.Initializing {
		state = berth.Running
	}
	begun := Stepped{Index: i}
	if r, ok := c.(Runtimed); ok {
		begun.Runtime = r.Runtime()
	}
	if err := d.record(KindStarted, state, "", begun); err != nil {
		d.halt(c)
		return nil, err
	}
	d.at("step started")
	return c, nil
}

// halt ends a container that nobody goes on with, as its records cannot be kept: what it would write is not to be collected meanwhile.
func (d *drive) halt(c berth.Container) {
	if err := c.Stop(d.alive, 0); err != nil {
		d.astray = err
	}
}

// recall adds to how a lost step ended what the records say of its start: whoever could have told is gone. Its end is
// when it was found to be lost, where nobody says another.
func (d *drive) recall(i int, exit berth.Exit) berth.Exit {
	s := d.rec.Steps[i]
	if exit.Reason != berth.Lost || s.Begun.IsZero() {
		return exit
	}
	if exit.Ended.IsZero() {
		exit.Ended = d.r.cfg.Clock.Now()
	}
	if exit.Started.IsZero() {
		exit.Started = s.Begun
		if exit.Ended.Before(s.Begun) { // it ended before its start was recorded
			exit.Started = exit.Ended
		}
	}
	exit.Runtime = cmp.Or(exit.Runtime, s.Runtime)
	return exit
}

// stepName names a step where a task has several.
func (d *drive) stepName(i int) string {
	if n := len(d.rec.Task.Steps); n > 1 {
		return fmt.Sprintf("step %d of %d", i+1, n)
	}
	return "the container"
}

func (d *drive) findStep(sandbox berth.Sandbox, id string) (c berth.Container, err error) {
	ctx, done, least := d.alive, func() {}, time.Duration(0)
	ending := d.ended() != nil
	if ending {
		ctx, done = d.whileReached(d.alive)
		least = d.awayTime()
	}
	defer done()
	err = d.retryFor(ctx, least, func() (err error) {
		c, err = sandbox.Container(ctx, id)
		return err
	})
	if errors.Is(err, berth.ErrNotFound) {
		return goneContainer(id), nil
	}
	if ending && err != nil && d.alive.Err() == nil {
		d.astray = err
	}
	return c, d.leaving(err)
}

// goneContainer stands for a started container that the engine does not know any more.
type goneContainer string

func (g goneContainer) ID() string { return string(g) }
func (g goneContainer) Wait(context.Context) (berth.Exit, error) {
	return berth.Exit{Reason: berth.Lost, Code: -1, Detail: "the engine no longer knows the container"}, nil
}
func (g goneContainer) Stop(context.Context, time.Duration) error { return nil }
func (g goneContainer) Remove(context.Context) error              { return nil }

// await waits until the container has ended. Where the task is to end it ends the container; where this
// process is to end it leaves it.
func (d *drive) await(sandbox berth.Sandbox, c berth.Container) (berth.Exit, error) {
	ctx, cancel := context.WithCancel(d.alive)
	defer cancel()
	type answer struct {
		exit berth.Exit
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		var a answer
		a.err = d.retry(ctx, func() (err error) {
			a.exit, err = c.Wait(ctx)
			return err
		})
		got <- a
	}()
	var park <-chan time.Time
	var fed <-chan struct{}
	if d.park {
		fed = fedBy(c)
	}
	refresh := d.r.cfg.Clock.After(refreshEvery)
	for {
		select {
		case a := <-got:
			return a.exit, d.leaving(a.err)
		case <-refresh:
			refresh = d.r.cfg.Clock.After(refreshEvery)
			d.refresh(ctx)
		case <-fed:
			fed, park = nil, d.r.cfg.Clock.After(parkAfter)
		case <-park:
			park = nil
			parked, err := d.tryPark(ctx, sandbox)
			if parked || err != nil {
				cancel()
				<-got
				return berth.Exit{}, err
			}
		case <-d.stop.Done():
			err := d.stopStep(c)
			if err != nil {
				cancel()
				<-got
				return berth.Exit{}, err
			}
			a := <-got
			if a.err == nil && a.exit.Reason == berth.Stopped && endingOf(d.stop) == endDeadline {
				a.exit.Reason = berth.TimedOut
			}
			return a.exit, d.leaving(a.err)
		}
	}
}

// fedBy is closed when the container needs this process no more for its standard input.
func fedBy(c berth.Container) <-chan struct{} {
	if f, ok := c.(Feeder); ok {
		return f.Fed()
	}
	over := make(chan struct{})
	close(over)
	return over
}

// refreshEvery is how often a lease is looked after while a step runs.
const refreshEvery = time.Minute

func (d *drive) refresh(ctx context.Context) {
	if !d.lent() {
		return
	}
	if err := d.lease.Refresh(ctx); err != nil {
		d.r.cfg.Logger.Warn("lease not refreshed", "task", d.rec.Task.ID, "err", err)
	}
}

// stopStep ends the container with the task's grace, or at once when that is asked for meanwhile.
func (d *drive) stopStep(c berth.Container) error {
	if err := d.ended(); left(err) {
		return err
	}
	if err := d.canceling(); err != nil {
		d.halt(c)
		return err
	}
	soft := grace(&d.rec.Task)
	if d.rec.Cancel != nil && d.rec.Cancel.Now {
		soft = 0
	}
	ctx, done := d.whileReached(d.alive)
	defer done()
	stopped := make(chan error, 1)
	go func() { stopped <- d.retryFor(ctx, d.awayTime(), func() error { return c.Stop(ctx, soft) }) }()
	var err error
	select {
	case err = <-stopped:
	case <-d.now.Done():
		if d.alive.Err() == nil {
			err = d.retry(ctx, func() error { return c.Stop(ctx, 0) })
		}
		if soft := <-stopped; err == nil {
			err = soft
		}
	}
	if err != nil && d.alive.Err() == nil {
		d.astray = err
	}
	if err != nil {
		return d.leaving(fmt.Errorf("stop container: %w", err))
	}
	return nil
}

// leaving turns the error of a call that had d.alive into what it means.
func (d *drive) leaving(err error) error {
	if err != nil && d.alive.Err() != nil {
		return errLeft{context.Cause(d.alive)}
	}
	return err
}

// tryPark leaves the task to whoever sees its step end. It answers false where the task is to end, or
// nobody would keep its lease.
func (d *drive) tryPark(ctx context.Context, sandbox berth.Sandbox) (bool, error) {
	d.at("parking")
	// First deaf, then look: a wish that comes later finds no driver, and is carried out by who has it.
	d.bell.close()
	d.look()
	if d.stop.Err() != nil {
		return false, d.listen()
	}
	ok, err := d.handOver(ctx, sandbox)
	if err != nil {
		d.r.cfg.Logger.Warn("lease not handed over; the process stays", "task", d.rec.Task.ID, "err", err)
	}
	if !ok || err != nil {
		d.park = false
		return false, d.listen()
	}
	d.at("parked")
	return true, errLeft{ErrParked}
}
