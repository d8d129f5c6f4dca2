package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
)

// foresee reports what would fail later, once images were pulled and steps have run, before anything is
// recorded.
func (r *Runner) foresee(ctx context.Context, t *berth.Task) error {
	if err := r.checkSources(t); err != nil {
		return err
	}
	for _, o := range t.Outputs {
		if err := checkDestination(o); err != nil {
			return err
		}
	}
	return r.checkEngine(ctx, t)
}

// checkDestination reports an output that cannot be written: what is in its place stays, or the nearest directory
// that is there is none, or does not let this user write. What is to be made below it is made when the output is.
func checkDestination(o berth.Output) error {
	dest, err := staging.CheckTarget(o)
	if err != nil || dest == "" {
		return err
	}
	for dir := filepath.Dir(dest); ; dir = filepath.Dir(dir) {
		st, err := os.Stat(dir)
		switch {
		case errors.Is(err, fs.ErrNotExist) && dir != "/":
			continue
		case err != nil && errors.Is(err, unix.ENOTDIR):
			continue // the file that it lies below is met further up
		case err != nil:
			return fmt.Errorf("output %s: cannot write %s: %w", o.Path, dest, kind(err))
		case !st.IsDir():
			return fmt.Errorf("output %s: cannot write %s: %s is no directory%.0w", o.Path, dest, dir, berth.ErrConflict)
		}
		if err := unix.Access(dir, unix.W_OK|unix.X_OK); err != nil {
			return fmt.Errorf("output %s: cannot write %s: the directory %s is not writable (%w)%.0w", o.Path, dest, dir, err, berth.ErrDenied)
		}
		if err := staging.CheckMake(dir); err != nil {
			return fmt.Errorf("output %s: cannot write %s: nothing can be made in %s (%w)%.0w", o.Path, dest, dir, err, berth.ErrConflict)
		}
		return nil
	}
}

// checkEngine reports what the engine would refuse once the images are there.
func (r *Runner) checkEngine(ctx context.Context, t *berth.Task) error {
	c, ok := r.cfg.Engine.(Checker)
	if !ok {
		return nil
	}
	lay, err := newLayout(t)
	if err != nil {
		return err
	}
	steps := make([]berth.StepSpec, len(t.Steps))
	for i := range steps {
		steps[i] = stepOf(t, i)
	}
	return c.Check(ctx, sandboxOf(t, lay), steps)
}

// stepPrefix names a step, at the beginning of an error, where a task has several.
func stepPrefix(t *berth.Task, i int) string {
	if len(t.Steps) == 1 {
		return ""
	}
	return fmt.Sprintf("step %d: ", i+1)
}

// checkSources reports inputs that cannot be fetched and mounts whose source is not there, before anything
// is recorded.
func (r *Runner) checkSources(t *berth.Task) error {
	for _, in := range t.Inputs {
		if err := staging.CheckInput(in, r.cfg.Fetch.Sources...); err != nil {
			return err
		}
	}
	for i, s := range t.Steps {
		for _, m := range s.Mounts {
			if m.Type == berth.MountTmpfs {
				continue
			}
			_, err := os.Stat(m.Source)
			switch at := stepPrefix(t, i); {
			case errors.Is(err, fs.ErrNotExist):
				return fmt.Errorf("%scannot mount `%s` at %s as it does not exist%.0w", at, m.Source, m.Target, berth.ErrNotFound)
			case err != nil:
				return fmt.Errorf("%scannot mount %s at %s: %w", at, m.Source, m.Target, kind(err))
			}
		}
	}
	return nil
}
