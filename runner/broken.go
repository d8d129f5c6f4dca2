package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/berth-project/berth"
)

// Diagnoser is a berth.Engine that tells a broken host from a broken task.
type Diagnoser interface {
	// Broken reports whether an error says that nothing can run there now, whatever the task. answered: the engine
	// knows that what it was asked for has not begun.
	Broken(err error) (broken, answered bool)
}

// Quarantine is what a host gets on which nothing can run: the task that found that out goes back to the queue, none is
// begun, and a person, or a program, is told. The zero value is none: tasks then fail.
type Quarantine struct {
	// Hook is the program that is run once, when the host is found to be broken: with BERTH_BROKEN_WHY and
	// BERTH_BROKEN_TASK in its environment.
	Hook string
	// File is there as long as the host is taken to be broken, and is removed when it is mended.
	File string
}

// Broken says why a host is taken to be broken.
type Broken struct {
	Since time.Time `json:"since"`
	Why   string    `json:"why"`
	Task  string    `json:"task"` // that found it out
}

const (
	brokenPoll = 500 * time.Millisecond
	hookMax    = time.Minute
)

// Broken reads why the host is taken to be broken; nil where it is not.
func (q Quarantine) Broken() (*Broken, error) {
	raw, err := os.ReadFile(q.File)
	if errors.Is(err, fs.ErrNotExist) || q.File == "" {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("quarantine: %w", kind(err))
	}
	b := &Broken{}
	if json.Unmarshal(raw, b) != nil {
		b.Why = "it was put into quarantine by hand" // by a person who made the file
	}
	return b, nil
}

// Mended ends the quarantine. It answers what it was for; nil where there was none.
func (q Quarantine) Mended() (*Broken, error) {
	b, err := q.Broken()
	if b == nil || err != nil {
		return nil, err
	}
	if err := os.Remove(q.File); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("quarantine: %w", kind(err))
	}
	return b, nil
}

// begin puts the host into quarantine. Of several who find it broken one tells the hook.
func (q Quarantine) begin(ctx context.Context, b Broken) error {
	if err := os.MkdirAll(filepath.Dir(q.File), 0o700); err != nil {
		return fmt.Errorf("quarantine: %w", kind(err))
	}
	f, err := os.OpenFile(q.File, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("quarantine: %w", kind(err))
	}
	_, err = f.Write(append(encode(b), '\n'))
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("quarantine: %w", kind(err))
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), hookMax)
	defer cancel()
	cmd := exec.CommandContext(ctx, q.Hook)
	cmd.Env = append(os.Environ(), "BERTH_BROKEN_WHY="+b.Why, "BERTH_BROKEN_TASK="+b.Task)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("hook %s: %w: %.500s", q.Hook, err, out)
	}
	return nil
}

// requeue puts the task back into the queue where an error says that the host is at fault, and nothing of the task has
// run, and waits until it is mended. It answers whether the task is to be begun anew.
func (d *drive) requeue(err error) (bool, error) {
	q := d.r.cfg.Quarantine
	eng, ok := d.r.cfg.Engine.(Diagnoser)
	if err == nil || q.Hook == "" || !ok || endingOf(d.stop) != goOn {
		return false, nil
	}
	// A step that was to be started may run, where nobody has said that it does not.
	begun, starting := d.rec.begun()
	if broken, answered := eng.Broken(err); !broken || begun || starting && !answered {
		return false, nil
	}
	why := d.plainly(err).Error()
	if err := q.begin(d.stop, Broken{Since: d.r.cfg.Clock.Now(), Why: why, Task: d.rec.Task.ID}); err != nil {
		d.warn(err.Error())
	}
	state := berth.State("")
	if d.rec.State == berth.Initializing {
		state = berth.Queued
	}
	if err := d.record(KindAgain, state, "this host is broken, and the task waits until it is mended: "+why, Stepped{Index: -1}); err != nil {
		return false, err
	}
	d.lease.Release()
	d.lease = nil
	if err := d.awaitMended(); err != nil {
		return false, d.failed(err)
	}
	// What it was lent before may be another's by now.
	return true, d.leaving(d.r.closeSandbox(d.alive, d.rec.Task.ID))
}

// begun reports whether a step was started, and whether one was to be.
func (rec *Record) begun() (started, starting bool) {
	for _, s := range rec.Steps {
		started = started || s.Started || s.Exit != nil
		starting = starting || s.Spec.ID != ""
	}
	return started, starting
}

// awaitMended waits as long as the host is taken to be broken.
func (d *drive) awaitMended() error {
	waits := false
	for {
		b, err := d.r.cfg.Quarantine.Broken()
		if err != nil {
			return err
		}
		if b == nil {
			break
		}
		if d.rec.Task.NoWait {
			return errors.New("this host is broken: " + b.Why)
		}
		if !waits {
			waits = true
			d.waiting("until this host is mended, and `berth system mended` says so: " + b.Why)
		}
		select {
		case <-d.stop.Done():
			return d.ended()
		case <-d.r.cfg.Clock.After(brokenPoll):
		}
	}
	if waits {
		d.waiting("")
	}
	return nil
}
