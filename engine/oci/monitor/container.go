package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/cgroup"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/logfile"
	"github.com/berth-project/berth/scratch"
)

// Names below a container's directory.
const (
	startFile = "start.json"
	exitFile  = "exit.json"
	bundleDir = "b"
	layerDir  = "l" // see launch.layers
)

// startRecord is what is kept of a container on disk.
type startRecord struct {
	startHead
	// Spec is the OCI runtime spec, without Docker's default seccomp profile.
	Spec json.RawMessage `json:"oci"`
}

type startHead struct {
	Step   berth.StepSpec `json:"step"`
	Layers []string       `json:"layers"`
}

// encode is the record as JSON. It puts the spec in as it is: it is most of the record, and encoding/json would look at each byte of it.
func (r startRecord) encode() ([]byte, error) {
	raw, err := json.Marshal(r.startHead)
	if err != nil {
		return nil, err
	}
	raw = append(append(raw[:len(raw)-1], `,"oci":`...), r.Spec...)
	return append(raw, '}'), nil
}

// drainTime is how long the streams of an ended container may stay open: something outside its pid
// namespace holds them then.
const drainTime = 10 * time.Second

// container is one step, started or ended.
type container struct {
	sb     *sandbox
	id     string
	dir    string
	step   berth.StepSpec
	layers []string
	ended  chan struct{} // closed when exit is recorded
	clean  chan struct{} // closed when nothing but records is left

	made     bool          // its directory is, by us: what is there else is another's
	removing bool          // its files are being removed; under sb.mu
	removed  chan struct{} // closed when they are

	started  chan struct{} // closed when the start has come to an end
	abort    func()        // ends what the start copies
	startErr error
	proc     bundle.Process
	group    *cgroup.Group
	runtime  string
	notes    []string
	tame     bool // it could not write to cgroup files
	logs     map[string]*logfile.Writer
	pumps    sync.WaitGroup
	begun    time.Time
	fullThen []string // the limits of disk that were full when it began

	mu     sync.Mutex
	cause  berth.Reason // who ended it, before it ended by itself
	detail string
	exit   berth.Exit
	over   bool // exit is recorded
	stdin  *os.File
	timers []*time.Timer
}

func (sb *sandbox) containerDir(id string) string { return filepath.Join(sb.dir, containersDir, id) }

// name is the container's among all of this monitor's.
func (c *container) name() string { return c.sb.id + "." + c.id }

func (c *container) logDir() string {
	if c.step.LogDir != "" {
		return c.step.LogDir
	}
	return c.sb.m.scratchDir(c.sb.id)
}

// logName is the name of the log of a stream in logDir.
func (c *container) logName(stream string) string {
	if c.step.LogDir != "" {
		return stream
	}
	return "log-" + c.id + "." + stream
}

// start starts a step, or finds the one that was started by the same spec.
func (sb *sandbox) start(ctx context.Context, req *wire.Start) (*container, error) {
	id := req.Step.ID
	if err := berth.CheckID(id); err != nil {
		return nil, err
	}
	c := sb.lockFree(id)
	if c != nil {
		sb.mu.Unlock()
		<-c.started
		if c.startErr != nil {
			return nil, c.startErr
		}
		if !sameStep(c.step, req.Step) {
			return nil, fmt.Errorf("container %s: %w: it is there with another spec", id, berth.ErrConflict)
		}
		return c, nil
	}
	if sb.closing {
		sb.mu.Unlock()
		return nil, fmt.Errorf("start %s: %w: sandbox %s is being closed", id, berth.ErrConflict, sb.id)
	}
	c = sb.newContainer(id, req.Step)
	copying, abort := context.WithCancel(ctx)
	defer abort()
	c.abort = abort
	sb.containers[id] = c
	sb.mu.Unlock()
	sb.m.runs(+1)
	c.startErr = c.launch(ctx, copying, req)
	if c.startErr != nil {
		c.startErr = fmt.Errorf("start %s: %w", id, sb.m.saysFull(c.startErr))
		c.discard()
		sb.forget(c) // not before: whoever starts it again makes the same files
		sb.m.runs(-1)
		close(c.ended)
		close(c.clean)
	}
	close(c.started)
	if !sb.isBound() { // any more
		c.unhold()
	}
	return c, c.startErr
}

// unhold has the logs wait no longer for the readers that StepSpec.Hold has announced.
func (c *container) unhold() {
	for _, w := range c.logs {
		w.Unhold()
	}
}

// lockFree locks sb.mu when no container of that ID is being removed, and returns the one that is there.
func (sb *sandbox) lockFree(id string) *container {
	for {
		sb.mu.Lock()
		c := sb.containers[id]
		if c == nil || !c.removing {
			return c
		}
		sb.mu.Unlock()
		<-c.removed
	}
}

// forget makes a container's ID free again.
func (sb *sandbox) forget(c *container) {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	if sb.containers[c.id] == c {
		delete(sb.containers, c.id)
	}
}

func (sb *sandbox) newContainer(id string, step berth.StepSpec) *container {
	return &container{
		sb: sb, id: id, dir: sb.containerDir(id), step: step,
		ended: make(chan struct{}), clean: make(chan struct{}), started: make(chan struct{}), removed: make(chan struct{}), abort: func() {},
		logs: map[string]*logfile.Writer{},
	}
}

func sameStep(a, b berth.StepSpec) bool {
	ra, err1 := json.Marshal(a)
	rb, err2 := json.Marshal(b)
	return err1 == nil && err2 == nil && reflect.DeepEqual(ra, rb)
}

// launch makes everything that the container needs, and starts it, unless copying ends before there is all. After
// an error discard removes it.
func (c *container) launch(ctx, copying context.Context, req *wire.Start) error {
	l := &launch{c: c, req: req}
	defer l.closeFiles()
	c.layers = req.Layers
	if err := l.prepare(ctx, copying); err != nil {
		err = c.sb.noRoom(err)
		if e, ok := c.whyUnfilled(err); ok {
			// There may be no room for the intent beside the files, but it lies elsewhere: without it the next monitor
			// would take the container for one that was never asked for.
			if c.made {
				if rerr := l.record(); rerr != nil {
					c.sb.m.log.Error("record start", "container", c.id, "err", rerr)
				}
			}
			c.neverRan(e)
			return nil
		}
		return err
	}
	c.begun = time.Now()
	for _, o := range c.sb.area.FullNow() { // by an earlier step
		c.fullThen = append(c.fullThen, o.What)
	}
	if !l.leavesNetwork() {
		c.sb.worn.Store(true)
	}
	proc, err := l.starter.Start(ctx, l.bundle)
	if err != nil { // how far it came is not known
		c.sb.worn.Store(true)
	}
	var cmdErr *bundle.StartError
	switch {
	case errors.As(err, &cmdErr):
		l.closeFiles()
		c.neverStarted(cmdErr)
		return nil
	case err != nil:
		err = c.sb.noRoom(err)
		if e, ok := c.whyUnfilled(err); ok {
			l.closeFiles() // with them open here, its streams would never end
			c.pumps.Wait()
			c.neverRan(e)
			return nil
		}
		return err
	}
	c.proc = proc
	c.notes = l.notes
	if n, ok := proc.(interface{ Notes() []string }); ok {
		c.notes = append(c.notes, n.Notes()...)
	}
	l.closeFiles() // the container's ends: with them open here, its streams would never end
	if con := proc.Console(); con != nil {
		c.pump("stdout", con)
		_ = l.console.Close()
	}
	if c.step.Timeout > 0 {
		c.timers = append(c.timers, time.AfterFunc(c.step.Timeout, func() {
			c.end(berth.TimedOut, fmt.Sprintf("the time limit of %s was reached", c.step.Timeout), c.step.Grace)
		}))
	}
	c.sb.m.wg.Go(c.watch)
	return nil
}

// pump moves what comes out of r into the log of the stream.
func (c *container) pump(stream string, r *os.File) {
	w := c.logs[stream]
	c.pumps.Go(func() {
		if err := w.Pump(r); err != nil {
			c.sb.m.log.Warn("log", "container", c.id, "err", err)
		}
	})
}

// watch waits for the end, records it, and cleans up.
func (c *container) watch() {
	status, err := c.proc.Wait()
	c.mu.Lock()
	cause, detail := c.cause, c.detail // what is asked for from now on comes too late to be why it ended
	c.mu.Unlock()
	c.killGroup() // what shares our pid namespace, or was moved out of the container's, ends too
	exit := c.judge(status, err, cause, detail)
	if note := c.drain(); note != "" {
		exit.Detail = strings.TrimPrefix(exit.Detail+"; "+note, "; ")
	}
	exit.Unfilled = c.unfilled()
	c.finish(exit)
}

// drain waits for the streams to end, and says what is missing of them.
func (c *container) drain() string {
	for _, w := range c.logs { // what is left to come is no more than the pipes hold
		defer w.Ease()()
	}
	done := make(chan struct{})
	c.sb.m.wg.Go(func() { c.pumps.Wait(); close(done) })
	select {
	case <-done:
	case <-time.After(drainTime):
		for _, w := range c.logs {
			w.Cut() // whoever follows it would wait as long as the holder pleases
		}
		return fmt.Sprintf("the container ended, but its output did not within %s", drainTime)
	}
	for _, w := range c.logs {
		if err := w.Wait(); err != nil {
			return err.Error()
		}
	}
	return ""
}

// finish records the exit, tells those who wait, and then cleans up: the record comes first, so that no
// crash can have the command run again.
func (c *container) finish(exit berth.Exit) {
	if err := c.writeExit(exit); err != nil {
		c.sb.m.log.Error("record exit", "container", c.id, "err", err)
		exit.Detail = strings.TrimPrefix(exit.Detail+"; the exit could not be recorded: "+err.Error(), "; ")
	}
	c.mu.Lock()
	c.exit, c.over = exit, true
	for _, t := range c.timers {
		t.Stop()
	}
	if c.stdin != nil {
		_ = c.stdin.Close()
		c.stdin = nil
	}
	c.mu.Unlock()
	close(c.ended)
	if c.sb.resumes() && !c.sb.isBound() {
		c.sb.m.worker(c.sb.id)
	}
	c.release()
	close(c.clean)
	c.sb.m.runs(-1)
}

// release gives back what only a running container needs.
func (c *container) release() {
	if c.proc != nil {
		if err := c.proc.Close(); err != nil {
			c.sb.m.log.Warn("close container", "container", c.id, "err", err)
		}
	}
	if c.group != nil {
		// Beneath a parent it goes before the sandbox's record, from which a monitor that comes later knows the parent.
		pooled := c.pooled() && c.sb.rec.Spec.CgroupParent == ""
		if err := c.sb.m.freeGroup(c.group, pooled, c.tame); err != nil {
			c.sb.m.log.Error("remove cgroup", "container", c.id, "err", err)
		}
	}
}

func (c *container) state() berth.ContainerState {
	// In this order: one that never ran has ended before its start comes to an end, and does not run in between.
	state := berth.ContainerCreated
	select {
	case <-c.started:
		state = berth.ContainerRunning
	default:
	}
	select {
	case <-c.ended:
		return berth.ContainerEnded
	default:
		return state
	}
}

func (c *container) describe() *wire.Container {
	w := &wire.Container{Step: c.step, State: c.state(), LogDir: c.logDir(), LogPrefix: c.logName(""), Runtime: c.runtime, Notes: c.notes}
	if c.proc != nil && w.State != berth.ContainerEnded { // its number may be another's then
		w.Pid = c.proc.Pid()
	}
	return w
}

func (c *container) result() berth.Exit {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exit
}

// remove removes an ended container, ending it first.
func (c *container) remove() {
	c.end(berth.Stopped, "the container was removed", 0)
	<-c.clean
	c.sb.mu.Lock()
	another, gone := c.removing, c.sb.containers[c.id] != c
	c.removing = c.removing || !gone
	c.sb.mu.Unlock()
	switch {
	case another:
		<-c.removed
	case !gone:
		c.removeFiles()
		c.sb.forget(c) // not before: whoever starts the ID again makes the same files
		close(c.removed)
	}
}

// recoverContainers finds the containers of an earlier monitor. What has no recorded end is Lost: whoever
// could have said how it ended is gone.
func (sb *sandbox) recoverContainers() error {
	entries, err := os.ReadDir(filepath.Join(sb.dir, containersDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	for _, e := range entries {
		c := sb.newContainer(e.Name(), berth.StepSpec{})
		var rec startRecord // cut off as it was written, it stands for a start that did not happen
		err := readJSON(filepath.Join(c.dir, startFile), &rec)
		if err != nil && !unwritten(err) {
			return err
		}
		if err != nil {
			for _, dir := range []string{c.upper(), c.work(), c.dir} { // cut off before its intent was recorded
				if rerr := scratch.Remove(dir); rerr != nil {
					return rerr
				}
			}
			continue
		}
		c.step, c.layers = rec.Step, rec.Layers
		if err := c.recover(); err != nil {
			return err
		}
		sb.containers[c.id] = c
	}
	return nil
}

func (c *container) recover() error {
	err := readJSON(filepath.Join(c.dir, exitFile), &c.exit)
	if err != nil && !unwritten(err) {
		return err
	}
	if err != nil {
		c.exit = berth.Exit{
			Reason: berth.Lost, Code: -1, Ended: time.Now(),
			Detail: "the monitor that watched the container was killed, and the container with it",
		}
		if err := c.writeExit(c.exit); err != nil { // the next monitor comes to the same
			c.sb.m.log.Error("record exit", "container", c.id, "err", err)
		}
	}
	// A runtime binary's mounts went with the earlier monitor's mount namespace; its records did not.
	_ = scratch.Remove(filepath.Join(c.dir, bundleDir))
	close(c.started)
	close(c.ended)
	close(c.clean)
	return nil
}
