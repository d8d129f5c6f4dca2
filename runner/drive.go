package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/ledger"
	"github.com/berth-project/berth/store"
)

// drive is one process's turn at driving one task. Its methods run in one goroutine unless they say
// otherwise.
type drive struct {
	r      *Runner
	rec    *Record
	lay    *layout
	dir    taskDir
	lock   *os.File
	hooks  Hooks
	faulty bool // a device of the task has failed
	park   bool // return once nothing but waiting is left
	orphan bool // the process to which the task's containers were bound is dead
	// unasked: what the engine would refuse it has not said; see recheck.
	unasked bool

	// stop ends when the task is to end, or this process; its cause says which. now ends when even a tidy
	// end is to be cut short. alive ends only when this process is to leave the task as it is.
	stop, now, alive context.Context
	end, endNow      context.CancelCauseFunc
	bell             *bell
	lease            *ledger.Lease
	holder           ledger.Holder    // of the lease: the running container; zero for none
	bridged          ledger.Holder    // of the lease: who keeps the container that is being started; zero for none
	unsaved          map[int]string   // what is missing of files that steps' output was to be saved to, by step
	full             bool             // the disk was too full to record an event
	mirror           string           // what was brought here of volumes on another machine; "" before
	astray           error            // why a container that was to be ended was not; it may still run
	unread           map[readOf]error // why roots of containers could not be asked for outputs
}

func (r *Runner) newDrive(rec *Record, lock *os.File, hooks Hooks) (*drive, error) {
	lay, err := newLayout(&rec.Task)
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("task %s: %w", rec.Task.ID, err)
	}
	return &drive{r: r, rec: rec, lay: lay, dir: r.dir(rec.Task.ID), lock: lock, hooks: hooks}, nil
}

// drive drives the task to its end, or until it is parked, or until ctx ends with a cause that does not end
// the task.
func (d *drive) drive(ctx context.Context) (berth.Result, error) {
	defer func() { _ = d.lock.Close() }()
	d.stop, d.end = context.WithCancelCause(ctx)
	defer d.end(nil)
	d.now, d.endNow = context.WithCancelCause(context.WithoutCancel(ctx))
	defer d.endNow(nil)
	alive, leave := context.WithCancelCause(context.WithoutCancel(ctx))
	d.alive = alive
	defer leave(nil)
	defer context.AfterFunc(ctx, func() {
		if endingOf(ctx) == endProcess {
			d.endNow(context.Cause(ctx))
			leave(context.Cause(ctx))
		}
	})()
	d.heed(d.rec)
	if err := d.listen(); err != nil {
		return berth.Result{}, fmt.Errorf("task %s: %w", d.rec.Task.ID, err)
	}
	defer func() { d.bell.close() }() // parking may have made another
	// A guard, not a path: whatever happens below, what was lent comes back.
	defer func() { d.lease.Release() }()
	res, err := d.toEnd()
	if err != nil {
		return berth.Result{}, fmt.Errorf("task %s: %w", d.rec.Task.ID, err)
	}
	return res, nil
}

// toEnd decides how the task ended, records that, tidies up, and records the end.
func (d *drive) toEnd() (berth.Result, error) {
	if d.rec.Result != nil {
		return *d.rec.Result, nil
	}
	if d.rec.Outcome == nil {
		res, err := d.work()
		if left(err) {
			return res, err
		} else if err != nil {
			res = d.decide(err, collected{})
		}
		if err := d.record(KindOutcome, "", "", res); err != nil {
			// On a full disk, tidying up may make room for the final record.
			d.r.cfg.Logger.Error("outcome not recorded", "task", d.rec.Task.ID, "err", err)
			d.rec.Outcome = &res
		}
		d.at("outcome")
	}
	return d.finish()
}

// work takes the task from wherever its records say it stands to where its outcome is known. An error
// means that it was not brought there.
func (d *drive) work() (berth.Result, error) {
	if d.orphan {
		return d.abandon()
	}
	sandbox, err := d.open()
	if err == nil {
		err = d.runSteps(sandbox)
	}
	for errors.Is(err, errElsewhere) {
		sandbox, err = d.elsewhere()
	}
	if again, rerr := d.requeue(err); again && rerr == nil {
		return d.work()
	} else if rerr != nil {
		err = rerr
	}
	if left(err) {
		return berth.Result{}, err
	}
	var got collected
	if sandbox != nil && d.astray == nil { // else outputs may still be written
		if got = d.collect(sandbox); left(got.err) {
			return berth.Result{}, got.err
		}
	}
	d.hearCancel()
	return d.decide(err, got), nil
}

// finish leaves nothing of the task but its logs and its record.
func (d *drive) finish() (berth.Result, error) {
	res := *d.rec.Outcome
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.stop), cleanupTime)
	defer cancel()
	closed := d.rec.Sandbox != "" && !d.rec.Task.Keep
	if closed {
		err := d.closeSandbox(ctx)
		if closed = err == nil; !closed {
			d.unclosed(&res, err)
		}
	}
	if d.rec.Sandbox != "" && d.rec.Task.Keep {
		var err error
		if res.Kept, err = d.keepSandbox(ctx); err != nil {
			d.warn("what is left of the task could not be kept: " + d.plainly(err).Error())
		}
		if d.astray != nil && res.State == berth.Canceled && d.rec.unended() {
			d.notEnded(&res, "`berth rm` tries again", d.astray)
		}
	}
	d.at("closed")
	if err := errors.Join(d.removeTemporary(), d.dir.removeWork()); err != nil {
		d.warn("the working directory could not be removed: " + err.Error())
	}
	d.at("cleaned")
	e := d.event(KindFinal, res.State, res.Detail, nil)
	e.Result = &res
	if closed {
		e.Sandbox = new(string)
	}
	if err := d.append(e); err != nil {
		return res, err
	}
	d.at("final")
	if d.rec.Sandbox != "" && !d.rec.Task.Keep && !closed {
		d.closeLater(ctx)
	}
	return res, nil
}

// closesLater reports whether the engine closes by itself what could not be closed.
func (d *drive) closesLater() bool {
	sandbox, err := d.r.cfg.Engine.Attach(context.WithoutCancel(d.alive), d.rec.Task.ID)
	if err != nil {
		return false
	}
	_, ok := sandbox.(Unclosed)
	return ok
}

// closeLater leaves a sandbox that could not be closed to the engine.
func (d *drive) closeLater(ctx context.Context) {
	sandbox, err := d.r.cfg.Engine.Attach(ctx, d.rec.Task.ID)
	if s, ok := sandbox.(Unclosed); ok && err == nil {
		err = s.CloseLater()
	}
	if err != nil && !errors.Is(err, berth.ErrNotFound) {
		d.r.cfg.Logger.Warn("sandbox not left to the engine to be closed", "task", d.rec.Task.ID, "err", err)
	}
}

// keepSandbox has the sandbox stay when this process ends, and says where it is.
func (d *drive) keepSandbox(ctx context.Context) (dir string, err error) {
	sandbox, err := d.r.cfg.Engine.Attach(ctx, d.rec.Task.ID)
	if errors.Is(err, berth.ErrNotFound) {
		return "", nil
	} else if err != nil {
		return "", err
	}
	if s, ok := sandbox.(Stayer); ok && !d.rec.Detached {
		err = s.Keep(ctx)
	}
	if s, ok := sandbox.(Placed); ok && err == nil {
		dir = s.Dir()
	}
	return dir, err
}

// cleanupTime bounds what is done after a task has ended.
const cleanupTime = 2 * time.Minute

// closeSandbox removes what the engine has of a task. Where that has no record of the sandbox any more, as when another process has
// closed it, something that could not be removed may be left.
func (r *Runner) closeSandbox(ctx context.Context, id string) error {
	sandbox, err := r.cfg.Engine.Attach(ctx, id)
	if errors.Is(err, berth.ErrNotFound) {
		if p, ok := r.cfg.Engine.(Purger); ok {
			if _, err := p.Purge(ctx, id); err != nil {
				return fmt.Errorf("remove what is left of the sandbox: %w", err)
			}
		}
		return nil
	} else if err != nil {
		return fmt.Errorf("attach to sandbox: %w", err)
	}
	if err := sandbox.Close(ctx); err != nil {
		return fmt.Errorf("close sandbox: %w", err)
	}
	return nil
}

// makeWay closes the task's sandbox, which is to be opened anew. What is left of one that is closed is no reason not to go on: it
// is found when the task ends.
func (d *drive) makeWay() error {
	err := d.retry(d.alive, func() error { return d.r.closeSandbox(d.alive, d.rec.Task.ID) })
	if errors.Is(err, berth.ErrConflict) {
		if _, aerr := d.r.cfg.Engine.Attach(d.alive, d.rec.Task.ID); errors.Is(aerr, berth.ErrNotFound) {
			d.warn(err.Error())
			return nil
		}
	}
	return err
}

func (d *drive) event(k Kind, s berth.State, text string, data any) store.Event {
	return d.r.event(d.rec.Task.ID, k, s, text, data)
}

// record appends an event. What has happened is recorded even where ctx has ended.
func (d *drive) record(k Kind, s berth.State, text string, data any) error {
	return d.append(d.event(k, s, text, data))
}

func (d *drive) append(e store.Event) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.stop), recordTime)
	defer cancel()
	if d.rec.Cancel != nil && !e.State.Final() {
		e.State = "" // CANCELING stays until the end, whatever still happens
	}
	err := d.retry(ctx, func() error { return d.put(ctx, e) })
	if errors.Is(err, berth.ErrConflict) && !e.State.Final() {
		// Another process recorded that the task is to end.
		if err := d.reload(ctx); err != nil {
			return err
		}
		if d.rec.Cancel != nil {
			e.State = ""
			err = d.put(ctx, e)
		}
	}
	if err != nil {
		return err
	}
	if err := d.rec.add(e); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	if e.State != "" && d.hooks.State != nil {
		d.hooks.State(e.State)
	}
	return nil
}

// put records an event, and says once where it has to be set aside.
func (d *drive) put(ctx context.Context, e store.Event) error {
	aside, err := d.r.put(ctx, e)
	if aside && !d.full && d.hooks.Warn != nil {
		d.hooks.Warn(fmt.Sprintf("the disk of the data directory is full: how the task ended is kept, and recorded once %s are free; make room in %s (berth rm --all, berth image prune)",
			berth.SizeInWords(recordRoom), d.r.cfg.DataDir))
	}
	d.full = d.full || aside
	return err
}

const recordTime = 30 * time.Second

func (d *drive) reload(ctx context.Context) error {
	rec, err := d.r.Record(ctx, d.rec.Task.ID)
	if err != nil {
		return err
	}
	d.rec = rec
	return nil
}

// warn records a line for people; that one is missing is no reason to fail a task.
func (d *drive) warn(text string) {
	if err := d.record(KindWarning, "", text, nil); err != nil {
		d.r.cfg.Logger.Error("event not recorded", "task", d.rec.Task.ID, "text", text, "err", err)
	}
	if d.hooks.Warn != nil {
		d.hooks.Warn(text)
	}
}

// retry makes a call again while it answers ErrUnavailable, a bounded number of times.
func (d *drive) retry(ctx context.Context, call func() error) error { return d.retryFor(ctx, 0, call) }

// persist is retry for what a task has done, of which nothing is to be lost because a daemon is started anew.
func (d *drive) persist(ctx context.Context, call func() error) error {
	return d.retryFor(ctx, outputsTime, call)
}

// outputsTime is for how long outputs are asked for, at least, while nobody answers.
const outputsTime = 2 * time.Minute

// retryFor makes a call again while it answers ErrUnavailable: a number of times, and for some time.
func (d *drive) retryFor(ctx context.Context, least time.Duration, call func() error) error {
	pause := 100 * time.Millisecond
	began := d.r.cfg.Clock.Now()
	for try := 1; ; try++ {
		err := call()
		enough := try >= d.r.cfg.Tries && d.r.cfg.Clock.Now().Sub(began) >= least
		if err == nil || !errors.Is(err, berth.ErrUnavailable) || enough {
			return err
		}
		d.r.cfg.Logger.Warn("call is made again", "task", d.rec.Task.ID, "try", try, "pause", pause, "err", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-d.r.cfg.Clock.After(pause):
		}
		pause = min(2*pause, 5*time.Second)
	}
}

// together calls all functions at once and waits for them. The first error ends the context of the others
// and is returned.
func together(ctx context.Context, calls ...func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, call := range calls {
		wg.Go(func() {
			if err := call(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}
