// Package monitor is the process that watches the containers of one data directory: it starts them, waits
// for them, moves their output into files, keeps their limits of time and disk, and records how they
// ended. Clients may come and go; see package oci for the other end. It holds neither images nor tasks.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/companion"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/cgroup"
	"github.com/berth-project/berth/engine/oci/network"
	"github.com/berth-project/berth/engine/oci/thread"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/scratch"
	"github.com/moby/sys/userns"
	"golang.org/x/sys/unix"
)

// Config configures a Monitor.
type Config struct {
	Dir      string        // the data directory
	Instance string        // the owner's id; names cgroups and networks
	Idle     time.Duration // how long to stay without containers and clients; 0 is 10 s
	Worker   []string      // command that goes on with a task; its ID is added. nil: nobody does
	Umask    int           // of that command, which makes files for users; the monitor's own is 022
	Logger   *slog.Logger
}

// Names below the data directory.
const (
	runDir   = "run"
	lockName = "monitor.lock"
)

// SocketName is the monitor's socket, in SocketDir.
const SocketName = "monitor.sock"

// LabelResume is a label that, set to "1" on a sandbox, has Config.Worker called when one of its containers has ended, when
// an earlier monitor was killed and its containers with it, or when its client is gone.
const LabelResume = "berth.resume"

// SocketDir is the directory, below a data directory, in which the monitor listens as monitor.sock.
func SocketDir(dataDir string) string { return filepath.Join(dataDir, runDir) }

// Monitor is a running monitor.
type Monitor struct {
	cfg     Config
	log     *slog.Logger
	cgroups *cgroup.Host
	pool    *cgroup.Pool
	nets    *network.Host
	start   *starters
	// rootless: uid 0 here is an ordinary user of the host.
	rootless bool
	state    string   // directory of the records; see openState
	places   []string // where it may be, in memory

	skeletons   *skeletons
	hierarchies grant.Hierarchies

	opening sync.Mutex // held while a sandbox of an earlier monitor is opened or dropped; before mu

	mu        sync.Mutex
	sandboxes map[string]*sandbox
	unopened  map[string]error // those of an earlier monitor that could not be opened, and why
	clients   int
	running   int
	quietFrom time.Time
	ending    bool // being idle; no further clients

	trimmed time.Time // when memory was last given back while busy; trim's alone

	spares   *spares
	cleaners gate           // those that remove files beside the way
	wg       sync.WaitGroup // all goroutines but those of the connections
}

// maxCleaners bounds how many sandboxes' files are removed beside the way. Whoever closes one more waits.
const maxCleaners = 32

// gate lets so many through at once as its channel holds.
type gate chan struct{}

// enter reports whether there is room for one more, who then has to leave.
func (g gate) enter() bool {
	select {
	case g <- struct{}{}:
		return true
	default:
		return false
	}
}

func (g gate) leave() { <-g }

// ErrRunning says that another monitor of this data directory runs.
var ErrRunning = fmt.Errorf("another monitor runs: %w", berth.ErrConflict)

// Run runs the monitor until it is idle or ctx ends. It calls ready once clients can connect. The process
// must have a mount namespace of its own.
func Run(ctx context.Context, cfg Config, ready func()) error {
	if cfg.Idle == 0 {
		cfg.Idle = 10 * time.Second
	}
	lock, err := takeLock(filepath.Join(cfg.Dir, runDir, lockName))
	if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("mount namespace of the monitor: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("child subreaper: %w", err)
	}
	m := &Monitor{places: stateDirs, rootless: userns.RunningInUserNS(), cfg: cfg, log: cfg.Logger, sandboxes: map[string]*sandbox{}, unopened: map[string]error{}, quietFrom: time.Now(), cleaners: make(gate, maxCleaners)}
	if err := m.open(ctx); err != nil {
		return err
	}
	defer m.close()
	if err := m.openState(); err != nil {
		return err
	}
	if err := m.recover(ctx); err != nil {
		return err
	}
	return m.serve(ctx, ready)
}

// takeLock locks the file for as long as this process lives. The file stays: removing it would let two
// processes lock two files of the same name.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrRunning
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func (m *Monitor) open(ctx context.Context) error {
	var err error
	if m.cgroups, err = cgroup.Find(ctx, cgroup.Options{Adopt: true, CountDisks: true}); err != nil {
		return err
	}
	// Whoever starts the next one may have been given a cgroup meanwhile.
	if limits := (cgroup.Limits{CPU: 1, Memory: 1 << 30, PIDs: 1}); m.cgroups.Version() == cgroup.V2 && m.cgroups.Keeps(limits) != nil {
		m.cfg.Idle = min(m.cfg.Idle, limitlessIdle)
	}
	m.pool = m.cgroups.NewPool(m.cfg.Instance, parkedGroups)
	m.nets = network.New(network.Options{Log: m.log})
	m.start = newStarters(m.cfg.Dir, m.cgroups)
	return nil
}

// limitlessIdle is how long a monitor stays idle that cannot keep limits, on a host where it might.
const limitlessIdle = 200 * time.Millisecond

// killTime is how long processes that were killed may take to be gone.
const killTime = 10 * time.Second

// parkedGroups is how many cgroups wait for their next container.
const parkedGroups = 16

// takeGroup makes a cgroup, or takes one that waits for its next container. An OCI runtime removes its own.
func (m *Monitor) takeGroup(spec cgroup.Spec, pooled bool) (*cgroup.Group, error) {
	if pooled {
		return m.pool.Get(spec)
	}
	return m.cgroups.Make(spec)
}

// freeGroup ends what is left in a cgroup, and parks or removes it. clean: see cgroup.Pool.Put.
func (m *Monitor) freeGroup(g *cgroup.Group, pooled, clean bool) error {
	if pooled {
		m.pool.Put(g, clean)
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	return errors.Join(g.Kill(ctx), g.Remove(ctx))
}

func (m *Monitor) close() {
	m.mu.Lock()
	all := m.list()
	m.mu.Unlock()
	for _, sb := range all {
		sb.shutdown()
	}
	m.wg.Wait()
	m.start.close()
	_ = m.pool.Close()
	_ = m.nets.Close()
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	if err := m.cgroups.RemoveAll(ctx, m.cfg.Instance); err != nil {
		m.log.Error("remove cgroups", "err", err)
	}
	_ = m.cgroups.Close()
	if m.skeletons != nil {
		_ = scratch.Remove(m.skeletons.dir)
	}
	_ = os.Remove(filepath.Join(m.state, recordTrash))
	if m.spares != nil {
		if err := m.spares.close(); err != nil {
			m.log.Error("remove spare directories", "err", err)
		}
	}
	_ = os.Remove(m.state) // if it is empty: the data directory may be gone for good
}

// list is all sandboxes; m.mu is held.
func (m *Monitor) list() []*sandbox {
	all := make([]*sandbox, 0, len(m.sandboxes))
	for _, sb := range m.sandboxes {
		all = append(all, sb)
	}
	return all
}

func (m *Monitor) serve(ctx context.Context, ready func()) error {
	l, err := companion.Listen(SocketDir(m.cfg.Dir), SocketName)
	if err != nil {
		return err
	}
	told := ctx
	ctx, cancel := context.WithCancel(context.WithoutCancel(told))
	defer cancel()
	m.wg.Go(func() { m.endWhenIdle(ctx, cancel) })
	context.AfterFunc(ctx, func() { _ = l.Close() })
	stop := context.AfterFunc(told, func() {
		_ = l.Close()
		m.preempt() // while those who wait are still here to be told
		cancel()
	})
	defer stop()
	m.mu.Lock()
	recovered := m.list()
	m.mu.Unlock()
	ready()
	for _, sb := range recovered { // not before: their workers call here
		m.goOn(sb)
	}
	var conns sync.WaitGroup
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil || told.Err() != nil {
				break
			}
			m.log.Error("accept", "err", err)
			time.Sleep(50 * time.Millisecond) // out of descriptors, say: others may free some
			continue
		}
		if !m.trusted(c) {
			_ = c.Close()
			continue
		}
		if !m.client(+1) {
			_ = c.Close() // it finds the next monitor
			continue
		}
		conns.Go(func() {
			defer m.client(-1)
			stop := context.AfterFunc(ctx, func() {
				_ = c.CloseRead() // what is being answered may still be
				time.AfterFunc(lastAnswers, func() { _ = c.Close() })
			})
			defer stop()
			m.handle(ctx, told, wire.NewConn(c))
		})
	}
	conns.Wait()
	return nil
}

// lastAnswers is how long the answers may take that are on their way when the monitor ends.
const lastAnswers = 2 * time.Second

// toldToEnd is why containers end with the monitor.
const toldToEnd = "berth's monitor was told to end (SIGTERM), and its containers with it"

// preempt ends all containers, as the monitor was told to end.
func (m *Monitor) preempt() {
	m.mu.Lock()
	all := m.list()
	m.mu.Unlock()
	var ends sync.WaitGroup
	for _, sb := range all {
		for _, c := range sb.all() {
			ends.Go(func() {
				c.end(berth.Preempted, toldToEnd, 0)
				<-c.ended
			})
		}
	}
	ends.Wait()
}

// trusted reports whether the peer is the user of this monitor, or root.
func (m *Monitor) trusted(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); cerr != nil || err != nil {
		return false
	}
	return cred.Uid == 0 || int(cred.Uid) == os.Geteuid()
}

// client counts clients. It answers whether they are served still.
func (m *Monitor) client(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clients += n
	m.quietFrom = time.Now()
	if m.ending && n > 0 {
		m.clients -= n
	}
	return !m.ending
}

func (m *Monitor) runs(n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.running += n
	m.quietFrom = time.Now()
}

// endWhenIdle ends the monitor when nobody has needed it for a while, or nobody can find it any more.
func (m *Monitor) endWhenIdle(ctx context.Context, end func()) {
	tick := time.NewTicker(min(max(m.cfg.Idle/4, 50*time.Millisecond), time.Second))
	defer tick.Stop()
	var trimmed time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		m.trim(&trimmed)
		if m.idle() {
			end()
			return
		}
		if _, err := os.Lstat(m.cfg.Dir); errors.Is(err, fs.ErrNotExist) {
			m.log.Error("the data directory was removed: its containers end", "dir", m.cfg.Dir)
			end()
			return
		}
	}
}

// idle reports whether nobody needs the monitor; then there are no further clients.
func (m *Monitor) idle() bool {
	m.mu.Lock()
	all := m.list()
	m.mu.Unlock()
	// Not under m.mu: whoever has a sandbox's lock may be waiting for it. One that is made meanwhile has a client.
	if slices.ContainsFunc(all, (*sandbox).pending) {
		return false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ending = m.clients == 0 && m.running == 0 && time.Since(m.quietFrom) >= m.cfg.Idle
	return m.ending
}

// worker starts the command that goes on with a task, and does not wait for it here.
func (m *Monitor) worker(task string) {
	if len(m.cfg.Worker) == 0 {
		return
	}
	cmd := exec.Command(m.cfg.Worker[0], append(m.cfg.Worker[1:len(m.cfg.Worker):len(m.cfg.Worker)], task)...) //nolint:noctx // it outlives us on purpose
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := startWithUmask(cmd, m.cfg.Umask); err != nil {
		m.log.Error("start a worker", "task", task, "err", err)
		return
	}
	go func() { _ = cmd.Wait() }() // only reaps: the worker outlives a monitor that ends
}

// startWithUmask starts a command with another umask than this process's, which only a thread of its own can have.
func startWithUmask(cmd *exec.Cmd, umask int) error {
	return thread.Own(func() error {
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return err
		}
		unix.Umask(umask)
		return cmd.Start()
	})
}

// Signals are those at which the monitor ends its containers and itself.
func Signals(ctx context.Context) (context.Context, context.CancelFunc) {
	signal.Ignore(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGPIPE)
	return signal.NotifyContext(ctx, unix.SIGTERM)
}

var _ bundle.Cgroup = (*cgroup.Group)(nil)
