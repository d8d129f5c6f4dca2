package cli

import (
	"context"
	"maps"
	"os"
	"path/filepath"

	mobyuserns "github.com/moby/sys/userns"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/image"
	"github.com/berth-project/berth/ledger"
	"github.com/berth-project/berth/runner"
	"github.com/berth-project/berth/staging"
	"github.com/berth-project/berth/tes/document"
)

// engines are the values of --engine.
func engines() []string { return []string{"oci"} }

// hiddenMains runs what berth executes itself as, under another name, and returns where it was none of that.
func hiddenMains() {
	oci.MonitorMain()
}

// watched reports whether the engine watches over parked tasks by itself.
func watched(dir string) bool { return oci.Watched(dir) }

// openEngine opens the engine, and its images, of the data directory.
func (a *app) openEngine() (*host, error) {
	dir, err := a.dataDir()
	if err != nil {
		return nil, err
	}
	switch a.global.engine {
	case "oci":
	default:
		return nil, invalid("--engine: there is no engine %q%s; there is oci", a.global.engine, document.DidYouMean(a.global.engine, engines()))
	}
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
	if h.ledger, err = openLedger(h.dir); err != nil {
		h.close()
		return nil, err
	}
	log := a.logger()
	h.runner = runner.New(runner.Config{
		Engine: h.engine, Store: h.tasks, Ledger: h.ledger, DataDir: h.dir, UID: os.Getuid(), GID: os.Getgid(), Logger: log,
		Fetch: staging.FetchOptions{Logger: log},
	})
	return h, nil
}

// openLedger opens the host's ledger on behalf of a data directory.
func openLedger(dir string) (*ledger.Ledger, error) {
	capacity, err := ledger.Host(dir)
	if err != nil {
		return nil, err
	}
	instance, err := oci.Instance(dir)
	if err != nil {
		return nil, err
	}
	return ledger.New(ledger.Config{Dirs: ledger.DefaultDirs(), Capacity: capacity, Instance: instance})
}

// resuming has the monitor start a worker when a step of a detached task has ended, and when the berth that
// ran a task in the foreground was killed: it records how the task ended.
type resuming struct{ *oci.Engine }

func (e resuming) Open(ctx context.Context, spec berth.SandboxSpec) (berth.Sandbox, error) {
	labels := map[string]string{oci.LabelResume: "1"}
	maps.Copy(labels, spec.Labels)
	spec.Labels = labels
	return e.Engine.Open(ctx, spec)
}
