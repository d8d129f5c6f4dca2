package monitor

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/cgroup"
	"github.com/berth-project/berth/engine/oci/rootfs"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/logfile"
	"github.com/berth-project/berth/scratch"
	"golang.org/x/sys/unix"
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

// unfilled tells of files that lack something of the streams.
func (c *container) unfilled() string {
	var all []string
	for stream, file := range map[string]string{"stdout": c.step.Stdout, "stderr": c.step.Stderr} {
		if w := c.logs[stream]; w != nil && file != "" {
			if err := w.CopyErr(); err != nil {
				all = append(all, fmt.Sprintf("file %s of %s: %v", file, stream, err))
			}
		}
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
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

// judge says why the container ended, from what is known and nothing else.
func (c *container) judge(st bundle.Status, waitErr error, cause berth.Reason, detail string) berth.Exit {
	e := berth.Exit{Reason: berth.Exited, Code: st.Code, Started: c.begun, Ended: time.Now(), Runtime: c.runtime, Detail: detail}
	if st.Signal != 0 {
		e.Reason, e.Signal, e.Code = berth.Signaled, int(st.Signal), 128+int(st.Signal)
		e.Detail = strings.TrimPrefix(detail+"; signal "+strconv.Itoa(e.Signal)+" ("+unix.SignalName(st.Signal)+")", "; ")
	}
	e.Usage = c.usage(false)
	if e.Usage.CPUSeconds == nil && st.CPU > 0 {
		s := st.CPU.Seconds()
		e.Usage.CPUSeconds = &s
	}
	kills, kerr := c.group.OOMKills()
	switch {
	case waitErr != nil:
		e.Reason, e.Code, e.Detail = berth.Lost, -1, waitErr.Error()
	case cause != "":
		e.Reason = cause
	case kerr == nil && kills > 0 && e.Code != 0:
		e.Reason, e.Detail = berth.OutOfMemory, c.group.OOMDetail()
	case e.Code != 0 || c.sb.area.Enforcement() == berth.DiskSampled:
		// A sampler may have looked too early: what lies above its limit at the end was written all the same.
		if what, limit, used, full := c.sb.area.Full(); full && (e.Code != 0 || used > limit) {
			e.Reason = berth.OutOfDisk
			e.Detail = fmt.Sprintf("the %s of %s is full: %s are used", c.sb.limitName(what), berth.SizeInWords(limit), berth.SizeInWords(used))
		} else if e.Code != 0 {
			e.Detail = strings.TrimPrefix(strings.TrimSuffix(e.Detail+"; "+c.fullDisk(), "; "), "; ")
		}
	}
	if kerr == nil && waitErr == nil {
		e.Detail = strings.TrimPrefix(strings.TrimSuffix(e.Detail+"; "+c.breaches(e.Reason, kills), "; "), "; ")
	}
	return e
}

// breaches says which limits the command met that are not why it ended: what it was refused may be missing from what it
// has done all the same.
func (c *container) breaches(ended berth.Reason, kills int64) string {
	if ended != berth.Exited && ended != berth.Signaled {
		return ""
	}
	var met []string
	if kills > 0 {
		met = append(met, c.group.OOMDetail())
	}
	if forks := c.group.PIDsDetail(); forks != "" {
		met = append(met, forks)
	}
	for _, o := range c.sb.area.Met(c.begun) {
		if slices.Contains(c.fullThen, o.What) {
			met = append(met, fmt.Sprintf("the %s of %s was full when it began", c.sb.limitName(o.What), berth.SizeInWords(o.Limit)))
			continue
		}
		met = append(met, fmt.Sprintf("the %s of %s was full, or all but full", c.sb.limitName(o.What), berth.SizeInWords(o.Limit)))
	}
	return strings.Join(met, "; ")
}

func (c *container) usage(live bool) berth.Usage {
	read := c.group.Usage
	if !live {
		read = c.group.Final
	}
	u, err := read()
	if err != nil {
		c.sb.m.log.Warn("usage", "container", c.id, "err", err)
	}
	if c.sb.rec.Spec.Limits.Disk > 0 {
		if used, err := c.sb.area.Usage(); err == nil {
			u.DiskUsed = &used
		}
	}
	return u
}

// neverStarted records that the command is to blame.
func (c *container) neverStarted(e *bundle.StartError) {
	code := 126
	if errors.Is(e.Errno, unix.ENOENT) {
		code = 127
	}
	for _, stream := range []string{"stdout", "stderr"} {
		if w := c.logs[stream]; w != nil && c.step.TTY {
			w.Abandon()
		}
	}
	_ = c.drain()
	c.finish(berth.Exit{
		Reason: berth.NeverStarted, Code: code, Detail: e.Error(), Runtime: c.runtime,
		Started: c.begun, Ended: time.Now(),
	})
}

// whyUnfilled says why a container ended before it ran, where what went wrong is no fault: its volumes could not
// be filled with what the image holds for lack of space that the task has, or somebody ended it meanwhile.
func (c *container) whyUnfilled(err error) (berth.Exit, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := berth.Exit{Reason: c.cause, Code: -1, Detail: c.detail}
	if errors.Is(err, context.Canceled) && c.cause != "" {
		return e, true
	}
	full, ok := errors.AsType[*fullError](err)
	if !ok {
		return e, false
	}
	e.Reason, e.Detail = berth.OutOfDisk, full.Error()
	return e, true
}

// fullError says that what an image holds does not fit into the space that the task has.
type fullError struct {
	what  string
	limit int64 // bytes
	found bool  // it was full before
}

func (e *fullError) Error() string {
	if e.found {
		return fmt.Sprintf("there is no room to start: the %s of %s is full", e.what, berth.SizeInWords(e.limit))
	}
	return fmt.Sprintf("what the image holds in its volumes does not fit into the %s of %s", e.what, berth.SizeInWords(e.limit))
}

// noRoom is an error of a start, and says of one for want of disk whether the task's own limits are why.
func (sb *sandbox) noRoom(err error) error {
	if _, told := errors.AsType[*fullError](err); told {
		return err
	}
	err = sb.whyFull(err)
	if full, ok := errors.AsType[*fullError](err); ok {
		full.found = true
	}
	return err
}

// whyFull tells the task's own limits from a disk that is full for all.
func (sb *sandbox) whyFull(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	if what, limit, _, full := sb.area.Full(); full {
		return &fullError{what: sb.limitName(what), limit: limit}
	}
	return err
}

// neverRan records why the command was not started at all. It has logs, of nothing.
func (c *container) neverRan(e berth.Exit) {
	for _, stream := range []string{"stdout", "stderr"} {
		if stream == "stderr" && c.step.TTY {
			break
		}
		if w := c.logs[stream]; w != nil { // it was begun
			if c.step.TTY {
				w.Abandon()
			}
			continue
		}
		w, err := logfile.Create(c.logDir(), c.logName(stream), logfile.Options{})
		if err != nil {
			c.sb.m.log.Warn("log", "container", c.id, "err", err)
			continue
		}
		w.Abandon()
		c.logs[stream] = w
	}
	e.Runtime, e.Started, e.Ended = c.runtime, time.Now(), time.Now()
	c.finish(e)
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

// discard removes what a failed launch left.
func (c *container) discard() {
	for _, w := range c.logs {
		w.Cut()
	}
	c.pumps.Wait()
	for _, w := range c.logs {
		w.Abandon() // what was not pumped
	}
	c.release()
	for _, stream := range []string{"stdout", "stderr"} {
		if c.logs[stream] != nil && c.step.LogDir != "" {
			_ = os.Remove(filepath.Join(c.step.LogDir, stream))
		}
	}
	if c.made {
		c.removeFiles()
	}
}

func (c *container) removeFiles() {
	dirs := []string{c.upper(), c.work(), c.dir}
	if c.step.LogDir == "" {
		for _, stream := range []string{"stdout", "stderr"} {
			dirs = append(dirs, logfile.Files(c.logDir(), c.logName(stream))...)
		}
	}
	for i := range c.step.Image.Config.Volumes {
		dirs = append(dirs, c.imageVolume(i))
	}
	for _, dir := range dirs {
		if err := scratch.Remove(dir); err != nil {
			c.sb.m.log.Error("remove container", "container", c.id, "err", err)
		}
	}
}

// remount mounts the root of an ended container again, read-only.
func (c *container) remount() (*os.File, error) {
	layers := append([]string{c.upper()}, c.layers...)
	return rootfs.Overlay(bundle.Root{Layers: layers, UserXattr: c.sb.m.rootless})
}

// pooled reports whether the container's cgroup is one of the pool's.
func (c *container) pooled() bool { return c.runtime == runtimeDirect }

func (c *container) upper() string { return filepath.Join(c.sb.area.Dir(), "upper-"+c.id) }
func (c *container) work() string  { return filepath.Join(c.sb.area.Dir(), "work-"+c.id) }

// end ends the container for the given cause, unless it has ended: its stop signal, then after grace KILL.
// It does not wait, but for the start.
func (c *container) end(cause berth.Reason, detail string, grace time.Duration) {
	c.mu.Lock()
	c.blame(cause, detail)
	c.mu.Unlock()
	c.abort()
	<-c.started
	select {
	case <-c.ended:
		return
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blame(cause, detail)
	if grace <= 0 {
		c.kill()
		return
	}
	if err := c.proc.Signal(c.stopSignal()); err != nil {
		c.kill()
		return
	}
	c.timers = append(c.timers, time.AfterFunc(grace, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.kill()
	}))
}

// blame notes who ended it, unless that is known; c.mu is held.
func (c *container) blame(cause berth.Reason, detail string) {
	if c.cause == "" {
		c.cause, c.detail = cause, detail
	}
}

// kill kills everything in the container; c.mu is held. Once the end is recorded the cgroup may be another
// container's.
func (c *container) kill() {
	if c.proc == nil || c.over {
		return
	}
	if err := c.proc.Kill(); err != nil {
		c.sb.m.log.Error("kill", "container", c.id, "err", err)
	}
	c.killGroup()
}

// killGroup kills everything in the container's cgroup.
func (c *container) killGroup() {
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	if err := c.group.Kill(ctx); err != nil {
		c.sb.m.log.Error("kill", "container", c.id, "err", err)
	}
}

// stopSignal is what the step, else its image, names. A name of an image's that is none was told of at the start.
func (c *container) stopSignal() syscall.Signal {
	if sig, err := berth.ParseSignal(cmp.Or(c.step.StopSignal, c.step.Image.Config.StopSignal)); err == nil {
		return sig
	}
	return unix.SIGTERM
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
