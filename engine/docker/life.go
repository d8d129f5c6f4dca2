package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/logfile"
	"github.com/berth-project/berth/scratch"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// life is one step as this process knows it. Of all processes that know it, the one that holds the lock file
// of its directory drains its output, keeps its time and records its exit; the others wait for that.
type life struct {
	e             *Engine
	sandbox, step string
	dir           string
	starting      sync.Mutex
	enders        atomic.Int32 // calls of end that go on
	// When a connection to the daemon last broke, and when none could be had.
	broke, refused lastTime

	mu       sync.Mutex
	watched  bool
	sb       *Sandbox
	rec      *record
	id       string // the daemon's
	writers  map[string]*logfile.Writer
	out      *output  // while this process reads it
	handed   *handed  // what this process is to read first
	locked   *os.File // the step's lock, while this process has it
	stdin    *stdin
	feeding  chan struct{} // closed when stdin is no longer fed from a file; nil where it never was, here
	starved  error         // why that file could not be read to its end
	unfed    bool          // it was not handed over to its end
	address  string        // once it was asked for
	used     berth.Usage   // of a container without a cgroup of the step's, when it was last looked at
	cgroup   *cgroupFiles  // of the container itself, once it was found
	noCgroup bool          // it was looked for while the container ran, and is not to be found
	told     *told         // nil where nobody hears what the daemon tells
	started  time.Time     // when its start was answered, by this process
	rest     *rest         // what it left in its pipes as the daemon was away; nil: nothing was found
	oom      *oomWatch     // nil where the daemon tells, or nobody can
	held     bool          // see berth.StepSpec.Hold; of the process that started it
	bare     bool          // nothing is left of the step's cgroup
	ended    chan struct{} // the exit is known
	removed  chan struct{} // this process has removed the container
	silent   chan struct{} // holds one where its streams have ended, and nobody has said that it has
	renewed  chan struct{} // holds one where Podman has made the ended container ready to start anew
	exit     *berth.Exit
}

// record is what must be known of a step when berth comes back.
type record struct {
	Hash    string         `json:"hash"`
	Spec    berth.StepSpec `json:"spec"`   // without its environment, which may hold secrets
	Limits  berth.Limits   `json:"limits"` // in force
	Cgroup  string         `json:"cgroup,omitempty"`
	Runtime string         `json:"runtime"`
	// Unverified: see berth.Exit.
	Unverified string    `json:"unverified,omitempty"`
	Created    time.Time `json:"created"`
}

// intent is why berth ends a container. It is recorded before the first signal is sent.
type intent struct {
	Reason berth.Reason `json:"reason"`
	Detail string       `json:"detail,omitempty"`
	At     time.Time    `json:"at"`
}

const (
	recordFile = "step.json"
	exitFile   = "exit.json"
	intentFile = "intent.json"
	lockFile   = "lock"
)

func (e *Engine) containerName(sandbox, step string) string {
	return "berth-" + e.owner + "-" + sandbox + "-" + step
}

func (e *Engine) life(sandbox, step string) *life {
	name := sandbox + "/" + step // containers' names may be those of several
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.lives[name]
	if l == nil {
		l = &life{e: e, sandbox: sandbox, step: step, dir: filepath.Join(e.sandboxDir(sandbox), "steps", step), ended: make(chan struct{}), removed: make(chan struct{}), renewed: make(chan struct{}, 1), silent: make(chan struct{}, 1)}
		e.lives[name] = l
	}
	return l
}

func (e *Engine) drop(l *life) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if name := l.sandbox + "/" + l.step; e.lives[name] == l {
		delete(e.lives, name)
	}
}

// livesOf is what this process knows of a sandbox's steps.
func (e *Engine) livesOf(sandbox string) (all []*life) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, l := range e.lives {
		if l.sandbox == sandbox {
			all = append(all, l)
		}
	}
	return all
}

// tellRemoved has who waits for containers that this process has removed hear of it.
func tellRemoved(all []*life, ids []string) {
	for _, l := range all {
		l.mu.Lock()
		if slices.Contains(ids, l.id) {
			l.markRemoved()
		}
		l.mu.Unlock()
	}
}

// markRemoved needs mu.
func (l *life) markRemoved() {
	select {
	case <-l.removed:
	default:
		close(l.removed)
	}
}

func (l *life) String() string { return l.sandbox + "/" + l.step }

func (l *life) readRecord() (*record, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rec != nil {
		return l.rec, nil
	}
	var r record
	if err := readJSON(filepath.Join(l.dir, recordFile), &r); err != nil {
		return nil, fmt.Errorf("container %s: %w", l, err)
	}
	l.rec = &r
	return l.rec, nil
}

func (l *life) logDir(r *record) string {
	if r.Spec.LogDir != "" {
		return r.Spec.LogDir
	}
	return filepath.Join(l.dir, "logs")
}

// tryLock takes the step's lock; nil where another process has it.
func (l *life) tryLock() (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(l.dir, lockFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, err
	}
	return f, nil
}

const lockPoll = 50 * time.Millisecond

// lock waits for the step's lock.
func (l *life) lock(ctx context.Context) (*os.File, error) {
	for {
		f, err := l.tryLock()
		if f != nil || err != nil && !isShort(err) {
			return f, err
		}
		pause := lockPoll
		if err != nil {
			l.e.cfg.Logger.Error("lock of a step", "container", l.String(), "err", err)
			pause = closeAgain
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// isShort reports whether an error is of a host that is short of something, which others may give back.
func isShort(err error) bool {
	return errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ENOMEM)
}

// inspect asks the daemon for the container.
func (l *life) inspect(ctx context.Context, id string) (container.InspectResponse, error) {
	ctx, cancel := l.e.call(ctx)
	defer cancel()
	res, err := l.e.api().ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return container.InspectResponse{}, wrap(ctx, "container "+l.String(), err)
	}
	if res.Container.State == nil {
		return res.Container, fmt.Errorf("container %s: %w: the daemon says no state", l, berth.ErrUnavailable)
	}
	return res.Container, nil
}

// look says where the container stands.
func (l *life) look(ctx context.Context, id string) (berth.ContainerState, *berth.Exit, error) {
	var exit berth.Exit
	if err := readJSON(filepath.Join(l.dir, exitFile), &exit); err == nil {
		return berth.ContainerEnded, &exit, nil
	}
	c, err := l.inspect(ctx, id)
	if err != nil {
		return "", nil, err
	}
	switch {
	case isOver(c.State):
		r, err := l.readRecord()
		if err != nil {
			r = &record{}
		}
		exit := l.exitOf(r, c.State, nil, nil)
		return berth.ContainerEnded, &exit, nil
	case c.State.Status == container.StateCreated:
		return berth.ContainerCreated, nil, nil
	}
	return berth.ContainerRunning, nil, nil
}

// stateStopped is Podman's, of a container that has ended and after which it has yet to clean up: mostly for a moment.
const stateStopped container.ContainerState = "stopped"

// stoppedMax is how long that may take.
const stoppedMax = 2 * time.Second

// isOver: it has run, or its start has failed for good.
func isOver(s *container.State) bool {
	return s.Status == container.StateExited || s.Status == container.StateDead || s.Status == container.StateCreated && s.Error != ""
}

// known is a step whose exit is recorded.
func (l *life) known() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.exit != nil {
		return true
	}
	var exit berth.Exit
	if err := readJSON(filepath.Join(l.dir, exitFile), &exit); err != nil {
		return false
	}
	l.setExit(exit)
	return true
}

// setExit needs mu.
func (l *life) setExit(e berth.Exit) {
	if l.exit == nil {
		l.exit = &e
		close(l.ended)
	}
}

// wait waits for the exit.
func (l *life) wait(ctx context.Context) (berth.Exit, error) {
	select {
	case <-l.ended:
	default:
		select {
		case <-l.ended:
		case <-ctx.Done():
			return berth.Exit{}, context.Cause(ctx)
		case <-l.e.ctx.Done():
			return berth.Exit{}, context.Cause(l.e.ctx)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return *l.exit, nil
}

// end ends the container with a reason: its stop signal, and after the grace KILL. It returns when the exit is
// known. No error if it had ended before.
func (l *life) end(ctx context.Context, why intent, grace time.Duration) error {
	if l.known() {
		return nil
	}
	l.enders.Add(1)
	defer l.enders.Add(-1)
	file := filepath.Join(l.dir, intentFile)
	why.At = time.Now()
	ours, err := claimJSON(file, why) // who came first says the reason
	if errors.Is(err, fs.ErrNotExist) {
		// Its record was removed, and mostly it was, too.
		_, err := l.kill(ctx, "KILL")
		return err
	} else if err != nil {
		return fmt.Errorf("stop %s: %w: %w", l, kindOf(err), err)
	}
	if grace > 0 {
		sent, err := l.kill(ctx, "") // its stop signal
		if err != nil {
			l.unsent(err, ours)
			return err
		}
		if !sent && ours && l.enders.Load() == 1 {
			_ = os.Remove(file) // it ended by itself: no other has ended it
		}
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-l.ended:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-timer.C:
		}
	}
	sent, err := l.kill(ctx, "KILL")
	if err != nil {
		if grace <= 0 {
			l.unsent(err, ours)
		}
		return err
	}
	if !sent && ours && grace == 0 && l.enders.Load() == 1 {
		_ = os.Remove(file)
	}
	_, err = l.wait(ctx)
	return err
}

// unsent takes back that berth ends the container, where no signal can have come to it: it may end by itself, hours later.
func (l *life) unsent(err error, ours bool) {
	if ours && l.enders.Load() == 1 && unconnected(err) && !brokenOff(err) {
		_ = os.Remove(filepath.Join(l.dir, intentFile))
	}
}

// brokenOff reports whether a connection broke that a request may have gone over.
func brokenOff(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// easeAfter is how soon a signal is taken by a daemon that nothing holds up.
const easeAfter = time.Second

// ease has who holds a log hold the daemon up no longer, once it is late to answer: it says nothing of a container, and
// takes no signal to it, while it has output of its end to hand over. done has the logs held again; the end eases them
// for good.
func (l *life) ease() (done func()) {
	over := make(chan struct{})
	var eased sync.WaitGroup
	eased.Go(func() {
		select {
		case <-over:
			return
		case <-time.After(easeAfter):
		}
		l.mu.Lock()
		writers := slices.Collect(maps.Values(l.writers))
		l.mu.Unlock()
		for _, w := range writers {
			defer w.Ease()()
		}
		<-over
	})
	return func() {
		close(over)
		eased.Wait()
	}
}

// kill sends a signal; "" is the container's stop signal. It reports whether there was anything to send to.
func (l *life) kill(ctx context.Context, sig string) (bool, error) {
	if sig == "" {
		sig = l.stopSignal()
	}
	ctx, cancel := l.e.call(ctx)
	defer cancel()
	defer l.ease()()
	_, err := l.e.api().ContainerKill(ctx, l.docker(), client.ContainerKillOptions{Signal: sig})
	switch {
	case err == nil || killWait(err):
		return true, nil
	case is(err, berth.ErrNotFound, berth.ErrConflict):
		return false, nil
	}
	return false, wrap(ctx, "signal "+l.String(), err)
}

func (l *life) stopSignal() string {
	r, err := l.readRecord()
	if err != nil {
		return "TERM"
	}
	return cmp.Or(signalText(r.Spec.StopSignal), signalText(r.Spec.Image.Config.StopSignal), "TERM")
}

// docker names the container to the daemon.
func (l *life) docker() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.id != "" {
		return l.id
	}
	return l.e.containerName(l.sandbox, l.step)
}

const (
	removeTries = 5
	removePause = 50 * time.Millisecond // doubles
	removeMost  = time.Second
)

// insist makes a call that removes something again while it conflicts with what the daemon does, or no connection is to be had.
func (e *Engine) insist(ctx context.Context, call func(context.Context) error) error {
	again := func(err error) bool { return is(err, berth.ErrConflict) || unconnected(err) }
	return persist(ctx, again, func() error {
		cctx, cancel := e.call(ctx)
		defer cancel()
		err := call(cctx)
		if err != nil && cctx.Err() != nil {
			err = context.Cause(cctx)
		}
		return err
	})
}

// unconnected reports whether a call has had no answer as the connection failed, and another may. Who may not connect may not
// a moment later either.
func unconnected(err error) bool {
	return client.IsErrConnectionFailed(err) && !is(err, berth.ErrDenied)
}

// persist makes a call again while it fails so.
func persist(ctx context.Context, again func(error) bool, call func() error) error {
	pause := removePause
	for try := 1; ; try++ {
		err := call()
		if !again(err) || try == removeTries {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
		pause = min(2*pause, removeMost)
	}
}

// remove ends the container and removes it, with its record.
func (l *life) remove(ctx context.Context, sb *Sandbox, id string) error {
	if err := l.takeAway(ctx, id); err != nil {
		return err
	}
	if err := l.deliverLate(ctx, sb); err != nil {
		return err
	}
	if err := scratch.Remove(l.dir); err != nil {
		return fmt.Errorf("remove %s: %w: %w", l, kindOf(err), err)
	}
	return nil
}

// takeAway is remove, but for the record.
func (l *life) takeAway(ctx context.Context, id string) error {
	l.mu.Lock()
	watched := l.watched
	l.mu.Unlock()
	if watched {
		err := persist(ctx, unconnected, func() error {
			return l.end(ctx, intent{Reason: berth.Stopped, Detail: "it was removed"}, 0)
		})
		if err != nil {
			return err
		}
	}
	l.awaitExecs(ctx)
	if _, err := l.e.removeContainer(ctx, id); err != nil {
		return wrap(ctx, "remove "+l.String(), err)
	}
	if r, err := l.readRecord(); err == nil {
		l.removeCgroupWhole(r)
	}
	l.e.drop(l)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.id == "" || l.id == id { // not one that was made meanwhile
		l.markRemoved()
	}
	return nil
}
