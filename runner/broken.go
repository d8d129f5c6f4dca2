package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// Diagnoser is a berth.Engine that tells a broken host from a broken task.
type Diagnoser interface {
	// Broken reports whether an error says that nothing can run there now, whatever the task. answered: a daemon has
	// said so in its own words, and what it was asked for has not begun.
	Broken(err error) (broken, answered bool)
}

// Quarantine is what a host gets on which nothing can run: the task that found that out goes back to the queue, none is
// begun, and a person, or a program, is told. The zero value is none: tasks then fail.
type Quarantine struct {
	// Hook is the program that is run once, when the host is found to be broken: with BERTH_BROKEN_WHY and
	// BERTH_BROKEN_TASK in its environment. Where whoever runs it dies meanwhile, another does.
	Hook string
	// File is there as long as the host is taken to be broken, and is removed when it is mended.
	File string
}

// Broken says why a host is taken to be broken.
type Broken struct {
	Since time.Time `json:"since"`
	Why   string    `json:"why"`
	Task  string    `json:"task"` // that found it out
	Told  bool      `json:"told"` // the hook has run
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
	return readBroken(raw), nil
}

func readBroken(raw []byte) *Broken {
	b := &Broken{}
	if json.Unmarshal(raw, b) != nil { // a person made the file, and need not be told
		return &Broken{Why: "it was put into quarantine by hand", Told: true}
	}
	return b
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
	wordless, err := q.put(b)
	if err != nil {
		return fmt.Errorf("quarantine: %w", kind(err))
	}
	if wordless {
		return q.run(ctx, &b)
	}
	return q.tell(ctx)
}

// put makes the file whole, unless there is one. wordless: it is made, but the disk is too full for what it is to say.
func (q Quarantine) put(b Broken) (wordless bool, err error) {
	if err := os.MkdirAll(filepath.Dir(q.File), 0o700); err != nil {
		return false, err
	}
	f, err := os.CreateTemp(filepath.Dir(q.File), ".broken.*.tmp")
	if err != nil {
		return false, err
	}
	defer func() { _ = os.Remove(f.Name()) }()
	if _, err = f.Write(append(encode(b), '\n')); err != nil {
		wordless, err = true, f.Truncate(0)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return false, err
	}
	if err = os.Link(f.Name(), q.File); errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	return wordless, err
}

// tell runs the hook, unless it has run, or another process runs it. It notes that in the file it was run for, which may
// be gone by then: the hook may have mended the host.
func (q Quarantine) tell(ctx context.Context) error {
	f, err := os.OpenFile(q.File, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("quarantine: %w", kind(err))
	}
	defer func() { _ = f.Close() }()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil
	} else if err != nil {
		return fmt.Errorf("quarantine: lock %s: %w", q.File, err)
	}
	raw, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("quarantine: %w", kind(err))
	}
	b := readBroken(raw)
	if b.Told {
		return nil
	}
	ran := q.run(ctx, b)
	b.Told = true
	if _, err := f.WriteAt(append(encode(b), '\n'), 0); err != nil {
		return errors.Join(ran, kind(err), f.Truncate(0)) // without words it is not told again
	}
	return ran
}

func (q Quarantine) run(ctx context.Context, b *Broken) error {
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
	if endingOf(d.stop) != goOn {
		return false, nil
	}
	// A step that was to be started may run, where nobody has said that it does not.
	begun, starting := d.rec.begun()
	broken, answered := d.r.hostBroken(err)
	if !broken || begun || starting && !answered {
		return false, nil
	}
	// Of a task that meets the same on a host that was mended, the daemon's words are not believed again.
	if answered && d.rec.Broken {
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
	if err := d.record(KindAgain, state, "this host is broken, and the task waits until it is mended: "+why, Stepped{Index: -1, Broken: answered}); err != nil {
		return false, err
	}
	d.lease.Release()
	d.lease = nil
	if err := d.awaitMended(); err != nil {
		return false, d.failed(err)
	}
	// What it was lent before may be another's by now.
	return true, d.leaving(d.makeWay())
}

// hostBroken reports whether an error says that nothing can run on the engine's host now, and tasks are to wait for that.
// answered is as of Diagnoser.
func (r *Runner) hostBroken(err error) (broken, answered bool) {
	eng, ok := r.cfg.Engine.(Diagnoser)
	if err == nil || r.cfg.Quarantine.Hook == "" || !ok {
		return false, false
	}
	return eng.Broken(err)
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
		if q := d.r.cfg.Quarantine; !b.Told && q.Hook != "" {
			if err := q.tell(d.stop); err != nil {
				d.warn(err.Error())
			}
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
		d.unasked = true
		d.waiting("")
	}
	return nil
}
