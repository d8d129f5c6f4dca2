package runner

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Found is something that a process left that was killed.
type Found struct {
	Task string `json:"task"`
	What string `json:"what"`
	Err  error  `json:"-"` // why it is still there; nil where it was put right
}

// Reconcile puts right what processes left that were killed: tasks that ran in the foreground are brought to
// their end, sandboxes and directories of no task are removed. It returns what it found, and the detached
// tasks that nobody drives and that need it: Drive or Resume go on with each. It never waits for a container,
// and leaves alone what a living process drives.
func (r *Runner) Reconcile(ctx context.Context) (found []Found, resume []string, err error) {
	if err := r.CatchUp(ctx); err != nil {
		return nil, nil, err
	}
	running, err := r.running(ctx)
	if err != nil {
		return nil, nil, err
	}
	for rec, err := range r.cfg.Store.Stale(ctx) {
		if err != nil {
			return found, resume, err
		}
		if r.cfg.Mine != nil && !r.cfg.Mine(rec.Task) {
			continue
		}
		f, again := r.reconcile(ctx, rec.ID, running)
		if f.What != "" {
			found = append(found, f)
		}
		if again {
			resume = append(resume, rec.ID)
		}
	}
	sandboxes, err := r.strays(ctx, running)
	found = append(found, sandboxes...)
	if err != nil {
		return found, resume, err
	}
	dirs, err := r.strayDirs(ctx)
	return append(found, dirs...), resume, err
}

// Driven reports whether a living process drives the task just now. A parked task is driven by none.
func (r *Runner) Driven(id string) bool {
	f, err := os.Open(r.dir(id).lockFile())
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	return errors.Is(unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB), unix.EWOULDBLOCK)
}

// running maps each sandbox that the engine has to those of its containers that run.
func (r *Runner) running(ctx context.Context) (map[string][]string, error) {
	list, err := r.cfg.Engine.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list what the engine has: %w", err)
	}
	out := map[string][]string{}
	for _, s := range list {
		if out[s.Sandbox] == nil {
			out[s.Sandbox] = []string{}
		}
		if s.Container != "" && s.State == berth.ContainerRunning {
			out[s.Sandbox] = append(out[s.Sandbox], s.Container)
		}
	}
	return out, nil
}

// reconcile puts one open task right, unless somebody drives it.
func (r *Runner) reconcile(ctx context.Context, id string, running map[string][]string) (found Found, resume bool) {
	lock, err := r.dir(id).hold()
	if errors.Is(err, errBusy) {
		return Found{}, false
	}
	found = Found{Task: id}
	if err != nil {
		found.What, found.Err = "it cannot be looked at", err
		return found, false
	}
	rec, err := r.Record(ctx, id)
	switch {
	case errors.Is(err, berth.ErrNotFound): // removed since it was listed
		r.drop(id, lock, err)
		return Found{}, false
	case err != nil:
		found.What, found.Err = "its record cannot be read", err
	case rec.Result != nil && rec.Task.Keep:
		// Kept on purpose.
	case rec.Result != nil:
		found.What = "its sandbox was still there"
		found.Err = r.closeKept(ctx, rec)
	case rec.Detached && rec.Cancel == nil && len(running[id]) > 0:
		// Parked, as it should be.
	case rec.Detached:
		resume = true
	default:
		found.What = "it ran in the foreground of a berth that was killed"
		if _, found.Err = r.take(ctx, id, lock, false, Hooks{}); found.Err == nil {
			found.Err = r.CloseLeft(ctx, id)
		}
		return found, false // the lock went with it
	}
	_ = lock.Close()
	return found, resume
}

// CloseLeft closes the sandbox of a task that has ended, where it could not be closed then: that is no error of the task's. It
// leaves alone what is kept.
func (r *Runner) CloseLeft(ctx context.Context, id string) error {
	rec, err := r.Record(ctx, id)
	if errors.Is(err, berth.ErrNotFound) {
		return nil
	} else if err != nil || rec.Result == nil || rec.Sandbox == "" || rec.Task.Keep {
		return err
	}
	lock, err := r.dir(id).hold()
	if errors.Is(err, errBusy) {
		return nil // who holds it removes it, or tells why not
	} else if err != nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	return r.closeKept(ctx, rec)
}

// strays removes sandboxes of which no task is known, and what is left of those without a record.
func (r *Runner) strays(ctx context.Context, running map[string][]string) (found []Found, err error) {
	for _, id := range slices.Sorted(maps.Keys(running)) {
		_, err := r.cfg.Store.Get(ctx, id)
		if !errors.Is(err, berth.ErrNotFound) {
			if err != nil {
				return found, err
			}
			continue
		}
		if f := r.stray(ctx, id); f.What != "" {
			found = append(found, f)
		}
	}
	p, ok := r.cfg.Engine.(Purger)
	if !ok {
		return found, nil
	}
	orphans, err := p.Orphans(ctx)
	if err != nil {
		return found, fmt.Errorf("list what is left: %w", err)
	}
	for _, id := range orphans {
		// After the list: a task is recorded before anything is made for it.
		rec, err := r.cfg.Store.Get(ctx, id)
		switch {
		case err != nil && !errors.Is(err, berth.ErrNotFound):
			return found, err
		case err == nil && (rec.Result == nil || rec.Sandbox != ""):
			continue // it may have its sandbox, though not here
		}
		if f := purge(ctx, p, id); f.What != "" {
			found = append(found, f)
		}
	}
	return found, nil
}

// stray removes a sandbox of no task. Where the engine has no record of it, and still something, that goes.
func (r *Runner) stray(ctx context.Context, id string) Found {
	_, err := r.cfg.Engine.Attach(ctx, id)
	if p, ok := r.cfg.Engine.(Purger); ok && errors.Is(err, berth.ErrNotFound) {
		return purge(ctx, p, id)
	}
	return Found{Task: id, What: "a sandbox of no task", Err: r.closeSandbox(ctx, id)}
}

// purge is Found with no What where there is nothing.
func purge(ctx context.Context, p Purger, id string) Found {
	was, err := p.Purge(ctx, id)
	if !was && err == nil {
		return Found{}
	}
	return Found{Task: id, What: "what was left of a sandbox", Err: err}
}

// strayDirs removes directories of tasks of which there is no record, and what is left in those of tasks
// that have ended.
func (r *Runner) strayDirs(ctx context.Context) (found []Found, err error) {
	entries, err := os.ReadDir(filepath.Join(r.cfg.DataDir, "tasks"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("list directories of tasks: %w", kind(err))
	}
	for _, e := range entries {
		if berth.CheckID(e.Name()) != nil || !e.IsDir() {
			continue // not ours
		}
		f, err := r.strayDir(ctx, e.Name())
		if err != nil {
			return found, err
		}
		if f.What != "" {
			found = append(found, f)
		}
	}
	return found, nil
}

func (r *Runner) strayDir(ctx context.Context, id string) (Found, error) {
	dir := r.dir(id)
	rec, err := r.cfg.Store.Get(ctx, id)
	switch {
	case errors.Is(err, berth.ErrNotFound):
	case err != nil:
		return Found{}, err
	case !rec.State.Final() || !there(dir.work()):
		return Found{}, nil
	}
	lock, err := dir.hold() // who is about to submit a task holds its directory before it is recorded
	if errors.Is(err, errBusy) {
		return Found{}, nil
	} else if err != nil {
		return Found{Task: id, What: "its directory cannot be looked at", Err: err}, nil
	}
	defer func() { _ = lock.Close() }()
	rec, err = r.cfg.Store.Get(ctx, id)
	switch {
	case errors.Is(err, berth.ErrNotFound):
		return Found{Task: id, What: "a directory of no task", Err: dir.remove()}, nil
	case err != nil:
		return Found{}, err
	case rec.State.Final() && there(dir.work()):
		return Found{Task: id, What: "its working directory was still there", Err: dir.removeWork()}, nil
	}
	return Found{}, nil
}

func there(name string) bool {
	_, err := os.Lstat(name)
	return err == nil
}
