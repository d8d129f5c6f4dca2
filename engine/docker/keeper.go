package docker

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/companion"
	"github.com/moby/moby/api/types/container"
	"golang.org/x/sys/unix"
)

// LabelResume is a label that, set to "1" on a sandbox, has the keeper call Config.Worker when a step of the sandbox
// has ended, or when the process that drove it is gone; of a bound sandbox, when it was closed for that.
const LabelResume = "berth.resume"

// KeeperName is the name (argv[0]) under which a program that calls KeeperMain is started as the keeper.
const KeeperName = "berth-docker-keeper"

const (
	runDir     = "run"
	keeperSock = "keeper.sock"
	keeperLock = "keeper.lock"
	keeperLog  = "keeper.log"
	keeperIdle = 10 * time.Second
	// boundPoll is how often the keeper looks whether those who opened bound sandboxes live.
	boundPoll = 250 * time.Millisecond
	// closeAgain is how long the keeper waits after it could not close a sandbox.
	closeAgain = 2 * time.Second
	// workerTries bounds how often a worker is started that brings nothing about; the pauses double from workerPause.
	workerTries = 6
	workerPause = 500 * time.Millisecond
)

// keeperConfig is what a keeper is told by who starts it.
type keeperConfig struct {
	Host     string        `json:"host,omitempty"`
	Owner    string        `json:"owner"`
	Watchdog time.Duration `json:"watchdog"`
	CallMax  time.Duration `json:"call_max"`
	Streams  time.Duration `json:"streams_max"`
	LogKeep  int64         `json:"log_keep"`
	Worker   []string      `json:"worker,omitempty"`
	Idle     time.Duration `json:"idle"`
}

// keeper is the process, one a data directory, that looks after the containers of processes which are gone: it
// ends bound sandboxes, and sees the containers of all others to their end. It comes when it is needed and goes
// when it is idle. Should it be killed, nothing ends; whoever uses the data directory next starts another.
type keeper struct {
	e   *Engine
	cfg keeperConfig

	mu      sync.Mutex
	tended  map[string]*tended // by sandbox
	clients int
	workers int // see working
	handed  map[string]*handed
	quiet   time.Time // since when nobody needs it, perhaps
	ending  bool

	wg sync.WaitGroup // all goroutines but those of the connections
}

// tended is a sandbox that the keeper looks after.
type tended struct {
	sb     *Sandbox
	steps  map[string]bool // that are seen to their end by a goroutine
	users  int             // connections that have named it
	kick   chan struct{}   // somebody who named it is gone
	failed int             // workers that brought nothing about
	ending bool            // it is closed by a goroutine
}

// KeeperMain runs the keeper and ends the process, if that is what this process was started for: by the name
// KeeperName. Otherwise it returns at once. A program that uses this engine with bound sandboxes or with workers,
// and gives no Config.Keeper, calls it first thing in main (and in TestMain).
func KeeperMain() {
	if len(os.Args) == 0 || os.Args[0] != KeeperName {
		return
	}
	os.Exit(keeperMain(os.Args[1:]))
}

func keeperMain(args []string) int {
	debug.SetGCPercent(25) // it holds little and is there for long
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
	starter := companion.Started()
	var cfg keeperConfig
	if len(args) != 3 || args[0] != "--data-dir" {
		return 2
	}
	if err := json.Unmarshal([]byte(args[2]), &cfg); err != nil {
		return 2
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	if err := runKeeper(ctx, args[1], cfg, log, starter.Ready); errors.Is(err, berth.ErrConflict) {
		starter.Running()
	} else if err != nil {
		log.Error("keeper", "err", err)
		starter.Failed(err.Error())
		return 1
	}
	return 0
}

// runKeeper runs a keeper until it is idle. It calls ready once clients can connect. ErrConflict where another runs.
func runKeeper(ctx context.Context, dir string, cfg keeperConfig, log *slog.Logger, ready func()) error {
	lock, err := os.OpenFile(filepath.Join(dir, runDir, keeperLock), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		if errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("another keeper runs: %w", berth.ErrConflict)
		}
		return err
	}
	e, err := New(Config{Host: cfg.Host, Dir: dir, Owner: cfg.Owner, Watchdog: cfg.Watchdog, CallMax: cfg.CallMax, StreamsMax: cfg.Streams, LogKeep: cfg.LogKeep, Logger: log})
	if err != nil {
		return err
	}
	defer func() { _ = e.Close() }()
	k := &keeper{e: e, cfg: cfg, tended: map[string]*tended{}, handed: map[string]*handed{}, quiet: time.Now()}
	return k.serve(ctx, ready)
}

func (k *keeper) serve(ctx context.Context, ready func()) error {
	l, err := companion.Listen(filepath.Join(k.e.cfg.Dir, runDir), keeperSock)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer func() { cancel(); k.wg.Wait() }()
	k.wg.Go(func() {
		<-ctx.Done()
		_ = l.Close()
	})
	entries, err := os.ReadDir(filepath.Join(k.e.cfg.Dir, "sandboxes"))
	if err != nil {
		return err
	}
	for _, d := range entries {
		k.tend(ctx, d.Name())
		k.released(ctx, d.Name()) // nobody who drives it has come yet
	}
	k.wg.Go(func() { k.endWhenIdle(ctx, cancel) })
	k.wg.Go(func() {
		if err := k.e.Sweep(ctx); err != nil && ctx.Err() == nil {
			k.e.cfg.Logger.Error("leftovers not removed", "err", err)
		}
	})
	ready()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			k.e.cfg.Logger.Error("accept", "err", err)
			time.Sleep(boundPoll) // out of descriptors, say: others may free some
			continue
		}
		if !k.client(+1) {
			_ = c.Close() // it finds the next keeper
			continue
		}
		conns.Go(func() {
			defer k.client(-1)
			stop := context.AfterFunc(ctx, func() { _ = c.Close() })
			defer stop()
			k.handle(ctx, c)
		})
	}
}

// client counts clients. It answers whether they are served still.
func (k *keeper) client(n int) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.ending && n > 0 {
		return false
	}
	k.clients += n
	k.quiet = time.Now()
	return true
}

// endWhenIdle ends the keeper when nobody has needed it for a while, or nobody can find it any more.
func (k *keeper) endWhenIdle(ctx context.Context, end func()) {
	tick := time.NewTicker(max(k.cfg.Idle/4, 50*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if _, err := os.Lstat(k.e.cfg.Dir); k.idle() || errors.Is(err, fs.ErrNotExist) {
			end()
			return
		}
		k.closeUnclosed(ctx)
	}
}

func (k *keeper) idle() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, t := range k.tended {
		if len(t.steps) == 0 && !exists(k.e.sandboxDir(id)) {
			delete(k.tended, id)
		}
		if len(t.steps) > 0 || t.sb.spec.Bound || t.ending {
			k.quiet = time.Now()
		}
	}
	if k.workers > 0 {
		k.quiet = time.Now()
	}
	k.ending = k.clients == 0 && time.Since(k.quiet) >= k.cfg.Idle
	return k.ending
}

// handle serves a connection: each line names a sandbox to look after, or none, or hands over a container's streams. The answer is this
// process's id.
func (k *keeper) handle(ctx context.Context, c *net.UnixConn) {
	defer func() { _ = c.Close() }()
	named := map[string]*tended{}
	in := &handReader{c: c}
	defer in.close()
	lines := bufio.NewScanner(in)
	for lines.Scan() {
		id := lines.Text()
		if word, ok := strings.CutPrefix(id, handWord); ok {
			k.take(ctx, word, in.next())
			id = ""
		}
		if id != "" {
			// One that was closed and opened anew meanwhile is another.
			if t := k.tend(ctx, id); t != nil && named[id] != t {
				named[id] = t
				k.use(t)
			}
		}
		if _, err := fmt.Fprintln(c, os.Getpid()); err != nil {
			break
		}
	}
	for _, t := range named {
		k.disuse(ctx, t)
	}
}

// tend looks after a sandbox; nil where there is none.
func (k *keeper) tend(ctx context.Context, id string) *tended {
	if berth.CheckID(id) != nil {
		return nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	t := k.tended[id]
	if t == nil {
		s, err := k.e.Attach(ctx, id)
		if err != nil {
			if !errors.Is(err, berth.ErrNotFound) {
				k.e.cfg.Logger.Error("sandbox cannot be looked after", "sandbox", id, "err", err)
			}
			return nil
		}
		t = &tended{sb: s.(*Sandbox), steps: map[string]bool{}, kick: make(chan struct{}, 1)}
		k.tended[id] = t
		if t.sb.spec.Bound {
			k.wg.Go(func() { k.guard(ctx, t) })
		}
	}
	if t.sb.spec.Bound {
		return t // it ends with its opener; the opener watches its steps
	}
	steps, _ := os.ReadDir(filepath.Join(k.e.sandboxDir(id), "steps"))
	for _, d := range steps {
		if step := d.Name(); !t.steps[step] && !written(filepath.Join(k.e.sandboxDir(id), "steps", step, exitFile)) {
			t.steps[step] = true
			k.wg.Go(func() { k.seeToEnd(ctx, t, step) })
		}
	}
	return t
}

func (k *keeper) use(t *tended) {
	k.mu.Lock()
	defer k.mu.Unlock()
	t.users++
}

// disuse notes that a process which named the sandbox is gone.
func (k *keeper) disuse(ctx context.Context, t *tended) {
	k.mu.Lock()
	t.users--
	last := t.users == 0
	k.mu.Unlock()
	select {
	case t.kick <- struct{}{}:
	default:
	}
	if last {
		k.released(ctx, t.sb.spec.ID)
	}
}

// guard closes a bound sandbox when the process that opened it is gone.
func (k *keeper) guard(ctx context.Context, t *tended) {
	var word sparse
	for {
		f, err := os.Open(filepath.Join(k.e.sandboxDir(t.sb.spec.ID), boundFile))
		if errors.Is(err, fs.ErrNotExist) {
			k.forget(t)
			return // it was closed
		}
		if err == nil {
			err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
			_ = f.Close()
		}
		pause := boundPoll
		if err == nil {
			if word.since.IsZero() {
				k.e.cfg.Logger.Info("who opened the sandbox is gone: it is closed", "sandbox", t.sb.spec.ID)
			}
			if err = t.sb.Close(ctx); err == nil || errors.Is(err, errHeld) {
				if err != nil { // whoever goes on with the task is told, too
					k.e.cfg.Logger.Warn("sandbox closed but for a volume", "sandbox", t.sb.spec.ID, "err", err)
				}
				k.forget(t)
				k.worker(ctx, t)
				if late, said := word.over(); said {
					k.e.cfg.Logger.Info("sandbox closed after all", "sandbox", t.sb.spec.ID, "late", late)
				}
				return
			}
			if since, due := word.due(time.Now()); due {
				k.e.cfg.Logger.Error("sandbox not closed, which is tried again", "sandbox", t.sb.spec.ID, "since", since, "err", err)
			}
			pause = closeAgain
		}
		select {
		case <-ctx.Done():
			return
		case <-t.kick:
		case <-time.After(pause):
		}
	}
}

func (k *keeper) forget(t *tended) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.quiet = time.Now()
	if k.tended[t.sb.spec.ID] == t {
		delete(k.tended, t.sb.spec.ID)
	}
}

// seeToEnd watches a step as soon as no other process does, to its end.
func (k *keeper) seeToEnd(ctx context.Context, t *tended, step string) {
	ended := k.watchStep(ctx, t.sb, step)
	k.mu.Lock()
	delete(t.steps, step)
	k.quiet = time.Now()
	driven := t.users > 0 // should that process be killed, it is not any more
	if ended {
		t.failed = 0
	}
	k.mu.Unlock()
	switch {
	case driven || ctx.Err() != nil || !exists(k.e.sandboxDir(t.sb.spec.ID)):
	case ended:
		k.worker(ctx, t)
	default:
		k.released(ctx, t.sb.spec.ID)
	}
}

// watchStep answers whether the step has ended: it may not have been started, or be gone.
func (k *keeper) watchStep(ctx context.Context, sb *Sandbox, step string) bool {
	l := k.e.life(sb.spec.ID, step)
	lock, err := k.lock(ctx, l)
	if err != nil {
		return false // gone, or the keeper ends
	}
	defer l.setHanded(nil)
	for !l.known() {
		c, err := l.inspect(ctx, l.docker())
		if ctx.Err() != nil {
			_ = lock.Close()
			return false
		}
		if errors.Is(err, berth.ErrNotFound) || err == nil && c.State.Status == container.StateCreated && !isOver(c.State) {
			_ = lock.Close() // it was never started, or removed: not ours to say how it ended
			k.e.drop(l)
			return false
		}
		if err == nil {
			l.setID(c.ID)
			l.watch(sb, lock, nil)
			lock = nil
			_, _ = l.wait(ctx)
			break
		}
		select { // the daemon is away
		case <-ctx.Done():
		case <-time.After(reconnect):
		}
	}
	if lock != nil {
		_ = lock.Close()
	}
	ended := l.known()
	k.e.drop(l)
	return ended
}

// released has a worker go on with a sandbox that nobody drives: of which no step runs.
func (k *keeper) released(ctx context.Context, id string) {
	k.mu.Lock()
	t := k.tended[id]
	idle := t != nil && t.users == 0 && len(t.steps) == 0 && !t.sb.spec.Bound
	k.mu.Unlock()
	if !idle || t.sb.spec.Labels[LabelResume] != "1" {
		return
	}
	k.mu.Lock()
	failed := t.failed
	t.failed++
	k.mu.Unlock()
	if failed >= workerTries {
		k.e.cfg.Logger.Error("workers bring nothing about: the task is left to the next berth", "sandbox", id)
		return
	}
	k.wg.Go(func() {
		select {
		case <-ctx.Done():
			return
		case <-time.After(workerPause << failed):
		}
		k.mu.Lock()
		idle := k.tended[id] == t && t.users == 0 && len(t.steps) == 0
		k.mu.Unlock()
		if idle && exists(k.e.sandboxDir(id)) {
			k.worker(ctx, t)
		}
	})
}

// worker starts the command that goes on with a task, and does not wait for it here. Where that says that it could not do all, and
// something of the task is left, another tries again once the daemon answers.
func (k *keeper) worker(ctx context.Context, t *tended) {
	if len(k.cfg.Worker) == 0 || t.sb.spec.Labels[LabelResume] != "1" {
		return
	}
	args := append(k.cfg.Worker[1:len(k.cfg.Worker):len(k.cfg.Worker)], t.sb.spec.ID)
	cmd := exec.Command(k.cfg.Worker[0], args...) //nolint:noctx // it outlives us on purpose
	cmd.Dir, cmd.Stderr = "/", os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		k.e.cfg.Logger.Error("start a worker", "task", t.sb.spec.ID, "err", err)
		return
	}
	k.working(+1)
	go func() { // not waited for: the worker outlives a keeper that ends
		defer k.working(-1)
		if cmd.Wait() != nil && k.awaitDaemon(ctx, t.sb.spec.ID) {
			k.released(ctx, t.sb.spec.ID)
		}
	}()
}

// working counts the workers of which this keeper is to see whether they could do all.
func (k *keeper) working(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.workers += n
	k.quiet = time.Now()
}

// awaitDaemon waits until the daemon answers. It reports whether the sandbox is there still.
func (k *keeper) awaitDaemon(ctx context.Context, id string) bool {
	for ctx.Err() == nil && exists(k.e.sandboxDir(id)) {
		if k.e.Answers(ctx) == nil {
			return true
		}
		select {
		case <-ctx.Done():
		case <-time.After(closeAgain):
		}
	}
	return false
}
