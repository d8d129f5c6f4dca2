package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-project/berth"
)

// errKilled is what became of a task whose driver died and whose containers were bound to it.
var errKilled = errors.New("berth was killed while the task ran")

// failedStep is the index of the step whose end ended the task, or -1.
func (d *drive) failedStep() int {
	for _, s := range d.rec.exits() {
		if !d.goesOn(s.Index, s.Exit) {
			return s.Index
		}
	}
	return -1
}

// decide says how the task ended. err is what kept its steps from being run to their end: berth's fault,
// ErrCanceled, or ErrDeadline. How a step failed is never hidden by what failed after it.
func (d *drive) decide(err error, got collected) berth.Result {
	err, got.err = d.plainly(err), d.plainly(got.err)
	res := d.result(got.files)
	failed := d.failedStep()
	canceled := d.rec.Cancel != nil || endingOf(d.stop) == endTask
	switch {
	case failed >= 0:
		d.endedBy(&res, failed)
		if exit := d.rec.Steps[failed].Exit; canceled && d.endedByCancel(*exit) {
			res.State, res.Reason, res.Detail = berth.Canceled, berth.Stopped, "an end was asked for"
		}
		d.aside(err)
		d.aside(got.err)
	case errors.Is(err, berth.ErrCanceled), err != nil && canceled:
		res.State, res.Reason, res.Detail = berth.Canceled, berth.Stopped, "an end was asked for"
		if !errors.Is(err, berth.ErrCanceled) && d.astray == nil {
			d.aside(err)
		}
	case errors.Is(err, berth.ErrDeadline):
		res.State, res.Reason = berth.ExecutorError, berth.TimedOut
		res.Detail = fmt.Sprintf("the time limit of %s was reached before step %d", d.rec.Task.Timeout, len(d.rec.exits())+1)
	case err != nil:
		res.State, res.Detail = berth.SystemError, err.Error()
		if errors.Is(err, errKilled) {
			res.Reason = berth.Lost
		} else {
			res.Reason = ""
		}
		d.aside(got.err)
	case got.err != nil && errors.Is(got.err, berth.ErrCanceled):
		res.State, res.Reason, res.Detail = berth.Canceled, berth.Stopped, "an end was asked for while outputs were collected"
	case got.err != nil:
		res.State, res.Detail = berth.SystemError, got.err.Error()
	case d.unfilled() != "":
		res.State, res.Detail = berth.SystemError, d.unfilled()
	default:
		res.State = berth.Complete
		res.ExitCode, res.Signal, res.Reason = 0, 0, berth.Exited
		res.Detail = d.notes()
	}
	return res
}

// hearCancel looks whether a task that was ended from without was canceled before: another process records that, and this one may have heard
// of the end first.
func (d *drive) hearCancel() {
	i := d.failedStep()
	if i < 0 || d.rec.Cancel != nil || !slices.Contains([]berth.Reason{berth.Signaled, berth.Lost, berth.Preempted}, d.rec.Steps[i].Exit.Reason) {
		return
	}
	ctx, cancel := context.WithTimeout(d.alive, recordTime)
	defer cancel()
	if err := d.reload(ctx); err != nil {
		d.r.cfg.Logger.Warn("whether the task was canceled is not known", "task", d.rec.Task.ID, "err", err)
	}
}

// endedByCancel reports whether a step of a task that was canceled ended so because of that, or would have: where the engine could
// not be told, as its daemon was away, that has mostly ended the container by the time it is back.
func (d *drive) endedByCancel(e berth.Exit) bool {
	if e.Reason == berth.Signaled {
		return d.rec.Cancel != nil && !e.Ended.Before(d.rec.Cancel.At)
	}
	return slices.Contains([]berth.Reason{berth.Lost, berth.Preempted, berth.Stopped}, e.Reason)
}

// notes are what there is to say of steps that ended well: limits that they met, what is missing of their output.
func (d *drive) notes() string {
	var all []string
	for i, s := range d.rec.Steps {
		if s.Exit == nil || !s.Exit.OK() || s.Exit.Detail == "" {
			continue
		}
		note := s.Exit.Detail
		if n := len(d.rec.Task.Steps); n > 1 {
			note = fmt.Sprintf("step %d of %d: %s", i+1, n, note)
		}
		all = append(all, note)
	}
	return strings.Join(all, "; ")
}

// unfilled tells of files that lack some of what steps wrote that ended well.
func (d *drive) unfilled() string {
	for i, s := range d.rec.Steps {
		if text := d.unsaved[i]; text != "" {
			return text
		}
		if s.Exit == nil || s.Exit.Unfilled == "" || !d.goesOn(i, *s.Exit) {
			continue
		}
		if n := len(d.rec.Task.Steps); n > 1 {
			return fmt.Sprintf("step %d of %d: %s", i+1, n, s.Exit.Unfilled)
		}
		return s.Exit.Unfilled
	}
	return ""
}

// aside tells of an error that does not decide how the task ended.
func (d *drive) aside(err error) {
	if err != nil && !errors.Is(err, berth.ErrCanceled) {
		d.warn(err.Error())
	}
}

// result is what the records say of the task, with the last step that ended.
func (d *drive) result(files []berth.OutputFile) berth.Result {
	t := &d.rec.Task
	res := berth.Result{
		ID:       t.ID,
		Name:     t.Name,
		ExitCode: -1,
		Outputs:  append([]berth.OutputFile{}, files...),
		Steps:    d.rec.exits(),
	}
	im, _ := d.rec.imaged(&t.Steps[0])
	res.Image, res.ImageDigest = im.name(), cmp.Or(im.Image.Digest, im.Image.ID)
	res.Engine, res.DiskEnforcement = d.rec.Engine, string(cmp.Or(d.rec.Disk, berth.DiskNone))
	res.GPUs = d.rec.GPUs()
	for _, s := range res.Steps {
		if !s.Exit.Started.IsZero() && res.Started == nil {
			res.Started = &s.Exit.Started
		}
		if s.Exit.Runtime != "" {
			res.Runtime = s.Exit.Runtime
		}
		res.ExitCode, res.Signal, res.Reason = s.Exit.Code, s.Exit.Signal, s.Exit.Reason
	}
	now := d.r.cfg.Clock.Now()
	res.Ended = &now
	res.Usage = total(res.Steps)
	return res
}

// endedBy fills in how step i ended the task.
func (d *drive) endedBy(res *berth.Result, i int) {
	s := d.rec.Steps[i]
	res.State = stateOf(s.Exit.Reason)
	res.Reason, res.ExitCode, res.Signal = s.Exit.Reason, s.Exit.Code, s.Exit.Signal
	res.Detail = describe(*s.Exit)
	if n := len(d.rec.Task.Steps); n > 1 {
		res.Detail = fmt.Sprintf("step %d of %d %s", i+1, n, res.Detail)
	}
	im, _ := d.rec.imaged(&d.rec.Task.Steps[i])
	res.Image, res.ImageDigest = im.name(), cmp.Or(s.Spec.Image.Digest, s.Spec.Image.ID)
}

// total adds up what the steps used: sums, and the highest of what is a peak. What is unknown of one step
// that ran is unknown of the whole.
func total(steps []berth.StepResult) berth.Usage {
	var sum berth.Usage
	first := true
	for _, s := range steps {
		u := s.Exit.Usage
		if s.Exit.Started.IsZero() {
			continue // it never ran
		}
		if first {
			sum, first = u, false
			sum.Memory, sum.PIDs = nil, nil // of a running container only
			continue
		}
		sum.CPUSeconds = both(sum.CPUSeconds, u.CPUSeconds, add)
		sum.PeakMemory = both(sum.PeakMemory, u.PeakMemory, higher)
		sum.BytesRead = both(sum.BytesRead, u.BytesRead, add)
		sum.BytesWritten = both(sum.BytesWritten, u.BytesWritten, add)
		sum.PeakPIDs = both(sum.PeakPIDs, u.PeakPIDs, higher)
		sum.DiskUsed = both(sum.DiskUsed, u.DiskUsed, higher)
	}
	sum.GPUs = totalGPUs(steps)
	return sum
}

func add[T int64 | float64](a, b T) T    { return a + b }
func higher[T int64 | float64](a, b T) T { return max(a, b) }

func both[T any](a, b *T, of func(a, b T) T) *T {
	if a == nil || b == nil {
		return nil
	}
	v := of(*a, *b)
	return &v
}

// abandon decides how a task ended whose driver died with its containers bound to it: as its records say,
// with what the engine still knows.
func (d *drive) abandon() (berth.Result, error) {
	for i := range d.rec.Steps {
		if s := d.rec.Steps[i]; s.Exit == nil && s.Spec.ID != "" {
			exit, err := d.lastWords(s.Spec.ID)
			if d.alive.Err() != nil {
				return berth.Result{}, errLeft{context.Cause(d.alive)}
			}
			if errors.Is(err, berth.ErrUnavailable) {
				d.astray = err // it may run on: no end of it is recorded
				continue
			}
			exit = d.recall(i, exit)
			state := berth.State("")
			if d.rec.State == berth.Initializing && !exit.Started.IsZero() {
				state = berth.Running // which nobody has recorded
			}
			if err := d.record(KindEnded, state, fmt.Sprintf("step %d %s", i+1, describe(exit)), Stepped{Index: i, Exit: &exit}); err != nil {
				return berth.Result{}, err
			}
		}
	}
	t := &d.rec.Task
	var got collected
	err := d.removeTemporary()
	if err != nil {
		d.warn("what was left beside outputs could not be removed: " + err.Error())
		err = nil
	}
	switch {
	case d.failedStep() >= 0 || len(d.rec.exits()) < len(t.Steps):
		err = errKilled
	case len(t.Outputs) > 0:
		got.err = fmt.Errorf("%w, before its outputs were collected", errKilled)
	}
	return d.decide(err, got), nil
}

// lastWords is how a step ended whose driver is dead, as far as the engine still knows. One that still runs
// is ended; an error says why that could not be.
func (d *drive) lastWords(id string) (exit berth.Exit, err error) {
	lost := berth.Exit{Reason: berth.Lost, Code: -1, Detail: errKilled.Error()}
	ctx, cancel := context.WithTimeout(d.alive, cleanupTime)
	defer cancel()
	defer func() {
		if errors.Is(err, berth.ErrUnavailable) && d.closedByOther(ctx) { // while it was read
			err = berth.ErrNotFound
		}
	}()
	sandbox, err := d.r.cfg.Engine.Attach(ctx, d.rec.Task.ID)
	if err != nil {
		return lost, err
	}
	c, err := sandbox.Container(ctx, id)
	if err != nil {
		return lost, err
	}
	if err := c.Stop(ctx, 0); err != nil {
		return lost, err
	}
	exit, err = c.Wait(ctx)
	if err != nil {
		return lost, err
	}
	if exit.Reason == berth.Stopped || exit.Reason == berth.Lost && d.closedByOther(ctx) {
		exit.Reason, exit.Code, exit.Signal, exit.Detail = lost.Reason, lost.Code, 0, lost.Detail
	}
	return exit, nil
}

// closedByOther reports whether the sandbox is gone, as where the engine has closed it for its opener is dead: who waited for a
// container in it was told only that the container's record went.
func (d *drive) closedByOther(ctx context.Context) bool {
	_, err := d.r.cfg.Engine.Attach(ctx, d.rec.Task.ID)
	return errors.Is(err, berth.ErrNotFound)
}
