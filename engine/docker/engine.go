// Package docker runs containers on a Docker Engine, or on what speaks its API. The daemon starts and ends
// them; berth drains what they write, keeps their limits of time and disk, and says why they ended.
//
// Where the daemon is on this host, volumes are directories of it, bound into containers; where it is on another, they are
// the daemon's, and files come and go by its API.
//
// The examples show, in some ten lines each, what each call promises: [Sandbox.Start] and [Container.Wait] (Run, Wait), a
// second start of what runs (StartRunning) or has ended (StartAgain), IDs that nobody knows (Unknown), canceling twice
// (Cancel), following the logs of what has ended (Logs), and cleaning up what one owner has on a daemon (Cleanup).
package docker

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/scratch"
	"github.com/moby/moby/client"
)

// Labels of what berth makes on a daemon.
const (
	LabelOwner   = "berth.owner"   // the instance id of a data directory
	LabelSandbox = "berth.sandbox" // the sandbox's ID
	LabelStep    = "berth.step"    // the step's ID
	labelSpec    = "berth.spec"    // hash of the StepSpec
)

// Config configures an Engine.
type Config struct {
	// Host is the daemon: "unix:///run/docker.sock", "tcp://host:2376", "ssh://user@host"; "" is what Locate finds in the
	// environment. What TLS needs is found there too, or where it was for this Dir before.
	Host string
	// Certs is the directory of ca.pem, cert.pem and key.pem for TLS with Host; "" is as said there.
	Certs string
	// Dir is the data directory: volumes, records of sandboxes, logs without a LogDir.
	Dir string
	// Owner is the instance id that labels what this engine makes; "" is that of Dir, made on first use.
	Owner string
	// Group is a group that containers get beside their own, so that they can write where it may, as in a directory of mode
	// 0770; 0 is this process's, unless that is root's, and -1 none.
	Group int
	// Watchdog is how often a running container is looked at, and how long a look may take; 0 is 2 min.
	// After 5 failures in a row its end is Lost.
	Watchdog time.Duration
	// CallMax is how long one call of the API may take, or to begin its answer where that is a stream; 0 is 2 min.
	CallMax time.Duration
	// StreamsMax is how long the output may take to end after the container has; 0 is 5 min.
	StreamsMax time.Duration
	// LogKeep is how much of what a container writes the daemon keeps, in bytes and about, for a berth that comes later;
	// 0 is 128 MiB.
	LogKeep int64
	// Stall is how long a pull may tell of nothing, a load neither take nor tell anything, and a file that is read
	// out of a container bring nothing; 0 is 2 min.
	Stall time.Duration
	// Keeper is the command that runs KeeperMain, for bound sandboxes and for those with LabelResume; nil is this
	// program. It must run the same version of berth.
	Keeper []string
	// Worker is the command that goes on with a task whose sandbox has LabelResume; the sandbox's ID is added.
	// nil: nobody does.
	Worker []string
	// Idle is how long the keeper stays without anything to do; 0 is 10 s.
	Idle time.Duration
	// Away is told that the daemon has not answered for a while, though this process waits for a container's end: of one that
	// is gone after 10 s, of one that hangs when a ping has had no answer for a quarter of Watchdog, and again after longer and
	// longer; and with no error that it answers again. nil: nobody is told. It may be called by several goroutines.
	Away   func(since time.Duration, why error)
	Logger *slog.Logger
}

const (
	watchdogMax     = 5 // failures in a row, after which a container is given up
	defaultStreams  = 5 * time.Minute
	defaultWatchdog = 2 * time.Minute
	defaultCall     = 2 * time.Minute
	defaultStall    = 2 * time.Minute
	defaultLogKeep  = 128 << 20
)

// Engine runs containers on a daemon. It may be used concurrently.
type Engine struct {
	cfg      Config
	owner    string
	group    string // begins the names of cgroups: an owner may have several data directories, one for each daemon
	at       endpoint
	bornAt   time.Time // where it is set, for born
	client   atomic.Pointer[client.Client]
	version  atomic.Pointer[string] // of the API, which the daemon has told last
	another  atomic.Bool            // it has told another since the client was made
	pulls    pulls
	pressure pressure
	made     made
	hearing  hearing
	pings    pings
	isPodman atomic.Bool   // it has answered as Podman's service does
	asking   chan struct{} // whose turn it is to ask the daemon what it is; guards said
	said     *said

	// The life of the engine, which its goroutines end with.
	ctx    context.Context //nolint:containedctx // ended by Close
	cancel context.CancelCauseFunc
	wg     sync.WaitGroup

	keeper  keeperClient
	stay    sync.Once
	sizes   volumeSizes
	shims   shims
	opened  openers
	logDisk logDisk

	mu    sync.Mutex
	lives map[string]*life    // by sandbox and step
	bound map[string]*os.File // locks of sandboxes that end with this process
	host  *hostInfo
	// unlimited: the daemon has said that it cannot limit writable layers.
	unlimited bool
}

var (
	_ berth.Engine = (*Engine)(nil)
	_ berth.Puller = (*Engine)(nil)
)

// New opens an engine. It does not talk to the daemon yet. ErrInvalid where the daemon's address makes no
// sense, ErrDenied where it is another machine's and without TLS, ErrNotFound where what TLS or ssh needs is not there.
func New(cfg Config) (*Engine, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Group == 0 {
		cfg.Group = os.Getegid()
	}
	if cfg.Watchdog <= 0 {
		cfg.Watchdog = defaultWatchdog
	}
	if cfg.CallMax <= 0 {
		cfg.CallMax = defaultCall
	}
	if cfg.Idle <= 0 {
		cfg.Idle = keeperIdle
	}
	if cfg.Stall <= 0 {
		cfg.Stall = defaultStall
	}
	if cfg.LogKeep <= 0 {
		cfg.LogKeep = defaultLogKeep
	}
	if cfg.StreamsMax <= 0 {
		cfg.StreamsMax = defaultStreams
	}
	at, err := endpointOf(cfg, os.Getenv)
	if err != nil {
		return nil, fmt.Errorf("docker: %w", err)
	}
	e := &Engine{cfg: cfg, at: at, lives: map[string]*life{}, bound: map[string]*os.File{}, asking: make(chan struct{}, 1), pings: newPings()}
	api, err := connect(at, client.WithHTTPResponseHook(e.heard))
	if err != nil {
		return nil, err
	}
	e.client.Store(api)
	for _, d := range []string{"sandboxes", runDir} {
		if err := os.MkdirAll(filepath.Join(cfg.Dir, d), 0o700); err != nil {
			return nil, fmt.Errorf("data directory: %w: %w", kindOf(err), err)
		}
	}
	scratch.Spread(filepath.Join(cfg.Dir, "sandboxes"))
	if err := keepEndpoint(cfg.Dir, at); err != nil {
		return nil, fmt.Errorf("data directory: %w: %w", kindOf(err), err)
	}
	place, err := instance(cfg.Dir)
	if err != nil {
		return nil, err
	}
	owner, group := cmp.Or(cfg.Owner, place), place
	if owner != place {
		group = owner + "." + place // an id has no dot
	}
	if err := errors.Join(berth.CheckID(owner), berth.CheckID(place)); err != nil {
		return nil, fmt.Errorf("owner: %w", err)
	}
	e.owner, e.group, e.keeper.e = owner, group, e
	e.ctx, e.cancel = context.WithCancelCause(context.Background())
	return e, nil
}

// instance is the random id of a data directory, made on first use.
func instance(dir string) (string, error) {
	path := filepath.Join(dir, "instance")
	for {
		raw, err := os.ReadFile(path)
		if err == nil {
			return strings.TrimSpace(string(raw)), nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("data directory: %w: %w", kindOf(err), err)
		}
		tmp := filepath.Join(dir, "instance."+rand.Text())
		if err := writeSynced(tmp, berth.NewID()[:12]+"\n"); err != nil { // a machine that crashes leaves none that is empty
			return "", fmt.Errorf("data directory: %w: %w", kindOf(err), err)
		}
		err = os.Link(tmp, path) // the first of several processes wins
		_ = os.Remove(tmp)
		if err != nil && !errors.Is(err, fs.ErrExist) {
			return "", err
		}
	}
}

func writeSynced(file, text string) error {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Sync(), f.Close())
}

// Owner is the instance id that labels what this engine makes.
func (e *Engine) Owner() string { return e.owner }

// Close ends the engine's own work. Containers run on; who opens the engine anew finds them. Bound sandboxes end.
func (e *Engine) Close() error {
	e.giveAway()
	e.cancel(berth.ErrShutdown)
	e.wg.Wait()
	e.mu.Lock()
	for _, f := range e.bound {
		_ = f.Close()
	}
	e.mu.Unlock()
	e.keeper.close()
	return e.api().Close()
}

// Answers reports whether the daemon answers: ErrUnavailable where it does not while ctx lasts.
func (e *Engine) Answers(ctx context.Context) error {
	ctx, cancel := e.call(ctx)
	defer cancel()
	if _, err := e.api().Ping(ctx, client.PingOptions{}); err != nil {
		return wrap(ctx, "the daemon", err)
	}
	return nil
}

// filter selects what this owner has.
func (e *Engine) filter() client.Filters {
	return client.Filters{}.Add("label", LabelOwner+"="+e.owner)
}

// List names everything that this owner has on the daemon, and the sandboxes of the data directory.
func (e *Engine) List(ctx context.Context) ([]berth.Status, error) {
	if err := e.wakeKeeper(ctx); err != nil {
		return nil, err
	}
	var all []berth.Status
	entries, err := os.ReadDir(filepath.Join(e.cfg.Dir, "sandboxes"))
	if err != nil {
		return nil, fmt.Errorf("data directory: %w: %w", kindOf(err), err)
	}
	for _, d := range entries {
		spec, err := e.readSandbox(d.Name())
		if err != nil {
			continue // it is being made or removed
		}
		all = append(all, berth.Status{Sandbox: spec.ID, State: berth.ContainerCreated, Labels: spec.Labels})
	}
	cctx, cancel := e.call(ctx)
	defer cancel()
	res, err := e.listContainers(cctx, client.ContainerListOptions{All: true, Filters: e.filter()})
	if err != nil {
		return nil, wrap(cctx, "list containers", err)
	}
	for _, c := range res.Items {
		sandbox, step := c.Labels[LabelSandbox], c.Labels[LabelStep]
		if step == "" {
			continue // through which files come and go
		}
		if theirs, err := e.inherits(cctx, c); err != nil {
			return nil, err
		} else if theirs {
			continue
		}
		l := e.life(sandbox, step)
		st := berth.Status{Sandbox: sandbox, Container: step, Labels: ownLabels(c.Labels)}
		if r, err := l.readRecord(); err == nil {
			st.Labels = r.Spec.Labels
		}
		s, exit, err := l.look(ctx, c.ID)
		if errors.Is(err, berth.ErrNotFound) {
			continue
		} else if err != nil {
			return nil, err
		}
		st.State, st.Exit = s, exit
		all = append(all, st)
	}
	return all, nil
}

func ownLabels(all map[string]string) map[string]string {
	own := map[string]string{}
	for k, v := range all {
		if !strings.HasPrefix(k, "berth.") {
			own[k] = v
		}
	}
	return own
}

// wakeKeeper starts the keeper where it has something to look after and does not run, as after its death, or the
// machine's.
func (e *Engine) wakeKeeper(ctx context.Context) error {
	entries, err := os.ReadDir(filepath.Join(e.cfg.Dir, "sandboxes"))
	if err != nil {
		return fmt.Errorf("data directory: %w: %w", kindOf(err), err)
	}
	for _, d := range entries {
		spec, err := e.readSandbox(d.Name())
		if err != nil {
			continue // it is being made or removed
		}
		if (&Sandbox{spec: spec}).kept() {
			_, err := e.keeper.tell(ctx, "")
			return err
		}
	}
	return nil
}
