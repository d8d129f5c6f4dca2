package runner

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/berth-project/berth"
)

// Answerer is an Engine that is a service, which may be away.
type Answerer interface {
	// Answers reports whether it answers; ErrUnavailable where it does not while ctx lasts.
	Answers(ctx context.Context) error
}

const (
	// answerTime is how long an engine may take to say that it is there, and how often it is asked.
	answerTime = 5 * time.Second
	// awayMax is how long an engine may be away while a container is ended; where that is to be at once, it may not be.
	awayMax = time.Minute
	// lastTime bounds the last try to remove what could not be ended.
	lastTime = 5 * time.Second
)

// awayTime is how long an engine that answers ErrUnavailable is asked for a container's end: one that is a service may be
// about to be there again, and whileReached sees to it that it is not longer.
func (d *drive) awayTime() time.Duration {
	if _, ok := d.r.cfg.Engine.(Answerer); ok {
		return awayMax
	}
	return 0
}

// whileReached is a context in which a container is ended: it ends once the engine is seen to be out of reach.
func (d *drive) whileReached(ctx context.Context) (reached context.Context, done func()) {
	reached, lose := context.WithCancelCause(ctx)
	engine, ok := d.r.cfg.Engine.(Answerer)
	if !ok {
		return reached, func() { lose(nil) }
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		d.watchReach(reached, engine, lose)
	}()
	return reached, func() { lose(nil); <-over }
}

func (d *drive) watchReach(ctx context.Context, engine Answerer, lose context.CancelCauseFunc) {
	clock := d.r.cfg.Clock
	var away time.Time
	now := d.now.Done()
	for {
		select {
		case <-ctx.Done():
			return
		case <-now:
			now = nil // asked at once, and then now and then
		case <-clock.After(answerTime):
		}
		asked := clock.Now()
		actx, cancel := context.WithTimeoutCause(ctx, answerTime, fmt.Errorf("no answer within %v: %w", answerTime, berth.ErrUnavailable))
		err := engine.Answers(actx)
		cancel()
		if err == nil {
			away = time.Time{}
			continue
		}
		if away.IsZero() {
			away = asked
		}
		if d.now.Err() != nil || clock.Now().Sub(away) >= awayMax {
			lose(err)
			return
		}
	}
}

// closeSandbox closes the sandbox of the task, which has ended. Where its container could not be ended, it is tried once.
func (d *drive) closeSandbox(ctx context.Context) error {
	if d.astray == nil {
		return d.retry(ctx, func() error { return d.r.closeSandbox(ctx, d.rec.Task.ID) })
	}
	ctx, cancel := context.WithTimeoutCause(ctx, lastTime, d.astray)
	defer cancel()
	return d.r.closeSandbox(ctx, d.rec.Task.ID)
}

// unclosed tells of what is left of the task. One of which a container may still run is not canceled.
func (d *drive) unclosed(res *berth.Result, err error) {
	remedy := "`berth system cleanup` tries again"
	if d.closesLater() {
		remedy = "berth tries again"
	}
	if res.State != berth.Canceled || !d.rec.unended() {
		d.warn("the sandbox could not be removed; " + remedy + ": " + err.Error())
		return
	}
	d.notEnded(res, remedy, err)
}

// notEnded makes the result that of a task whose end was asked for, and whose container may still run.
func (d *drive) notEnded(res *berth.Result, remedy string, err error) {
	res.State, res.Reason = berth.SystemError, berth.Lost
	res.Detail = "an end was asked for, but the container could not be ended and may still run; " + remedy +
		" once the engine answers: " + d.plainly(cmp.Or(d.astray, err)).Error()
}

// MayRun reports whether a task has its result though a container of it may still run, as nobody could end it.
func (r *Record) MayRun() bool {
	return r.Result != nil && r.Sandbox != "" && r.unended()
}

// unended reports whether a step was begun of which nobody knows that it has ended.
func (r *Record) unended() bool {
	return slices.ContainsFunc(r.Steps, func(s StepRecord) bool { return s.Spec.ID != "" && s.Exit == nil })
}
