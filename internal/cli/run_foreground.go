package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/runner"
	"github.com/berth-project/berth/store"
)

// foreground is a task that this process runs and shows.
type foreground struct {
	a        *app
	o        *runOptions
	h        *host
	id       string
	cancel   context.CancelCauseFunc // of the task
	progress *progress
	phase    phase
	waiting  bool
	heard    func() // the daemon has answered
	sizes    <-chan berth.Size
	streams  sync.WaitGroup // that copy what the running step writes
	unended  func()         // has them end though their step has not; nil while none runs

	unread atomic.Bool  // nobody reads what the task writes
	given  atomic.Bool  // up to show what it wrote: nobody reads it
	moved  atomic.Int64 // bytes that were shown
	asked  func() bool  // whether this process was told to end the task, or another was
	ending atomic.Bool  // another process has asked for the task's end
	mu     sync.Mutex
	lost   error // the first reason for which something could not be shown
}

// runForeground runs a task to its end. Its exit code is that of the task.
func (a *app) runForeground(ctx context.Context, o *runOptions, task berth.Task) error {
	writable := runner.Writable(&task)
	res, lost, err := a.drive(ctx, o, task)
	if err != nil {
		err = forUser(a.unfigured(err), task.ID)
		res = refused(task, err)
	}
	if o.result != "" {
		if bad := a.writeResult(o.result, res, writable); err == nil {
			err = bad
		}
	}
	if err != nil {
		if lost != nil {
			a.say("warning: what the task wrote was not all shown: %v", lost)
		}
		return err
	}
	if res.Kept != "" && !o.quiet {
		a.say("kept in %s until: berth rm %s", res.Kept, res.ID)
	}
	if lost != nil && taskExit(res) != 0 {
		a.say("warning: what the task wrote was not all shown: %v", lost)
	}
	if last := verdict(res); last != "" && (res.State != berth.Canceled || res.Detail != unreadDetail) { // which its user has chosen, as by head
		a.say("%s", oneLine(errors.New(asFlags(last)+missingDir(o.outputs, last))))
	}
	if lost != nil && taskExit(res) == 0 {
		return fmt.Errorf("what the task wrote was not all shown: %w: %w", berth.ErrUnavailable, lost)
	}
	return exitOf(taskExit(res))
}

// unreadDetail is why a task was ended whose output goes to a pipe that nobody reads.
const unreadDetail = "nobody reads its output any more"

// missingDir says how a directory is had that a task was to write into and did not find: HOST/ does not make it one.
func missingDir(outputs []string, last string) string {
	for _, s := range outputs {
		p, err := parsePair(s, "type", "name", "prefix", "optional!")
		if err == nil && strings.HasSuffix(p.src, "/") && !strings.HasSuffix(p.dst, "/") && last == "output "+p.dst+" was not produced" {
			return fmt.Sprintf("; if it is a directory for the task to write into, name it %s/: then it is there", p.dst)
		}
	}
	return ""
}

// unlessDead submits a task again where its name was that of one whose berth was killed, once that has its end.
func (a *app) unlessDead(ctx context.Context, h *host, submit func() error) error {
	err := submit()
	taken, ok := errors.AsType[*store.NameError](err)
	if !ok {
		return err
	}
	if r, bad := h.tasks.Get(ctx, taken.ID); bad == nil && h.adrift(r) {
		a.settle(ctx, h)
		err = submit()
	}
	if taken, ok = errors.AsType[*store.NameError](err); ok {
		return &quietError{fmt.Sprintf("run: --name: %v; choose another name, or end that task (berth stop %s)", taken, taken.ID), err}
	}
	return err
}

// forUser tells of an error without an ID that nobody was told, and by the flags that were given.
func forUser(err error, id string) error {
	text := err.Error()
	for _, what := range [][2]string{{" to task ", ": "}, {"task ", ""}, {"submit ", ""}} {
		text = strings.ReplaceAll(text, what[0]+id+": ", what[1])
	}
	text = asFlags(text)
	if text == err.Error() {
		return err
	}
	return &quietError{text, err}
}

// refused is the result of a task that came to nothing, so that --result never shows an older one.
func refused(task berth.Task, err error) berth.Result {
	res := berth.Result{ID: task.ID, Name: task.Name, State: berth.SystemError, ExitCode: -1, Detail: oneLine(err), DiskEnforcement: string(berth.DiskNone)}
	if len(task.Steps) > 0 {
		res.Image = task.Steps[0].Image
	}
	if errors.Is(err, berth.ErrCanceled) {
		res.State, res.Reason = berth.Canceled, berth.Stopped
	}
	return res
}

// drive runs a task to its end. lost says which of its output could not be shown.
func (a *app) drive(ctx context.Context, o *runOptions, task berth.Task) (res berth.Result, lost, err error) {
	f := &foreground{a: a, o: o, id: task.ID, progress: a.newProgress(o.progress, o.quiet)}
	a.retrying = f.phase.retrying
	if !o.quiet {
		a.away = a.sayAway
	}
	h, err := a.open(ctx)
	if err != nil {
		return berth.Result{}, nil, err
	}
	defer h.close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	f.h, f.cancel = h, cancel
	ctx, stop := twice(ctx, f.endNow)
	defer stop()
	f.heard = a.tellOfDeaf(o)
	defer f.heard()
	a.assign(&task)
	if err := a.fit(ctx, h, o, &task); err != nil {
		return berth.Result{}, nil, err
	}
	a.revive(ctx, h)
	defer f.progress.close()
	f.phase.say = a.say
	defer f.phase.end()
	f.asked = func() bool { return ctx.Err() != nil || f.ending.Load() }
	defer f.tellOfGrace(ctx)()
	err = a.withTerminal(o.tty, o.interactive, func(sizes <-chan berth.Size) (err error) {
		f.sizes = sizes
		err = a.unlessDead(ctx, h, func() (err error) {
			res, err = h.runner.Run(ctx, task, f.hooks(&task))
			return err
		})
		return err
	})
	if f.unended != nil { // a step that nobody can end
		f.unended()
		f.shown(true)
	}
	if !f.given.Load() {
		f.streams.Wait()
	}
	if f.unread.Load() && res.State == berth.Canceled {
		res.Detail = unreadDetail
	}
	return res, f.lost, err
}

// sayAway tells of a daemon that does not answer while a task runs on it.
func (a *app) sayAway(since time.Duration, why error) {
	after := berth.FormatDuration(since.Round(time.Second))
	if why == nil {
		a.say("the daemon answers again, after %s", after)
		return
	}
	a.say("the daemon has not answered for %s: the task may run on, its time limit is kept once the daemon is back, and berth waits for that; interrupt twice to end berth: %s", after, oneLine(why))
}

// graceWord is how long a task may take to end before one is told that it can be ended at once.
const graceWord = time.Second

// tellOfGrace says, of a task that does not end soon after an interrupt, what a second one does. Where nobody reads its output
// any more there was none.
func (f *foreground) tellOfGrace(ctx context.Context) (done func()) {
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-ended:
			return
		case <-ctx.Done():
		}
		if f.o.quiet || f.unread.Load() || !errors.Is(context.Cause(ctx), berth.ErrCanceled) {
			return
		}
		select {
		case <-ended:
		case <-time.After(graceWord):
			f.a.say("ending the task; interrupt again to kill it at once")
		}
	})
	return func() {
		close(ended)
		wg.Wait()
	}
}

// endNow is what a second interrupt does.
func (f *foreground) endNow() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := f.h.runner.Cancel(ctx, f.id, true); err != nil && !errors.Is(err, berth.ErrNotFound) {
		f.a.say("%v", err)
	}
}

// deafWord is how long a daemon may take to answer before that is told.
const deafWord = 10 * time.Second

// tellOfDeaf says, of a daemon that has not answered the first question about a task for a while, that it is waited for.
func (a *app) tellOfDeaf(o *runOptions) (heard func()) {
	if o.quiet || a.global.engine != engineDocker {
		return func() {}
	}
	timer := time.AfterFunc(deafWord, func() { a.say("waiting for the daemon to answer") })
	return func() { timer.Stop() }
}

func (f *foreground) hooks(task *berth.Task) runner.Hooks {
	at := func(point string) {
		f.heard()
		f.phase.at(point, task)
		if point == "prepared" {
			f.progress.settle() // of several images, one that was not to be had is waited for no more
		}
	}
	if f.progress.mode == "none" {
		at = func(string) { f.heard() }
	}
	return runner.Hooks{
		At:       at,
		Waiting:  f.wait,
		Progress: f.progress.report,
		Warn: func(text string) {
			if !f.o.quiet {
				f.a.say("warning: %s", oneLine(errors.New(asFlags(text)+missingDir(f.o.outputs, text))))
			}
		},
		Started: f.started,
		Holds:   true,
		Ended:   f.ended,
		Ending:  func() { f.ending.Store(true) },
	}
}

func (f *foreground) wait(why string) {
	f.heard()
	if f.o.quiet {
		return
	}
	if why != "" {
		f.waiting = true
		f.a.say("waiting %s", strings.TrimPrefix(why, "waiting "))
	} else if f.waiting {
		f.waiting = false
		f.a.say("no longer waiting")
	}
}

// started connects a step's streams to berth's.
func (f *foreground) started(_ int, c berth.Container) {
	// The streams end with the container, not with what asks for its end.
	ctx, cancel := context.WithCancelCause(context.Background())
	f.unended = func() { cancel(errUnended) }
	logs, ok := c.(berth.LogReader)
	if !ok {
		f.a.say("warning: what the task writes cannot be shown: the engine keeps no logs")
		return
	}
	for _, s := range []struct {
		stderr bool
		to     io.Writer
	}{{false, f.a.out}, {true, f.a.err}} {
		r, err := logs.Logs(ctx, berth.LogOptions{Stderr: s.stderr, Follow: true, Hold: true})
		if err != nil {
			f.a.say("warning: what the task writes cannot be shown: %v", err)
			continue
		}
		f.streams.Go(func() {
			defer func() { _ = r.Close() }()
			n, err := io.Copy(counted{s.to, &f.moved}, r)
			if log, ok := r.(interface{ Skipped() int64 }); ok && err == nil && log.Skipped() > 0 {
				err = fmt.Errorf("%d bytes of it were dropped", log.Skipped())
			}
			f.copied(n, err)
		})
	}
	if f.o.interactive {
		f.feed(ctx, c)
	}
	if resizer, ok := c.(berth.Terminal); ok && f.sizes != nil {
		go func() { // ends with the process: nobody tells that there will be no further sizes
			for size := range f.sizes {
				if err := resizer.Resize(ctx, size.Rows, size.Cols); err != nil {
					return
				}
			}
		}()
	}
}

// errUnended: what a step writes from now on is not shown, as nobody can end it.
var errUnended = errors.New("the container is left as it is")

// ended waits for what a step wrote to be shown, and tells what of it is not kept.
func (f *foreground) ended(_ int, e berth.Exit) {
	f.shown(e.Reason == berth.Stopped)
	f.unended()
	f.unended = nil
	// A daemon does not know a code of 128+n from a signal: that is no loss.
	may := fmt.Sprintf("exit code %d, or killed by signal %d", e.Code, e.Code-128)
	lost := e.Detail != "" && (!strings.HasPrefix(e.Detail, may) || strings.Contains(e.Detail, "; "))
	if e.Reason == berth.Exited && lost && !f.o.quiet {
		f.a.say("warning: %s", e.Detail)
	}
}

// counted counts what is written.
type counted struct {
	io.Writer
	n *atomic.Int64
}

func (c counted) Write(p []byte) (int, error) {
	n, err := c.Writer.Write(p)
	c.n.Add(int64(n))
	return n, err
}

// showMax is how long who reads what a task wrote may read nothing, where somebody has asked for its end.
const showMax = 5 * time.Second

// shown waits until all is shown that a step wrote; of one whose end was or is asked for, not longer than showMax for the
// next of it: who reads it may have stopped, as a pager does that is suspended.
func (f *foreground) shown(asked bool) {
	done := make(chan struct{})
	go func() { // ends with the streams, or with the process
		f.streams.Wait()
		close(done)
	}()
	tick := time.NewTicker(showMax / 50)
	defer tick.Stop()
	for still, last := time.Now(), f.moved.Load(); time.Since(still) < showMax; {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		asked = asked || f.asked()
		if moved := f.moved.Load(); moved != last || !asked {
			still, last = time.Now(), moved
		}
	}
	f.given.Store(true)
	f.a.say("warning: what the task wrote was not all shown, as nobody reads it: berth logs %s has it", f.id)
}

// copied ends the task where nobody reads its output any more, as a pipe does with a command.
func (f *foreground) copied(_ int64, err error) {
	switch {
	case err == nil, errors.Is(err, errUnended):
	case errors.Is(err, syscall.EPIPE):
		f.unread.Store(true)
		f.cancel(berth.ErrCanceled)
	default:
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.lost == nil {
			f.lost = err
		}
	}
}

// feed gives the task berth's standard input.
func (f *foreground) feed(ctx context.Context, c berth.Container) {
	stdin, ok := c.(berth.StdinWriter)
	if !ok {
		f.a.say("warning: the engine passes no standard input on")
		return
	}
	w, err := stdin.Stdin(ctx)
	if err != nil {
		if !errors.Is(err, berth.ErrNotFound) && !errors.Is(err, berth.ErrConflict) { // it has ended
			f.a.say("warning: no standard input: %v", err)
		}
		return
	}
	go func() { // ends with the process: a pending read of standard input cannot be given up
		_, _ = io.Copy(w, f.a.in) // that the task stopped reading is its own affair
		_ = w.Close()
	}()
}

// runDetached submits a task and prints its ID.
func (a *app) runDetached(ctx context.Context, o *runOptions, task berth.Task) error {
	h, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer h.close()
	ctx, stop := notify(ctx)
	defer stop()
	a.assign(&task)
	if err := a.fit(ctx, h, o, &task); err != nil {
		return err
	}
	a.revive(ctx, h)
	var id string
	err = a.unlessDead(ctx, h, func() (err error) {
		id, err = h.runner.Submit(ctx, task)
		return err
	})
	if err != nil {
		return forUser(a.unfigured(err), task.ID)
	}
	if err := a.startWorker(h.dir, id); err != nil {
		return err
	}
	if _, err := fmt.Fprintln(a.out, id); err != nil {
		return err
	}
	return a.awaitStart(ctx, h, id)
}

// neverRan is the exit code of a detached run whose command never ran; nil where it did, however it ended.
func neverRan(res berth.Result) error {
	switch {
	case res.Reason == berth.NeverStarted:
		return exitError(res.ExitCode)
	case res.State == berth.SystemError && res.Started == nil:
		return exitError(exitOwn)
	}
	return nil
}

// runs reports whether a container of a task runs just now.
func (h *host) runs(ctx context.Context, task string) bool {
	list, err := h.engine.List(ctx)
	return err != nil || slices.ContainsFunc(list, func(s berth.Status) bool {
		return s.Sandbox == task && s.Container != "" && s.State == berth.ContainerRunning
	})
}

// startMax is how long a container that is being started is waited for: a daemon may be busy, or whoever starts it killed.
const startMax = time.Minute

// initWord is how long a daemon's init may take to say that it cannot run the command.
const initWord = 500 * time.Millisecond

// awaitStart waits for a moment until a detached task runs, so that who asks for it next finds it running; for as long
// as it takes, once its container is being started. A task that waits for room or for its image is not waited for; one
// that has ended as it should not is told of.
func (a *app) awaitStart(ctx context.Context, h *host, id string) error {
	var runs time.Time
	for began := time.Now(); ctx.Err() == nil; { // the task goes on, whatever ends this
		rec, err := h.runner.Record(ctx, id)
		switch {
		case isNotFound(err): // it was removed meanwhile
			return nil
		case ctx.Err() != nil:
			continue
		case err != nil:
			return err
		case rec.Result != nil:
			if last := verdict(*rec.Result); last != "" {
				a.say("%s", oneLine(errors.New(asFlags(last))))
			}
			return neverRan(*rec.Result)
		case rec.State == berth.Running && !h.runs(ctx, id) && time.Since(began) < startMax:
			runs = time.Time{} // it has ended, or never began: the record will say
		case rec.State == berth.Running && runs.IsZero() && a.global.engine == engineDocker:
			runs = time.Now()
		case rec.State == berth.Running && a.global.engine == engineDocker && time.Since(runs) < initWord:
			// What runs may be the daemon's init alone, which is yet to find that there is no such command.
		case rec.State != berth.Queued && rec.State != berth.Initializing, rec.Admitted == nil && len(rec.Log) > 0:
			return nil
		case len(rec.Steps) == 0 && time.Since(began) > silence, time.Since(began) > startMax:
			return nil
		}
		_ = sleep(ctx, startPoll) // the loop sees that it was cut short
	}
	return nil
}
