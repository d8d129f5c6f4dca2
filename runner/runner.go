package runner

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
	"github.com/berth-project/berth/store"
)

// Config is what a Runner needs. Engine, Store, Ledger and DataDir must be set; the zero value of all else is
// its default.
type Config struct {
	Engine  berth.Engine // berth.Puller too, unless it finds images itself
	Store   *store.Store
	Ledger  Ledger
	Devices Devices // nil: a task that asks for some is refused
	Meter   Meter   // nil: what they do is not measured
	Fetch   staging.FetchOptions
	DataDir string // what the runner keeps lies in its directory tasks
	// UID and GID own the outputs, and UID is who submits; 0 is this process's own.
	UID, GID int
	Logger   *slog.Logger
	Clock    Clock
	// Mine reports whether a task is the engine's: Reconcile leaves all others alone. nil: all are.
	Mine func(berth.Task) bool
	// UniqueNames: a task is refused while another of its submitter has its name and has not ended.
	UniqueNames bool
	// Quarantine is for a host on which nothing can run; see there.
	Quarantine Quarantine
	// Tries is how often a call is made that answers ErrUnavailable; the pauses double from a tenth of a
	// second up to five. Default 6.
	Tries int
}

// Runner drives tasks from their submission to their end. All methods may be called concurrently, and by
// several processes over one data directory: one of them drives a task at a time.
type Runner struct {
	cfg Config
}

// New returns a Runner.
func New(cfg Config) *Runner {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Clock == nil {
		cfg.Clock = systemClock{}
	}
	if cfg.Tries == 0 {
		cfg.Tries = 6
	}
	return &Runner{cfg: cfg}
}

// Hooks are told what happens while a task is driven. They are called one at a time, but for Progress, by
// the goroutine that drives the task, which waits for them. Each may be nil.
type Hooks struct {
	Waiting  func(why string)                     // the task waits for room on the machine; "" it no longer does
	Progress func(image string, p berth.Progress) // of a pull; from several goroutines
	Note     func(text string)                    // e.g. which digest an image has
	Warn     func(text string)                    // something went wrong that does not end the task
	Started  func(step int, c berth.Container)    // also when a running step was found again
	Ended    func(step int, e berth.Exit)         // its container and logs are still there
	State    func(s berth.State)                  //
	At       func(point string)                   // see Points
	Ending   func()                               // somebody has asked for the end, of this process or another; beside the others, and more than once

	// Holds: Started begins to read both logs with LogOptions.Hold, where the container is a LogReader. Then nothing is
	// dropped before it is read.
	Holds bool
}

// ErrParked is Drive's error where the task goes on with no process needed.
var ErrParked = errors.New("the step runs; nothing but waiting is left")

// Run runs a task in the foreground to its end. Its containers end with this process. The task gets an ID
// if it has none.
//
// The error says that the task was refused and left no record (ErrInvalid, ErrUnsupported, ErrExhausted,
// ErrConflict), or could not be recorded, or is not at its end because ctx ended with a cause other than
// ErrCanceled and ErrDeadline. All else that goes wrong is in the result.
//
// ErrCanceled as ctx's cause ends the task with its grace; Cancel with now does it at once.
func (r *Runner) Run(ctx context.Context, task berth.Task, hooks Hooks) (berth.Result, error) {
	d, err := r.begin(ctx, &task, false, hooks)
	if err != nil {
		return berth.Result{}, err
	}
	return d.drive(ctx)
}

// Submit records a task that is to run detached, and returns its ID. Drive or Resume run it. Errors are
// those of Run.
func (r *Runner) Submit(ctx context.Context, task berth.Task) (string, error) {
	d, err := r.begin(ctx, &task, true, Hooks{})
	if err != nil {
		return "", err
	}
	return task.ID, d.lock.Close()
}

// begin checks and records a task, and holds it.
func (r *Runner) begin(ctx context.Context, task *berth.Task, detached bool, hooks Hooks) (*drive, error) {
	if task.ID == "" {
		task.ID = berth.NewID()
	}
	if err := Check(*task); err != nil {
		return nil, err
	}
	err := r.fits(ctx, task)
	unasked := false
	if err == nil {
		unasked, err = r.foresee(ctx, task)
	}
	if ctx.Err() != nil { // whoever was asked has not answered to the end
		err = endedEarly(ctx, task.ID)
	}
	if err != nil {
		return nil, err
	}
	// The lock comes before the record: else another process could take the task for one whose driver died.
	dir := r.dir(task.ID)
	lock, err := dir.hold()
	if errors.Is(err, errBusy) {
		return nil, fmt.Errorf("task %s: %w: it exists and runs", task.ID, berth.ErrConflict)
	} else if err != nil {
		return nil, fmt.Errorf("task %s: %w", task.ID, err)
	}
	sub := store.Submission{Task: *task, UID: r.submitter(), Detached: detached, Time: r.cfg.Clock.Now(), UniqueName: r.cfg.UniqueNames}
	if _, err := r.cfg.Store.Submit(ctx, sub); err != nil {
		if taken := (*store.NameError)(nil); errors.As(err, &taken) || !errors.Is(err, berth.ErrConflict) {
			_ = dir.remove()
		}
		_ = lock.Close()
		if ctx.Err() != nil && (errors.Is(err, ctx.Err()) || errors.Is(err, sql.ErrTxDone)) { // rolled back as the context ended
			err = endedEarly(ctx, task.ID)
		}
		return nil, r.full(err)
	}
	r.reserve()
	rec := &Record{Task: *task, Detached: detached, State: berth.Queued, Created: sub.Time}
	d, err := r.newDrive(rec, lock, hooks)
	if err == nil {
		d.unasked = unasked
		d.at("submitted")
	}
	return d, err
}

// endedEarly is the error of a task that was to end before it was recorded.
func endedEarly(ctx context.Context, id string) error {
	return fmt.Errorf("task %s: its end came before it was recorded: %w", id, context.Cause(ctx))
}

// Resume continues a task from its records to its end, whatever process drove it before, waiting for that
// process where it is alive. Of a task that has ended it returns the result. ErrNotFound if there is no
// such task; other errors as Run.
func (r *Runner) Resume(ctx context.Context, id string, hooks Hooks) (berth.Result, error) {
	return r.resume(ctx, id, false, hooks)
}

// Drive is Resume that answers ErrParked as soon as the task's step runs and nothing but waiting is left to
// do. Whoever learns that the step has ended calls it again.
func (r *Runner) Drive(ctx context.Context, id string, hooks Hooks) (berth.Result, error) {
	return r.resume(ctx, id, true, hooks)
}

func (r *Runner) resume(ctx context.Context, id string, park bool, hooks Hooks) (berth.Result, error) {
	rec, err := r.Record(ctx, id)
	if err != nil {
		return berth.Result{}, err
	}
	if rec.Result != nil {
		return *rec.Result, nil
	}
	lock, err := r.dir(id).holdWait(ctx, r.cfg.Clock)
	if err != nil {
		return berth.Result{}, fmt.Errorf("continue task %s: %w", id, err)
	}
	return r.take(ctx, id, lock, park, hooks)
}

// take drives a task that lock holds, from its records.
func (r *Runner) take(ctx context.Context, id string, lock *os.File, park bool, hooks Hooks) (berth.Result, error) {
	rec, err := r.Record(ctx, id) // what the driver before did
	if err != nil {
		r.drop(id, lock, err)
		return berth.Result{}, err
	}
	d, err := r.newDrive(rec, lock, hooks)
	if err != nil {
		return berth.Result{}, err
	}
	d.park = park && rec.Detached
	d.orphan = !rec.Detached
	return d.drive(ctx)
}

// drop lets go of a task whose record could not be read. Where it was removed meanwhile, who took hold of it has made its
// directory anew.
func (r *Runner) drop(id string, lock *os.File, err error) {
	if errors.Is(err, berth.ErrNotFound) {
		_ = r.dir(id).remove() // what stays is of no task, and removed with the next that does
	}
	_ = lock.Close()
}

// Record reads what is known of a task. ErrNotFound if there is none.
func (r *Runner) Record(ctx context.Context, id string) (*Record, error) {
	rec, err := r.cfg.Store.Get(ctx, id)
	if err != nil {
		return nil, err
	}
	var events []store.Event
	for e, err := range r.cfg.Store.Events(ctx, 0, id) {
		if err != nil {
			return nil, err
		}
		events = append(events, e)
	}
	more, err := r.asided(id)
	if err != nil {
		return nil, err
	}
	folded, err := Fold(rec, append(events, more...))
	if err != nil || folded.Result != nil || !folded.State.Final() {
		return folded, err
	}
	// It has ended between the two: the store's events have no result.
	if rec, err = r.cfg.Store.Get(ctx, id); err != nil {
		return nil, err
	}
	folded.Result = rec.Result
	return folded, nil
}

// Wait blocks until the task has ended, whoever drives it.
func (r *Runner) Wait(ctx context.Context, id string) (berth.Result, error) {
	rec, err := r.cfg.Store.Settle(ctx, id)
	if err != nil {
		return berth.Result{}, fmt.Errorf("wait for task %s: %w", id, err)
	}
	return *rec.Result, nil
}

// Remove forgets an ended task: its sandbox, where it was kept, its logs and its record. ErrConflict if it
// has not ended.
func (r *Runner) Remove(ctx context.Context, id string) error {
	rec, err := r.Record(ctx, id)
	if err != nil {
		return err
	}
	if rec.Result == nil {
		return fmt.Errorf("remove task %s: %w: it is %s; stop it first", id, berth.ErrConflict, rec.State)
	}
	lock, err := r.dir(id).holdWait(ctx, r.cfg.Clock)
	if err != nil {
		return fmt.Errorf("remove task %s: %w", id, err)
	}
	defer func() { _ = lock.Close() }()
	if err := r.closeKept(ctx, rec); errors.Is(err, berth.ErrUnavailable) {
		return fmt.Errorf("remove task %s: %w; remove it again once the engine answers", id, err)
	} else if err != nil {
		return fmt.Errorf("remove task %s: %w", id, err)
	}
	if err := r.dir(id).removeWork(); err != nil {
		return fmt.Errorf("remove task %s: %w", id, kind(err))
	}
	// The record goes first: a directory without a record is a leftover that anyone removes.
	err = r.withReserve(func() error { return r.cfg.Store.Delete(ctx, id) })
	if errors.Is(err, berth.ErrExhausted) && r.dir(id).removeLogs() == nil { // room for the record of its removal
		err = r.withReserve(func() error { return r.cfg.Store.Delete(ctx, id) })
	}
	if err != nil {
		return err
	}
	if err := r.dir(id).remove(); err != nil {
		return fmt.Errorf("remove task %s: %w", id, kind(err))
	}
	return nil
}

// LogDir is where the logs of a step lie, from step 0, in the form of package logfile.
func (r *Runner) LogDir(id string, step int) string { return r.dir(id).logs(step) }

func (r *Runner) submitter() int {
	if r.cfg.UID == 0 {
		return os.Getuid()
	}
	return r.cfg.UID
}

// closeKept closes the sandbox of a task that has ended, and records that it is gone.
func (r *Runner) closeKept(ctx context.Context, rec *Record) error {
	if rec.Sandbox == "" {
		return nil
	}
	if err := r.closeSandbox(ctx, rec.Task.ID); err != nil {
		return err
	}
	e := r.event(rec.Task.ID, KindClosed, "", "", nil)
	e.Sandbox = new(string)
	return r.append(ctx, e)
}

func (r *Runner) event(task string, k Kind, s berth.State, text string, data any) store.Event {
	e := Event{Text: text}
	if data != nil {
		e.Data = encode(data)
	}
	se := store.Event{Task: task, Time: r.cfg.Clock.Now(), Kind: string(k), State: s}
	if text != "" || data != nil {
		se.Data = encode(e)
	}
	return se
}

func encode(v any) json.RawMessage {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("runner: encode %T: %v", v, err)) // plain structs of our own
	}
	return b
}
