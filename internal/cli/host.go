package cli

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/image"
	"github.com/berth-project/berth/internal/cli/userns"
	"github.com/berth-project/berth/ledger"
	"github.com/berth-project/berth/runner"
	"github.com/berth-project/berth/store"
)

// host is what commands work on: one data directory, and what was opened in it.
type host struct {
	dir     string
	tasks   *store.Store
	engine  berth.Engine
	images  imageStore
	ledger  *ledger.Ledger
	devices *device.Pool
	runner  *runner.Runner
	closers []func() error
	// elsewhere is the address of what runs tasks, where that is on another machine; nil is on this one.
	elsewhere func(context.Context) (string, error)
	// sweep removes what the engine has of no task; nil where its own process does.
	sweep func(context.Context) error
}

// imageStore is where an engine has its images; *image.Store is one.
type imageStore interface {
	berth.Puller
	Load(ctx context.Context, path string, opts image.LoadOptions) ([]berth.Image, error)
	LoadReader(ctx context.Context, r io.Reader, opts image.LoadOptions) ([]berth.Image, error)
	Import(ctx context.Context, archive io.Reader, name string, opts image.ImportOptions) (berth.Image, error)
	List(ctx context.Context) ([]image.Info, error)
	Inspect(ctx context.Context, name string) (image.Info, error)
	Remove(ctx context.Context, name string) (image.Removed, error)
	Prune(ctx context.Context, opts image.PruneOptions) (image.Removed, error)
}

func (h *host) close() {
	for _, c := range h.closers {
		_ = c()
	}
}

// asRoot marks the commands that act as root, of the machine or of a user namespace: they unpack images,
// change owners, and start the monitor.
const asRoot = "acts as root"

// enter becomes root of a user namespace, for a command that acts as root and was started by another. It
// does not return then: the process is executed again.
func (a *app) enter(cmd *cobra.Command) error {
	if cmd.Annotations[asRoot]+cmd.Annotations[probes] == "" || !userns.Needed() || a.global.engine == engineDocker {
		return nil // a daemon acts as root itself
	}
	if dry := cmd.Flags().Lookup("dry-run"); dry != nil && dry.Value.String() == "true" && cmd.Name() == "run" {
		return nil
	}
	if cmd.Annotations[probes] == "" {
		return userns.Enter(exitCode(cmd, berth.ErrDenied))
	}
	if a.noNamespace = userns.Refused(); a.noNamespace != "" {
		return nil
	}
	return userns.Enter(exitCode(cmd, berth.ErrDenied))
}

// dataDir is the directory of everything that berth keeps.
func (a *app) dataDir() (string, error) {
	switch {
	case a.global.dataDir != "":
		return a.abs(a.global.dataDir), nil
	case !a.rootless && !userns.Needed():
		return "/var/lib/berth", nil
	}
	if dir := a.getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "berth"), nil
	}
	if home := a.getenv("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, ".local", "share", "berth"), nil
	}
	return "", invalid("where is berth to keep its data? HOME is not set; give --data-dir, or set BERTH_DATA_DIR")
}

func (a *app) logger() *slog.Logger {
	if !a.global.debug {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(a.err, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// openTasks opens what is known of tasks, for commands that only look. Nothing is made where there is nothing.
func (a *app) openTasks(ctx context.Context) (*host, error) {
	dir, err := a.dataDir()
	if err != nil {
		return nil, err
	}
	h := &host{dir: dir}
	file := filepath.Join(dir, "berth.db")
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		return h, nil
	}
	if err := checkTasks(dir); err != nil {
		return h, err
	}
	if err := h.openStore(ctx, file); err != nil {
		return h, err
	}
	if err := h.runner.CatchUp(ctx); err != nil {
		a.say("warning: how some tasks ended is not recorded yet: %s", oneLine(err))
	}
	return h, nil
}

func (h *host) openStore(ctx context.Context, file string) error {
	tasks, err := store.Open(ctx, file, store.Options{})
	if err != nil {
		return err
	}
	h.tasks = tasks
	h.runner = runner.New(runner.Config{Store: tasks, DataDir: h.dir})
	return nil
}

// find finds a task as a user names it: by ID, by name, or by the beginning of an ID. Of several of a name it is the one
// that has not ended, else the newest, and that is said.
func (a *app) find(ctx context.Context, h *host, ref string) (store.Record, error) {
	if h.tasks == nil {
		return store.Record{}, &quietError{"task \"" + ref + "\": there is no such task", berth.ErrNotFound}
	}
	r, err := h.tasks.Find(ctx, ref)
	if err != nil || r.Name != ref || r.ID == ref {
		return r, err
	}
	ids, err := h.tasks.Named(ctx, ref, sameNames+1)
	if err != nil || len(ids) < 2 {
		return r, err
	}
	if r, err = h.tasks.Get(ctx, ids[0]); err != nil {
		return r, err
	}
	which := "the newest"
	if !r.State.Final() {
		which = "the one that has not ended"
	}
	many := strconv.Itoa(len(ids))
	if len(ids) > sameNames {
		many = "more than " + strconv.Itoa(sameNames)
	}
	a.say("%s tasks have the name %q: this is %s, %s", many, ref, which, r.ID)
	return r, nil
}

// sameNames is how many tasks of a name are counted.
const sameNames = 99

// openOf opens a task's engine, and finds the task.
func (a *app) openOf(ctx context.Context, ref string) (*host, store.Record, error) {
	tasks, err := a.findAll(ctx, []string{ref}, false)
	if err != nil {
		return nil, store.Record{}, err
	}
	h, err := a.at(placeOf(tasks[0].Task)).open(ctx)
	return h, tasks[0].Record, err
}

// assign notes on a task what runs it. The embedded engine goes without saying.
func (a *app) assign(t *berth.Task) {
	if a.global.engine != engineOCI {
		t.Engine, t.Daemon = a.global.engine, a.global.daemon
	}
}

// fileKind is the kind of error of an operation on a file that the user named.
func fileKind(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return berth.ErrNotFound
	case errors.Is(err, fs.ErrPermission):
		return berth.ErrDenied
	}
	return berth.ErrInvalid
}
