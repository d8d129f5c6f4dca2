package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// watch has the step watched by this process, once. lock and out are what Start has taken already; nil where
// the step was started by another process, or an earlier one.
func (l *life) watch(sb *Sandbox, lock *os.File, out *output) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sb = sb
	if l.watched {
		return
	}
	l.watched = true
	l.e.wg.Go(func() {
		ctx := l.e.ctx
		if lock == nil {
			var err error
			if lock, err = l.lock(ctx); err != nil {
				l.giveUp(err)
				return
			}
		}
		defer func() { _ = lock.Close() }()
		l.setLocked(lock)
		defer l.setLocked(nil)
		if l.known() {
			return
		}
		if err := l.follow(ctx, out); err != nil {
			l.giveUp(err)
		}
	})
}

// giveUp: the record may be gone (the step was removed by another process), or the engine ends.
func (l *life) giveUp(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.watched = false
	if context.Cause(l.e.ctx) == nil {
		l.e.cfg.Logger.Warn("container is watched no more", "container", l.String(), "error", err)
		l.setExit(berth.Exit{Reason: berth.Lost, Code: -1, Detail: err.Error()})
	}
}

// follow sees the container to its end: its output, its time, its exit.
func (l *life) follow(ctx context.Context, out *output) error {
	var r *record
	var unfilled error
	resumed := out == nil
	for {
		var err error
		if r, err = l.readRecord(); err == nil && resumed {
			out, unfilled, err = l.resumeOutput(ctx, r)
		}
		if err == nil {
			break
		}
		if !isShort(err) {
			return err
		}
		l.e.cfg.Logger.Error("container is not watched yet", "container", l.String(), "err", err)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(closeAgain):
		}
	}
	if resumed {
		l.takeHanded(out)
	}
	l.watchOOM(r) // where another process has started it
	if resumed {
		l.e.wg.Go(func() { l.learnID(ctx) })
	}
	over := make(chan struct{})
	drained := make(chan error, 1)
	draining, endDrain := context.WithCancel(ctx)
	defer endDrain()
	l.setOutput(out)
	defer l.setOutput(nil)
	l.e.wg.Go(func() { drained <- out.drain(draining, over) })
	limits, stop := context.WithCancel(ctx)
	var guards sync.WaitGroup
	guards.Go(func() { l.keepTime(limits, r) })
	guards.Go(func() { l.keepDisk(limits) })
	if r.Cgroup == "" {
		guards.Go(func() { l.keepUsage(limits) })
	}
	before := &past{l: l, r: r}
	var guard pipeGuard
	state, away, err := l.await(ctx, before, &guard)
	cut := l.cutOff(r, away.ever)
	answer := make(chan history, 1)
	if err == nil && state.Status != container.StateCreated {
		l.e.wg.Go(func() { answer <- before.of(ctx, state) })
	} else {
		answer <- history{}
	}
	happened := sync.OnceValue(func() history { return <-answer })
	out.ease()
	close(over)
	stop()
	guards.Wait()
	if err != nil && ctx.Err() != nil {
		guard.end(0)
		return errors.Join(err, out.close()) // which ends the draining
	}
	var late error
	select {
	case late = <-drained:
		if errors.Is(late, errGiven) { // as this process ends: it is another one's to say how it ended
			<-ctx.Done()
			return errors.Join(context.Cause(ctx), out.close())
		}
	case <-time.After(l.e.cfg.StreamsMax):
		endDrain() // which hangs up, and ends a call that the daemon does not answer
		late = l.streamsLate()
		select { // so that two do not read
		case err := <-drained:
			l.e.cfg.Logger.Debug("reading a container's output ended late", "container", l.String(), "error", err)
		case <-time.After(endMax):
		}
	}
	if (late != nil || away.ever) && !out.ephemeral {
		late = l.catchUp(ctx, out, late)
	}
	exit := berth.Exit{Reason: berth.Lost, Code: -1, Runtime: r.Runtime}
	if err != nil {
		exit.Detail = err.Error()
	} else {
		exit = l.exitOf(r, state, out.initSays(), happened)
		out.refused = exit.Reason == berth.NeverStarted
	}
	if cut != "" && exit.Reason == berth.Exited {
		input := strings.TrimSpace("standard input " + r.Spec.Stdin)
		exit.Detail = fmt.Sprintf("%s was not handed over to its end: %s; it exited with code %d", input, cut, exit.Code)
		exit.Reason, exit.Code = berth.Lost, -1
	}
	if exit.Reason == berth.Exited {
		h := happened()
		if exit.Code == unknownCode && h.known && !h.died && h.anew(away.since) { // it may tell of the end a little after it
			h = l.history(ctx, r).after(h)
		}
		l.foreign(&exit, h, l.e.liveRestore(ctx, away.ever), away.since)
	}
	whole := false
	if away.ever || resumed {
		guard.end(restWait)
		var rerr error
		// Of one that a daemon may have seen run again, that may have read of it what nobody was attached for.
		alone := !out.ephemeral || err == nil && l.e.parseTime(state.FinishedAt).Before(l.e.born())
		whole, rerr = l.takeRest(out, alone)
		if whole && errors.Is(late, errUnattached) { // it was not: all of it was in its pipes
			late = nil
		}
		late = errors.Join(late, rerr)
	}
	if err == nil && late == nil && !away.since.IsZero() && !whole {
		late = errors.New("the daemon was away when the container ended: what it wrote last may be missing")
	}
	late = errors.Join(late, out.marksIn(), out.tornIn(), out.holesIn(), out.close())
	if err := out.gapsIn(); err != nil {
		late = errors.Join(late, err)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if late != nil {
		exit.Detail = appendDetail(exit.Detail, "output: "+late.Error())
	}
	if unfilled = errors.Join(unfilled, out.unfilled(r)); unfilled != nil {
		exit.Unfilled = strings.ReplaceAll(unfilled.Error(), "\n", "; ")
	}
	if err := l.conclude(exit, r); err != nil {
		return err
	}
	l.deliver(ctx, r)
	return nil
}

// learnID asks the daemon for its id of a container that another process has started: by that it is found when the daemon is away.
func (l *life) learnID(ctx context.Context) {
	c, err := l.inspect(ctx, l.docker())
	if err != nil {
		return // who waits for the container tells of it
	}
	l.setID(c.ID)
}

func (l *life) setID(id string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if id != "" {
		l.id = id
	}
}

func (l *life) streamsLate() error {
	return fmt.Errorf("container finished, but stdout/stderr did not complete within %v: %w", l.e.cfg.StreamsMax, berth.ErrUnavailable)
}

// catchUp reads the daemon's log where a stream has failed. That failure is what is told where this fails too.
func (l *life) catchUp(ctx context.Context, out *output, first error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, l.e.cfg.StreamsMax, l.streamsLate())
	defer cancel()
	stop := context.AfterFunc(ctx, out.hangUp)
	defer stop()
	err := out.catchUp(ctx)
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if unread(err) && (unread(first) || errors.Is(first, errUnread)) {
		return nil // holesIn tells of it
	}
	if err != nil && first != nil {
		return fmt.Errorf("%w; then: %w", first, err)
	}
	return err
}

func appendDetail(s, more string) string {
	if s == "" {
		return more
	}
	return s + "; " + more
}

// conclude records the exit before anybody is told, and has it on the disk a little later. Should the machine crash
// meanwhile, the daemon has the container still.
func (l *life) conclude(exit berth.Exit, r *record) error {
	f, err := putJSON(filepath.Join(l.dir, exitFile), exit)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		// A full disk, say, or no descriptor. It is told all the same: who comes later asks the daemon again, which has the container until that is removed.
		l.e.cfg.Logger.Error("the end of a container is not recorded", "container", l.String(), "error", err)
		l.mu.Lock()
		l.setExit(exit)
		l.mu.Unlock()
		return nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("its record was removed as it ended, which is not recorded: %w", berth.ErrNotFound)
	}
	l.mu.Lock()
	l.setExit(exit)
	l.mu.Unlock()
	runtime.Gosched() // who waits goes first: removing cgroups holds this processor up
	l.e.wg.Go(func() {
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			l.e.cfg.Logger.Error("exit not brought to the disk", "container", l.String(), "error", err)
		}
	})
	l.removeCgroup(r)
	return nil
}

const reconnect = 500 * time.Millisecond

// absence is when a daemon was gone: connections to it broke, or could not be made.
type absence struct {
	ever  bool
	since time.Time // of the last absence, where it has not said since that the container runs
}

func (a *absence) begin() {
	a.ever = true
	if a.since.IsZero() {
		a.since = time.Now()
	}
}

// await waits for the container's end by the daemon's word, and has it asked for the past meanwhile. An error is that nobody
// can say.
func (l *life) await(whole context.Context, before *past, guard *pipeGuard) (state *container.State, away absence, err error) {
	ctx, cancel := context.WithCancel(whole)
	defer cancel()
	waiting, leave := context.WithCancel(whole)
	defer func() { time.AfterFunc(answerTime, leave) }() // a connection that has its answer serves again
	dog := time.NewTicker(l.e.cfg.Watchdog)
	defer dog.Stop()
	fails := 0
	word := l.e.newOutage()
	if l.e.cfg.Away != nil {
		l.e.wg.Go(func() { l.e.watchAnswers(ctx, word) })
	}
	missed := func(err error) {
		away.begin()
		l.broke.set()
		l.guardPipes(whole, guard)
		if unconnected(err) {
			l.refused.set()
		}
		word.silent(away.since, err)
	}
	wait, told := l.askEnd(waiting), l.hears()
	var died <-chan struct{}
	if told != nil {
		died = told.done
	}
	var again, stopped <-chan time.Time
	for {
		count, cleaned, silent := false, true, false
		select {
		case <-ctx.Done():
			return nil, away, context.Cause(ctx)
		case <-l.renewed:
			return nil, away, errors.New("it ended as berth attached to it again: Podman has made it ready to start anew then, and forgotten how it ended")
		case <-l.removed: // Podman may not answer who waits for such
			return nil, away, fmt.Errorf("it was removed: %w", berth.ErrNotFound)
		case err := <-wait:
			switch {
			case err == nil:
				before.begin(whole)
			case !errors.Is(err, errUntold):
				missed(err)
			}
			wait, again = nil, time.After(reconnect)
		case <-died: // which may be before who waits has an answer: that comes when what the container had is put away
			died = nil
			if !told.died.IsZero() { // else the container may run still, and what happens to it is yet to come
				before.begin(whole)
			}
		case <-again:
			again, wait = nil, l.askEnd(waiting)
			if away.since.IsZero() {
				continue
			}
			// A daemon that is back is seen to be, and not only when the container has ended.
		case <-l.silent:
			silent = true
		case <-stopped:
			stopped, cleaned = nil, false
		case <-dog.C:
			count = true
		}
		asked := time.Now()
		ictx, icancel := context.WithTimeout(ctx, l.e.cfg.Watchdog)
		c, err := l.inspect(ictx, l.docker())
		icancel()
		if err == nil {
			l.setID(c.ID)
		}
		if err == nil && (isOver(c.State) || c.State.Status == stateStopped && !cleaned) {
			return c.State, away, nil
		}
		if err == nil && c.State.Status == stateStopped {
			if stopped == nil {
				stopped = time.After(stoppedMax)
			}
			continue
		}
		if silent { // nobody has said that anything is otherwise
			continue
		}
		before.forget()
		switch {
		case err == nil && (c.State.Running || c.State.Status == container.StateCreated):
			fails = 0
			away.since = time.Time{}
			word.answered()
			guard.end(0)
		case errors.Is(err, berth.ErrNotFound):
			return nil, away, fmt.Errorf("the daemon does not know the container any more: %w", err)
		default:
			switch {
			case err == nil:
				err = fmt.Errorf("container is not running: State=%s", c.State.Status)
			case time.Since(asked) >= min(l.e.cfg.Watchdog, l.e.cfg.CallMax): // it hangs: connections are as they were
				word.silent(asked, err)
				err = fmt.Errorf("error inspecting container: %w", err)
			default:
				missed(err)
				err = fmt.Errorf("error inspecting container: %w", err)
			}
			if !count {
				continue
			}
			if fails++; fails >= watchdogMax {
				return nil, away, fmt.Errorf("docker watchdog: giving up after %d failures in a row: %w", fails, err)
			}
			l.e.cfg.Logger.Warn("docker watchdog", "container", l.String(), "failures", fails, "error", err)
		}
	}
}

// answerTime is how long a daemon may take to say that a container has ended to one who asks, when it has to another.
const answerTime = time.Second

// errUntold: the daemon has answered who waits, and not that the container has ended.
var errUntold = errors.New("the daemon cannot say that the container has ended")

// hears is what is told of the container; nil where nobody hears.
func (l *life) hears() *told {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.told
}

// askEnd asks the daemon to say when the container has ended. The channel gets one answer.
func (l *life) askEnd(ctx context.Context) <-chan error {
	answer := make(chan error, 1)
	l.e.wg.Go(func() {
		res := l.e.api().ContainerWait(ctx, l.docker(), client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
		select {
		case r := <-res.Result:
			if r.Error != nil && r.Error.Message != "" { // Podman always has one, which is empty
				answer <- fmt.Errorf("%w: %s", errUntold, r.Error.Message)
				return
			}
			answer <- nil
		case err := <-res.Error:
			answer <- err
		case <-ctx.Done():
			answer <- ctx.Err()
		}
	})
	return answer
}

// keepTime ends the container at its time limit.
func (l *life) keepTime(ctx context.Context, r *record) {
	if r.Spec.Timeout <= 0 {
		return
	}
	started := r.Created
	if c, err := l.inspect(ctx, l.docker()); err == nil {
		if at := l.e.parseTime(c.State.StartedAt); !at.IsZero() {
			started = at
		}
	}
	t := time.NewTimer(time.Until(started.Add(r.Spec.Timeout)))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
		l.enforce(ctx, intent{Reason: berth.TimedOut, Detail: fmt.Sprintf("the time limit of %v was reached", r.Spec.Timeout)}, r.Spec.Grace)
	}
}

// enforce ends the container for a limit; where the daemon is away, once it answers.
func (l *life) enforce(ctx context.Context, why intent, grace time.Duration) {
	var word sparse
	for {
		answers := l.e.Answers(ctx) // before it is noted that berth ends it: it may end by itself
		err := answers
		if err == nil {
			err = l.end(ctx, why, grace)
		}
		if err == nil || ctx.Err() != nil {
			if late, said := word.over(); said && answers == nil && l.e.ctx.Err() == nil {
				l.e.cfg.Logger.Info("container was ended at its limit, late", "container", l.String(), "limit", why.Detail, "late", late)
			}
			return
		}
		if since, due := word.due(time.Now()); due {
			l.e.cfg.Logger.Error("container not ended at its limit, which is tried again", "container", l.String(), "limit", why.Detail, "since", since, "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(reconnect):
		}
	}
}

// parseTime reads a time of the daemon's, by this machine's clock.
func (e *Engine) parseTime(s string) time.Time {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil || t.Year() <= 1 {
		return time.Time{}
	}
	if h, err := e.daemon(e.ctx); err == nil {
		t = t.Add(-h.ahead)
	}
	return t
}
