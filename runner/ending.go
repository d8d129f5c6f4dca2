package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/berth-project/berth"
)

// ending says what the end of a context means for the task.
type ending int

const (
	goOn        ending = iota
	endTask            // somebody wants the task ended
	endDeadline        // the task's time limit
	endProcess         // only this process ends: containers go on for the next one
)

// endingOf reads the cause of ctx's end. A cause that nobody named ends the process only: containers are
// never killed by accident.
func endingOf(ctx context.Context) ending {
	switch err := context.Cause(ctx); {
	case err == nil:
		return goOn
	case errors.Is(err, berth.ErrCanceled):
		return endTask
	case errors.Is(err, berth.ErrDeadline):
		return endDeadline
	}
	return endProcess
}

// errLeft: this process ends, or is no longer needed, and the task does not.
type errLeft struct{ cause error }

func (e errLeft) Error() string { return "it is left as it is: " + e.cause.Error() }
func (e errLeft) Unwrap() error { return e.cause }

func left(err error) bool {
	var l errLeft
	return errors.As(err, &l)
}

// ended answers nil while the task goes on, ErrCanceled or ErrDeadline once it is to end, and errLeft once
// this process is.
func (d *drive) ended() error {
	switch endingOf(d.stop) {
	case goOn:
		return nil
	case endProcess:
		return errLeft{context.Cause(d.stop)}
	case endTask, endDeadline:
	}
	return context.Cause(d.stop)
}

// failed turns the error of a call that had d.stop into what it means: where the context ended, its end is
// the reason.
func (d *drive) failed(err error) error {
	if err == nil {
		return nil
	}
	if end := d.ended(); end != nil {
		return end
	}
	return err
}

// canceling records that the task is to end, unless that is recorded. The wish may have come with the
// caller's context, or from another process, which recorded it.
func (d *drive) canceling() error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.stop), recordTime)
	defer cancel()
	if err := d.reload(ctx); err != nil {
		return err
	}
	if d.rec.Cancel != nil || endingOf(d.stop) != endTask {
		return nil
	}
	d.at("cancel")
	return d.record(KindCancel, berth.Canceling, "an end was asked for", Cancel{})
}

// bell hears of events that other processes recorded.
type bell struct {
	file *os.File
	done sync.WaitGroup
}

// listen starts to hear of wishes of other processes, and reads those that came before.
func (d *drive) listen() error {
	f, err := d.dir.listen()
	if err != nil {
		return err
	}
	b := &bell{file: f}
	b.done.Go(func() {
		buf := make([]byte, 16)
		for {
			if _, err := f.Read(buf); err != nil {
				return // closed
			}
			d.look()
		}
	})
	d.bell = b
	return nil
}

func (b *bell) close() {
	_ = b.file.Close()
	b.done.Wait()
}

// look reads the task's events for the wish to end it. It may run beside the driver.
func (d *drive) look() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(d.stop), recordTime)
	defer cancel()
	rec, err := d.r.Record(ctx, d.dir.id())
	if err != nil {
		d.r.cfg.Logger.Error("events not read", "task", d.dir.id(), "err", err)
		return
	}
	d.heed(rec)
}

// heed ends what a recorded wish ends.
func (d *drive) heed(rec *Record) {
	if rec.Cancel == nil {
		return
	}
	d.end(berth.ErrCanceled)
	if d.hooks.Ending != nil {
		d.hooks.Ending()
	}
	if rec.Cancel.Now {
		d.endNow(berth.ErrCanceled)
	}
}

// Cancel asks for a task's end: TERM, its grace, KILL; or KILL at once, where now is set. It returns once
// the task's driver has been told or, where none is alive, once the task has ended. No error if it has
// ended before. ErrNotFound if there is none.
func (r *Runner) Cancel(ctx context.Context, id string, now bool) error {
	rec, err := r.Record(ctx, id)
	if err != nil {
		return err
	}
	if rec.Result != nil {
		return nil
	}
	if rec.Cancel == nil || now && !rec.Cancel.Now {
		text, state := "an end was asked for", berth.Canceling
		if now {
			text = "an end was asked for, at once"
		}
		if rec.Cancel != nil {
			state = "" // it stays
		}
		err := r.append(ctx, r.event(id, KindCancel, state, text, Cancel{Now: now}))
		if errors.Is(err, berth.ErrConflict) {
			return r.endedMeanwhile(ctx, id, err)
		} else if err != nil {
			return fmt.Errorf("cancel task %s: %w", id, err)
		}
	}
	return r.pass(ctx, id)
}

// endedMeanwhile is nil where err comes from a task that has ended.
func (r *Runner) endedMeanwhile(ctx context.Context, id string, err error) error {
	if rec, rerr := r.Record(ctx, id); rerr != nil || rec.Result == nil && rec.Cancel == nil {
		return errors.Join(err, rerr)
	}
	return nil
}

// pass tells the driver of a task to look at its events, or drives it to its end where no driver is alive.
func (r *Runner) pass(ctx context.Context, id string) error {
	dir := r.dir(id)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 200*time.Millisecond) {
		// A driver reads its events after it has closed its bell: one that heard the bell sees the wish.
		if dir.ring() {
			return nil
		}
		lock, err := dir.hold()
		if err == nil {
			_, err = r.take(ctx, id, lock, false, Hooks{})
			return err
		} else if !errors.Is(err, errBusy) {
			return fmt.Errorf("cancel task %s: %w", id, err)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-r.cfg.Clock.After(pause):
		}
	}
}
