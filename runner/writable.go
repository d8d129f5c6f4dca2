package runner

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
)

// Writable are the real paths of what of this host a task can write to: mounts that are not read-only, and with
// CAP_SYS_ADMIN, by which it can change how they are mounted, the others and its inputs as well.
func Writable(t *berth.Task) []string { return writable(t, sources(t)) }

// Writable are those of a task as they were before it ran.
func (rec *Record) Writable() []string {
	real := rec.Sources
	if real == nil {
		real = sources(&rec.Task)
	}
	return writable(&rec.Task, real)
}

func writable(t *berth.Task, real map[string]string) (out []string) {
	add := func(name string) {
		if p, ok := real[name]; ok {
			name = p
		}
		if name = filepath.Clean(name); !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	for _, s := range t.Steps {
		admin := hasCap(s, "SYS_ADMIN")
		for _, m := range s.Mounts {
			if m.Type != berth.MountTmpfs && (admin || !m.ReadOnly) {
				add(m.Source)
			}
		}
		for _, in := range t.Inputs {
			if p, ok := inputPath(in); ok && admin {
				add(p)
			}
		}
	}
	return out
}

// hasCap reports whether a step asks for one of some capabilities.
func hasCap(s berth.Step, names ...string) bool {
	return slices.ContainsFunc(s.CapAdd, func(c string) bool {
		name := strings.TrimPrefix(strings.ToUpper(c), "CAP_")
		return name == "ALL" || slices.Contains(names, name)
	})
}

// sources are where the files and directories of this host lead that a task names to be mounted.
func sources(t *berth.Task) map[string]string {
	out := map[string]string{}
	add := func(name string) {
		if real, err := filepath.EvalSymlinks(name); err == nil { // else whoever mounts it says so
			out[name] = real
		}
	}
	for _, s := range t.Steps {
		for _, m := range s.Mounts {
			if m.Type != berth.MountTmpfs {
				add(m.Source)
			}
		}
	}
	for _, in := range t.Inputs {
		if p, ok := inputPath(in); ok {
			add(p)
		}
	}
	return out
}

// inputPath is the path of an input that is mounted from where it lies.
func inputPath(in berth.Input) (string, bool) {
	if in.Content != nil {
		return "", false
	}
	p, here, err := staging.HostPath(in.URL)
	return p, here && err == nil
}

// source is where what a task names to be mounted led before the task ran. The error is one where the way there has a link by
// now, as a step leaves behind that could write to what lies above it: it would lead where the step chose.
func (d *drive) source(name string) (string, error) {
	real, ok := d.rec.Sources[name]
	if !ok { // recorded by an older berth
		return name, nil
	}
	if err := leads(real, real); !errors.Is(err, berth.ErrNotFound) { // what lies there is not to be had, and whoever asks for it hears so
		return real, err
	}
	return real, nil
}

func leads(name, real string) error {
	now, err := filepath.EvalSymlinks(name)
	if err == nil && now != real {
		return fmt.Errorf("%s leads to %s, and led to %s before the task ran: %w: what a step puts in its place is not followed", name, now, real, berth.ErrConflict)
	}
	return kind(err)
}

// checkWays reports what a step is to have mounted and an earlier one has put a link in the way of.
func (d *drive) checkWays(i int) error {
	if i == 0 && d.rec.Attempts == 0 || len(d.rec.Writable()) == 0 {
		return nil // there is none
	}
	names := map[string]string{} // by container path
	for _, m := range d.rec.Task.Steps[i].Mounts {
		if m.Type != berth.MountTmpfs {
			names[m.Target] = m.Source
		}
	}
	for _, in := range d.rec.Task.Inputs {
		if p, ok := inputPath(in); ok {
			names[in.Path] = p
		}
	}
	for target, name := range names {
		if real, ok := d.rec.Sources[name]; ok {
			if err := leads(name, real); err != nil {
				return fmt.Errorf("step %d: mount at %s: %w", i+1, target, err)
			}
		}
	}
	return nil
}
