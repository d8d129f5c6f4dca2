package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
	"github.com/berth-project/berth/staging"
)

// foresee reports what would fail later, once images were pulled and steps have run, before anything is
// recorded. unasked: the engine's host is broken, and tasks wait until it is mended; then it is asked, by recheck.
func (r *Runner) foresee(ctx context.Context, t *berth.Task) (unasked bool, err error) {
	if err := r.checkSources(t); err != nil {
		return false, err
	}
	writable := Writable(t)
	for _, o := range t.Outputs {
		if err := checkDestination(o, writable); err != nil {
			return false, err
		}
	}
	err = r.checkEngine(ctx, t)
	if broken, _ := r.hostBroken(err); broken {
		return true, nil
	}
	return false, err
}

// recheck holds a task that is begun to what its engine can and has, where the engine may not have been there to say so as
// the task was submitted.
func (d *drive) recheck() error {
	if d.r.cfg.Quarantine.Hook == "" || !d.unasked && !d.rec.Detached && d.rec.Attempts == 0 {
		return nil
	}
	t := &d.rec.Task
	if err := d.r.checkEngine(d.stop, t); err != nil {
		return d.failed(err)
	}
	l := t.Resources.Limits
	if l.CPU == 0 && l.Memory == 0 {
		return nil
	}
	info, err := d.r.cfg.Engine.Info(d.stop)
	if err != nil {
		return d.failed(err)
	}
	what := ""
	switch total := info.Total; {
	case total.CPU > 0 && l.CPU > total.CPU:
		what = fmt.Sprintf("%v CPU(s)", l.CPU)
	case total.Memory > 0 && l.Memory > total.Memory:
		what = berth.SizeInWords(l.Memory) + " of memory"
	default:
		return nil
	}
	return fmt.Errorf("task requires at least %s, more than the execution backend has%.0w", what, berth.ErrExhausted)
}

// checkDestination reports an output that cannot be written: what is in its place stays, or the nearest directory
// that is there is none, or does not let this user write. What is to be made below it is made when the output is.
func checkDestination(o berth.Output, writable []string) error {
	dest, err := staging.CheckTarget(o, writable)
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
		if steps[i].Image.Ref, err = firstNamed(&t.Steps[i]); err != nil {
			return fmt.Errorf("%s%w", stepPrefix(t, i), err)
		}
	}
	return c.Check(ctx, sandboxOf(t, lay), steps)
}

// firstNamed is the first of a step's images that an engine may have or pull: what is of a source that none reads is told
// of once another is there in its place.
func firstNamed(s *berth.Step) (string, error) {
	if len(s.Fallbacks) == 0 {
		return s.Image, nil
	}
	var missed []error
	for _, ref := range append([]string{s.Image}, s.Fallbacks...) {
		if strings.HasPrefix(ref, "sha256:") { // an image's ID
			return ref, nil
		}
		if _, err := image.ParseRef(ref); err != nil {
			missed = append(missed, err)
			continue
		}
		return ref, nil
	}
	return "", noneOf(missed)
}

// stepPrefix names a step, at the beginning of an error, where a task has several.
func stepPrefix(t *berth.Task, i int) string {
	if len(t.Steps) == 1 {
		return ""
	}
	return fmt.Sprintf("step %d: ", i+1)
}

// checkBeneath refuses inputs that are to lie in another one that is a file, as far as that is known here.
func checkBeneath(inputs []berth.Input) error {
	for _, above := range inputs {
		if !isFile(above) {
			continue
		}
		for _, in := range inputs {
			if in, above := path.Clean(in.Path), path.Clean(above.Path); in != above && within(in, above) {
				return fmt.Errorf("input %s: %w: the input %s, in which it is to lie, is a file", in, berth.ErrInvalid, above)
			}
		}
	}
	return nil
}

// isFile reports whether an input is known to be a file before it is fetched.
func isFile(in berth.Input) bool {
	if in.Content != nil {
		return true
	}
	p, here := inputPath(in)
	if !here {
		return in.Type == berth.File
	}
	st, err := os.Stat(p)
	return err == nil && !st.IsDir()
}

// checkSources reports inputs that cannot be fetched and mounts whose source is not there, before anything
// is recorded.
func (r *Runner) checkSources(t *berth.Task) error {
	for _, in := range t.Inputs {
		if err := staging.CheckInput(in, r.cfg.Fetch.Sources...); err != nil {
			return err
		}
	}
	if err := checkBeneath(t.Inputs); err != nil {
		return err
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
