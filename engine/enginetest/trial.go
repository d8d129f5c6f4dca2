package enginetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/berth-project/berth"
)

// trial is one check's use of an engine. What it opened is closed at its end.
type trial struct {
	ctx  context.Context //nolint:containedctx // it lives as long as the check
	env  *Env
	open []berth.Sandbox
}

// check makes a Check of a function that uses a trial.
func check(name string, f func(*trial) error, needs ...Ability) Check {
	return Check{Name: name, Needs: needs, Run: func(ctx context.Context, env *Env) (err error) {
		t := &trial{ctx: ctx, env: env}
		defer func() {
			// A check that ran out of time still leaves nothing behind.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
			defer cancel()
			for _, s := range t.open {
				if e := s.Close(ctx); e != nil {
					err = errors.Join(err, fmt.Errorf("close: %w", e))
				}
			}
		}()
		return f(t)
	}}
}

// setup changes what a container is started from.
type setup func(*berth.SandboxSpec, *berth.StepSpec)

// step and sandbox make setups of the one or the other.
func step(f func(*berth.StepSpec)) setup {
	return func(_ *berth.SandboxSpec, s *berth.StepSpec) { f(s) }
}

func sandbox(f func(*berth.SandboxSpec)) setup {
	return func(s *berth.SandboxSpec, _ *berth.StepSpec) { f(s) }
}

// limited sets the limits of a step.
func limited(l berth.Limits) setup { return step(func(s *berth.StepSpec) { s.Limits = l }) }

// shared gives the sandbox a volume at /vol.
func shared(s *berth.SandboxSpec, _ *berth.StepSpec) {
	s.Volumes = append(s.Volumes, berth.Volume{Path: "/vol"})
}

// sandbox opens a sandbox.
func (t *trial) sandbox(setups ...setup) (berth.Sandbox, error) {
	spec := berth.SandboxSpec{ID: berth.NewID()}
	for _, f := range setups {
		f(&spec, &berth.StepSpec{})
	}
	s, err := t.env.Engine.Open(t.ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("open: %w", err)
	}
	t.open = append(t.open, s)
	return s, nil
}

// script is a step that runs a shell script.
func (t *trial) script(script string, setups ...setup) berth.StepSpec {
	spec := berth.StepSpec{ID: berth.NewID(), Image: t.env.Image, Command: []string{"/bin/sh", "-c", script}}
	for _, f := range setups {
		f(&berth.SandboxSpec{}, &spec)
	}
	return spec
}

// start starts a script in a sandbox of its own.
func (t *trial) start(script string, setups ...setup) (berth.Sandbox, berth.Container, error) {
	s, err := t.sandbox(setups...)
	if err != nil {
		return nil, nil, err
	}
	c, err := s.Start(t.ctx, t.script(script, setups...))
	if err != nil {
		return nil, nil, fmt.Errorf("start %q: %w", script, err)
	}
	return s, c, nil
}

// outcome is how a container ended and what it wrote.
type outcome struct {
	berth.Exit
	Out, Err string
}

// sh runs a script in a sandbox of its own to its end.
func (t *trial) sh(script string, setups ...setup) (outcome, error) {
	_, c, err := t.start(script, setups...)
	if err != nil {
		return outcome{}, err
	}
	return t.end(c)
}

// in runs a script in a sandbox to its end.
func (t *trial) in(s berth.Sandbox, script string, setups ...setup) (outcome, error) {
	c, err := s.Start(t.ctx, t.script(script, setups...))
	if err != nil {
		return outcome{}, fmt.Errorf("start %q: %w", script, err)
	}
	return t.end(c)
}

// end waits for a container and reads what it wrote.
func (t *trial) end(c berth.Container) (o outcome, err error) {
	if o.Exit, err = c.Wait(t.ctx); err != nil {
		return o, fmt.Errorf("wait: %w", err)
	}
	if o.Out, err = t.logs(c, berth.LogOptions{}); err != nil {
		return o, err
	}
	o.Err, err = t.logs(c, berth.LogOptions{Stderr: true})
	return o, err
}

func (t *trial) logs(c berth.Container, opts berth.LogOptions) (string, error) {
	l, ok := c.(berth.LogReader)
	if !ok {
		return "", errors.New("the container is no berth.LogReader")
	}
	r, err := l.Logs(t.ctx, opts)
	if err != nil {
		return "", fmt.Errorf("logs: %w", err)
	}
	b, err := io.ReadAll(r)
	if err = errors.Join(err, r.Close()); err != nil {
		return "", fmt.Errorf("read logs: %w", err)
	}
	return string(b), nil
}

// until waits until see returns true of all that is written so far.
func (t *trial) until(c berth.Container, what string, see func(out string) bool) error {
	var out string
	err := t.eventually(what, func() (is bool, err error) {
		out, err = t.logs(c, berth.LogOptions{})
		return see(out), err
	})
	if err != nil {
		return fmt.Errorf("%w; standard output is %s", err, quoted(out))
	}
	return nil
}

// ready waits until a script has written a line "ready".
func (t *trial) ready(c berth.Container) error {
	return t.until(c, "the script is ready", func(out string) bool { return strings.Contains(out, "ready\n") })
}

// patience is how long what must become true may take to.
const patience = 20 * time.Second

func (t *trial) eventually(what string, is func() (bool, error)) error {
	for end := time.Now().Add(patience); ; {
		ok, err := is()
		if ok || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %v: %s", patience, what)
		}
		select {
		case <-t.ctx.Done():
			return context.Cause(t.ctx)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// exited returns an error unless the container ended by itself with that code.
func (o outcome) exited(code int) error {
	if o.Reason != berth.Exited || o.Code != code || o.Signal != 0 {
		return fmt.Errorf("ended with %s; want Exited, code %d", o, code)
	}
	return nil
}

// wrote returns an error unless the container ended well and wrote exactly that, and nothing to standard error.
func (o outcome) wrote(out string) error {
	if err := o.exited(0); err != nil {
		return err
	}
	if o.Out != out || o.Err != "" {
		return fmt.Errorf("wrote %s and, to standard error, %s; want %s", quoted(o.Out), quoted(o.Err), quoted(out))
	}
	return nil
}

func (o outcome) String() string {
	return fmt.Sprintf("%s, code %d, signal %d (%s); output %s, errors %s", o.Reason, o.Code, o.Signal, o.Detail, quoted(o.Out), quoted(o.Err))
}

// quoted is a text for a message, cut where it is long.
func quoted(s string) string {
	const most = 500
	if len(s) > most {
		return fmt.Sprintf("%q… (%d bytes)", s[:most], len(s))
	}
	return fmt.Sprintf("%q", s)
}

// same returns an error unless both are equal.
func same[T comparable](what string, got, want T) error {
	if got != want {
		return fmt.Errorf("%s: %v; want %v", what, got, want)
	}
	return nil
}

// kind returns an error unless err is of that kind.
func kind(what string, err, want error) error {
	if !errors.Is(err, want) {
		return fmt.Errorf("%s: error %w; want one that is %q", what, orNone(err), want.Error())
	}
	return nil
}

func orNone(err error) error {
	if err == nil {
		return errors.New("none")
	}
	return err
}

// scripts is a table of scripts with what each must write.
type scripts []struct {
	name, script, out string
	setup             setup
}

func (table scripts) check(t *trial) error {
	var errs []error
	for _, row := range table {
		var setups []setup
		if row.setup != nil {
			setups = append(setups, row.setup)
		}
		o, err := t.sh(row.script, setups...)
		if err == nil {
			err = o.wrote(row.out)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", row.name, err))
		}
	}
	return errors.Join(errs...)
}
