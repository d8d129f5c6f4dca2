package cli

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"

	mobyuserns "github.com/moby/sys/userns"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/image"
	"github.com/berth-project/berth/ledger"
	"github.com/berth-project/berth/runner"
	"github.com/berth-project/berth/staging"
	"github.com/berth-project/berth/tes/document"
)

// The engines.
const (
	engineOCI    = "oci"
	engineDocker = "docker"
)

// engines are the values of --engine.
func engines() []string { return []string{engineOCI, engineDocker} }

// hiddenMains runs what berth executes itself as, under another name, and returns where it was none of that.
func hiddenMains() {
	oci.MonitorMain()
	docker.KeeperMain()
}

// watched reports whether an engine watches over parked tasks by itself.
func watched(p place, dir string) bool {
	if p.engine == engineDocker {
		return docker.Watched(dockerDir(dir, p.daemon))
	}
	return oci.Watched(dir)
}

// place is what runs a task: an engine and, of an engine that is a service, where that is.
type place struct{ engine, daemon string }

// placeOf is what runs a task; tasks of before there was a choice say nothing.
func placeOf(t berth.Task) place { return place{cmp.Or(t.Engine, engineOCI), t.Daemon} }

// at is berth with another engine than was asked for: the one that a task has.
func (a *app) at(p place) *app {
	other := *a
	other.global.engine, other.global.daemon = p.engine, p.daemon
	return &other
}

// here is what runs the tasks that are submitted now.
func (a *app) here() (place, error) {
	if a.global.engine != engineDocker {
		return place{engine: a.global.engine}, nil
	}
	daemon, err := docker.Locate(a.global.daemon, a.getenv)
	return place{engineDocker, daemon}, err
}

// dockerDir is what the engine docker has of the data directory for one daemon: it shares tasks and the instance's id
// with other engines, but no sandboxes.
func dockerDir(dir, daemon string) string {
	sum := sha256.Sum256([]byte(daemon))
	return filepath.Join(dir, "docker", hex.EncodeToString(sum[:4]))
}

// quarantine is what a broken host gets: a file of the engine's own, since others may run.
func (a *app) quarantine(dir string) runner.Quarantine {
	if a.global.engine == engineDocker {
		dir = dockerDir(dir, a.global.daemon)
	}
	return runner.Quarantine{Hook: a.global.brokenHook, File: filepath.Join(dir, "broken")}
}

// openEngine opens the engine, and its images, of the data directory.
func (a *app) openEngine() (*host, error) {
	dir, err := a.dataDir()
	if err == nil {
		err = checkData(dir)
	}
	if err != nil {
		return nil, err
	}
	switch a.global.engine {
	case engineOCI:
		return a.openOCI(dir)
	case engineDocker:
		return a.openDocker(dir)
	}
	return nil, a.noEngine()
}

func (a *app) noEngine() error {
	return invalid("--engine: there is no engine %q%s; there are %s", a.global.engine, document.DidYouMean(a.global.engine, engines()), strings.Join(engines(), " and "))
}

func (a *app) openDocker(dir string) (*host, error) {
	if err := os.MkdirAll(filepath.Join(dir, "run"), 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w: %w", fileKind(err), err)
	}
	instance, err := oci.Instance(dir)
	if err != nil {
		return nil, err
	}
	here, err := a.here()
	if err != nil {
		return nil, err
	}
	a.global.daemon = here.daemon
	engine, err := docker.New(a.dockerConfig(dir, instance))
	if err != nil {
		return nil, err
	}
	return &host{dir: dir, engine: resuming{engine}, images: engine.Images(), closers: []func() error{engine.Close}, elsewhere: engine.Elsewhere, sweep: engine.Sweep}, nil
}

func (a *app) dockerConfig(dir, instance string) docker.Config {
	return docker.Config{
		Dir: dockerDir(dir, a.global.daemon), Owner: instance, Host: a.global.daemon, Worker: a.workerArgs(dir), Logger: a.logger(),
		Watchdog: a.global.watchdog, StreamsMax: a.global.outputWait, Away: a.away,
	}
}

func (a *app) openOCI(dir string) (*host, error) {
	log := a.logger()
	engine, err := oci.New(oci.Config{
		Dir: dir, Worker: a.workerArgs(dir), Logger: log,
		Images: image.Options{Log: log, Rootless: mobyuserns.RunningInUserNS()},
	})
	if err != nil {
		return nil, err
	}
	return &host{dir: dir, engine: resuming{engine}, images: engine.Images(), closers: []func() error{engine.Close}}, nil
}

// open opens all of the data directory.
func (a *app) open(ctx context.Context) (*host, error) {
	h, err := a.openEngine()
	if err != nil {
		return nil, err
	}
	if err := h.openStore(ctx, filepath.Join(h.dir, "berth.db")); err != nil {
		h.close()
		return nil, err
	}
	if h.ledger, err = a.openLedger(h.dir); err != nil {
		h.close()
		return nil, err
	}
	if h.devices, err = a.openPool(h.dir, h.ledger); err != nil {
		h.close()
		return nil, err
	}
	lends := runner.Ledger(h.ledger)
	if a.global.engine == engineDocker {
		lends = &farLedger{h: h, dir: dockerDir(h.dir, a.global.daemon), hideFigures: a.global.hideFigures}
	}
	log := a.logger()
	h.runner = runner.New(runner.Config{
		Quarantine: a.quarantine(h.dir),
		Devices:    h.devices,
		Meter:      gpuMeter{a, h.dir},
		Engine:     h.engine, Store: h.tasks, Ledger: lends, DataDir: h.dir, UID: os.Getuid(), GID: os.Getgid(), Logger: log,
		UniqueNames: a.uniqueNames, Fetch: staging.FetchOptions{Logger: log, Retrying: a.retrying}, Mine: func(t berth.Task) bool { return placeOf(t) == place{a.global.engine, a.global.daemon} },
	})
	return h, nil
}

// openLedger opens the host's ledger on behalf of a data directory.
func (a *app) openLedger(dir string) (*ledger.Ledger, error) {
	capacity, err := ledger.Host(dir)
	if err != nil {
		return nil, err
	}
	instance, err := oci.Instance(dir)
	if err != nil {
		return nil, err
	}
	return ledger.New(ledger.Config{Dirs: ledger.DefaultDirs(), Capacity: capacity, Instance: instance, HideFigures: a.global.hideFigures})
}

// puller is an engine that finds images itself.
type puller interface {
	berth.Engine
	berth.Puller
}

// labelResume, set to "1" on a sandbox, asks engines for what resuming is about.
const labelResume = "berth.resume"

// resuming has the engine's watching process start a worker when a step of a detached task has ended, and when the berth
// that ran a task in the foreground was killed: it records how the task ended.
type resuming struct{ puller }

// Broken is the engine's, where it has one.
func (e resuming) Broken(err error) (broken, answered bool) {
	if d, ok := e.puller.(runner.Diagnoser); ok {
		return d.Broken(err)
	}
	return false, false
}

// Answers is the engine's, where it has one.
func (e resuming) Answers(ctx context.Context) error {
	if a, ok := e.puller.(runner.Answerer); ok {
		return a.Answers(ctx)
	}
	return nil
}

// Check is the engine's, where it has one.
func (e resuming) Check(ctx context.Context, spec berth.SandboxSpec, steps []berth.StepSpec) error {
	if c, ok := e.puller.(runner.Checker); ok {
		return c.Check(ctx, spec, steps)
	}
	return nil
}

// Orphans are the engine's, where it tells of them.
func (e resuming) Orphans(ctx context.Context) ([]string, error) {
	if p, ok := e.puller.(runner.Purger); ok {
		return p.Orphans(ctx)
	}
	return nil, nil
}

// Purge is the engine's, where it has one.
func (e resuming) Purge(ctx context.Context, id string) (bool, error) {
	if p, ok := e.puller.(runner.Purger); ok {
		return p.Purge(ctx, id)
	}
	return false, nil
}

func (e resuming) Open(ctx context.Context, spec berth.SandboxSpec) (berth.Sandbox, error) {
	labels := map[string]string{labelResume: "1"}
	maps.Copy(labels, spec.Labels)
	spec.Labels = labels
	return e.puller.Open(ctx, spec)
}
