package enginetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/berth-project/berth"
)

// lives are the checks of the life of sandboxes and containers.
func lives() []Check {
	return []Check{
		check("start is idempotent", startIdempotent),
		check("start with another spec conflicts", startConflict),
		check("open is idempotent", openIdempotent),
		check("what is not there", notThere),
		check("what makes no sense is refused", refused),
		check("attach in another process", attach, Restart),
		check("list", list),
		check("remove", remove),
		check("remove of a running container", removeRunning),
		check("close", closeSandbox),
		check("close during starts", closeDuringStarts),
		check("start with a context that ends", startEndsWithContext),
		check("two at once", twoAtOnce),
		check("many at once", manyAtOnce),
	}
}

func startIdempotent(t *trial) error {
	s, err := t.sandbox(shared)
	if err != nil {
		return err
	}
	spec := t.script("echo run >>/vol/runs; sleep 0.2; exit 3")
	var errs []error
	for i := range 4 {
		c, err := s.Start(t.ctx, spec)
		if err != nil {
			return fmt.Errorf("start number %d: %w", i+1, err)
		}
		errs = append(errs, same("id", c.ID(), spec.ID))
		if i < 2 { // the third start finds it ended, the fourth too
			continue
		}
		o, err := t.end(c)
		if err != nil {
			return err
		}
		errs = append(errs, o.exited(3))
	}
	o, err := t.in(s, "cat /vol/runs")
	if err != nil {
		return err
	}
	return errors.Join(append(errs, o.wrote("run\n"))...)
}

func startConflict(t *trial) error {
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	spec := t.script("exit 3")
	c, err := s.Start(t.ctx, spec)
	if err != nil {
		return err
	}
	other := spec
	other.Env = []string{"A=1"}
	_, whileRunning := s.Start(t.ctx, other)
	if _, err := c.Wait(t.ctx); err != nil {
		return err
	}
	_, afterwards := s.Start(t.ctx, other)
	o, err := t.end(c)
	if err != nil {
		return err
	}
	return errors.Join(kind("start with another spec", whileRunning, berth.ErrConflict), kind("the same after the end", afterwards, berth.ErrConflict), o.exited(3))
}

func openIdempotent(t *trial) error {
	spec := berth.SandboxSpec{ID: berth.NewID(), Labels: map[string]string{"a": "b"}, Volumes: []berth.Volume{{Path: "/vol"}}}
	s, err := t.env.Engine.Open(t.ctx, spec)
	if err != nil {
		return err
	}
	t.open = append(t.open, s)
	if _, err := t.in(s, "echo kept >/vol/file"); err != nil {
		return err
	}
	again, err := t.env.Engine.Open(t.ctx, spec)
	if err != nil {
		return fmt.Errorf("open again: %w", err)
	}
	o, err := t.in(again, "cat /vol/file")
	if err != nil {
		return err
	}
	other := spec
	other.Volumes = []berth.Volume{{Path: "/other"}}
	_, err = t.env.Engine.Open(t.ctx, other)
	return errors.Join(same("id", again.ID(), spec.ID), o.wrote("kept\n"), kind("open with another spec", err, berth.ErrConflict))
}

func notThere(t *trial) error {
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	_, attach := t.env.Engine.Attach(t.ctx, berth.NewID())
	_, container := s.Container(t.ctx, berth.NewID())
	root, volume := s.Volume(t.ctx, "/no/volume")
	if volume == nil {
		_ = root.Close()
	}
	if errors.Is(volume, berth.ErrUnsupported) {
		volume = berth.ErrNotFound // no disk is shared with this engine
	}
	return errors.Join(
		kind("attach to an unknown sandbox", attach, berth.ErrNotFound),
		kind("an unknown container", container, berth.ErrNotFound),
		kind("an unknown volume", volume, berth.ErrNotFound),
	)
}

func refused(t *trial) error {
	var errs []error
	for name, spec := range map[string]berth.SandboxSpec{
		"no id":             {},
		"id":                {ID: "../../etc"},
		"upper case":        {ID: "ABC"},
		"a relative volume": {ID: berth.NewID(), Volumes: []berth.Volume{{Path: "vol"}}},
		"a negative limit":  {ID: berth.NewID(), Limits: berth.Limits{Memory: -5}},
	} {
		s, err := t.env.Engine.Open(t.ctx, spec)
		if err == nil {
			t.open = append(t.open, s)
		}
		errs = append(errs, kind("open, "+name, err, berth.ErrInvalid))
	}
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	for name, f := range map[string]func(*berth.StepSpec){
		"no id":                 func(s *berth.StepSpec) { s.ID = "" },
		"id":                    func(s *berth.StepSpec) { s.ID = "a/b" },
		"no command":            func(s *berth.StepSpec) { s.Entrypoint, s.Command = []string{}, []string{} },
		"variable without name": func(s *berth.StepSpec) { s.Env = []string{"=x"} },
		"a zero byte":           func(s *berth.StepSpec) { s.Command = []string{"echo", "a\x00b"} },
		"seccomp":               func(s *berth.StepSpec) { s.Seccomp = "{" },
		"capability":            func(s *berth.StepSpec) { s.CapAdd = []string{"NO_SUCH"} },
		"ulimit":                func(s *berth.StepSpec) { s.Ulimits = []berth.Ulimit{{Name: "no-such"}} },
		"a relative target":     func(s *berth.StepSpec) { s.Mounts = []berth.Mount{{Source: "/", Target: "x"}} },
		"stop signal":           func(s *berth.StepSpec) { s.StopSignal = "NOSUCH" },
	} {
		spec := t.script("true")
		f(&spec)
		_, err := s.Start(t.ctx, spec)
		errs = append(errs, kind("start, "+name, err, berth.ErrInvalid))
	}
	status, err := t.statuses(s.ID())
	if err == nil && len(status) != 1 {
		err = fmt.Errorf("after refused starts the engine lists %+v", status)
	}
	return errors.Join(append(errs, err)...)
}

func attach(t *trial) error {
	s, c, err := t.start("echo before; while ! [ -e /vol/go ]; do sleep 0.02; done; echo after; exit 5", shared)
	if err != nil {
		return err
	}
	_, ended, err := t.start("echo whole; exit 6")
	if err != nil {
		return err
	}
	if _, err := ended.Wait(t.ctx); err != nil {
		return err
	}
	if err := t.until(c, "the first line", func(out string) bool { return out == "before\n" }); err != nil {
		return err
	}
	engine, err := t.env.Again(t.ctx)
	if err != nil {
		return fmt.Errorf("open the engine anew: %w", err)
	}
	find := func(sandbox, container string) (berth.Sandbox, berth.Container, error) {
		s, err := engine.Attach(t.ctx, sandbox)
		if err != nil {
			return nil, nil, fmt.Errorf("attach: %w", err)
		}
		c, err := s.Container(t.ctx, container)
		return s, c, err
	}
	again, found, err := find(s.ID(), c.ID())
	if err != nil {
		return err
	}
	if _, err := t.in(again, "touch /vol/go"); err != nil {
		return err
	}
	running, err := t.end(found)
	if err != nil {
		return err
	}
	_, found, err = find(t.open[1].ID(), ended.ID())
	if err != nil {
		return err
	}
	over, err := t.end(found)
	if err != nil {
		return err
	}
	return errors.Join(running.exited(5), same("its output", running.Out, "before\nafter\n"), over.exited(6), same("the other's output", over.Out, "whole\n"))
}

// statuses are what the engine lists of a sandbox.
func (t *trial) statuses(sandbox string) ([]berth.Status, error) {
	all, err := t.env.Engine.List(t.ctx)
	if err != nil {
		return nil, fmt.Errorf("list: %w", err)
	}
	return slices.DeleteFunc(all, func(s berth.Status) bool { return s.Sandbox != sandbox }), nil
}

func list(t *trial) error {
	s, c, err := t.start("while ! [ -e /vol/go ]; do sleep 0.02; done; exit 3", shared,
		sandbox(func(s *berth.SandboxSpec) { s.Labels = map[string]string{"of": "sandbox"} }),
		step(func(s *berth.StepSpec) { s.Labels = map[string]string{"of": "step"} }))
	if err != nil {
		return err
	}
	see := func(when string, want ...berth.ContainerState) error {
		all, err := t.statuses(s.ID())
		if err != nil {
			return err
		}
		var got []berth.ContainerState
		var errs []error
		for _, st := range all {
			label := "sandbox"
			switch st.Container {
			case c.ID():
				label = "step"
				got = append(got, st.State)
				if ended := st.State == berth.ContainerEnded; ended && (st.Exit == nil || st.Exit.Code != 3) || !ended && st.Exit != nil {
					errs = append(errs, fmt.Errorf("%s: the exit of a container that is %s is %+v", when, st.State, st.Exit))
				}
			case "":
				got = append(got, "sandbox")
			default:
				continue
			}
			errs = append(errs, same(when+": a label", st.Labels["of"], label))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			errs = append(errs, fmt.Errorf("%s: the list holds %v; want %v", when, got, want))
		}
		return errors.Join(errs...)
	}
	if err := see("while it runs", berth.ContainerRunning, "sandbox"); err != nil {
		return err
	}
	if _, err := t.in(s, "touch /vol/go"); err != nil {
		return err
	}
	if _, err := c.Wait(t.ctx); err != nil {
		return err
	}
	if err := see("after its end", berth.ContainerEnded, "sandbox"); err != nil {
		return err
	}
	if err := c.Remove(t.ctx); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	if err := see("after its removal", "sandbox"); err != nil {
		return err
	}
	if err := s.Close(t.ctx); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return see("after the sandbox was closed")
}

func remove(t *trial) error {
	s, c, err := t.start("exit 3")
	if err != nil {
		return err
	}
	if _, err := c.Wait(t.ctx); err != nil {
		return err
	}
	for i := range 2 {
		if err := c.Remove(t.ctx); err != nil {
			return fmt.Errorf("remove number %d: %w", i+1, err)
		}
	}
	_, err = s.Container(t.ctx, c.ID())
	return kind("a removed container", err, berth.ErrNotFound)
}

func removeRunning(t *trial) error {
	s, c, err := t.start("trap '' TERM; while :; do echo x >>/vol/alive; sleep 0.02; done", shared)
	if err != nil {
		return err
	}
	if err := t.eventually("the script runs", func() (bool, error) {
		o, err := t.in(s, "cat /vol/alive 2>/dev/null")
		return o.Out != "", err
	}); err != nil {
		return err
	}
	if err := c.Remove(t.ctx); err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	still := t.still(s)
	_, err = s.Container(t.ctx, c.ID())
	return errors.Join(still, kind("a removed container", err, berth.ErrNotFound))
}

func closeSandbox(t *trial) error {
	scratch, err := os.MkdirTemp(t.env.Dir, "scratch")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(scratch, "file"), nil, 0o600); err != nil {
		return err
	}
	s, c, err := t.start("echo ready; trap '' TERM; "+loop, shared, sandbox(func(s *berth.SandboxSpec) { s.Scratch = []string{scratch} }))
	if err != nil {
		return err
	}
	if err := t.ready(c); err != nil {
		return err
	}
	for i := range 2 {
		if err := s.Close(t.ctx); err != nil {
			return fmt.Errorf("close number %d: %w", i+1, err)
		}
	}
	_, attach := t.env.Engine.Attach(t.ctx, s.ID())
	_, err = os.Stat(scratch)
	all, listed := t.statuses(s.ID())
	if listed == nil && len(all) > 0 {
		listed = fmt.Errorf("the list still holds %+v", all)
	}
	return errors.Join(kind("attach to a closed sandbox", attach, berth.ErrNotFound), kind("a scratch path of a closed sandbox", err, os.ErrNotExist), listed)
}

// closeDuringStarts: whatever a start had come to, nothing of it is there afterwards.
func closeDuringStarts(t *trial) error {
	var errs []error
	for i := range 5 {
		s, err := t.sandbox()
		if err != nil {
			return err
		}
		const n = 3
		type started struct {
			berth.Container
			err error
		}
		starts := make(chan started, n)
		for range n {
			spec := t.script("exec sleep 1000")
			go func() {
				c, err := s.Start(t.ctx, spec)
				starts <- started{c, err}
			}()
		}
		time.Sleep(time.Duration(i*i) * 3 * time.Millisecond) // each round another moment
		if err := s.Close(t.ctx); err != nil {
			errs = append(errs, fmt.Errorf("close: %w", err))
		}
		for range n {
			st := <-starts
			if st.err != nil {
				continue // it came too late, or not to its end
			}
			// Gone, or ended: but it does not run.
			ctx, cancel := context.WithTimeoutCause(t.ctx, 10*time.Second, errors.New("a container of a closed sandbox runs"))
			e, err := st.Wait(ctx)
			if ctx.Err() != nil {
				cancel()
				return context.Cause(ctx)
			} else if err == nil && e.Reason == berth.Exited { // sleep does not end by itself
				errs = append(errs, fmt.Errorf("a container of a closed sandbox ended with %s", outcome{Exit: e}))
			}
			cancel()
			errs = append(errs, st.Stop(t.ctx, 0), st.Remove(t.ctx))
		}
		errs = append(errs, s.Close(t.ctx))
		all, err := t.statuses(s.ID())
		if err == nil && len(all) > 0 {
			err = fmt.Errorf("after the close the list holds %+v", all)
		}
		errs = append(errs, err)
		_, err = t.env.Engine.Attach(t.ctx, s.ID())
		errs = append(errs, kind("attach to a closed sandbox", err, berth.ErrNotFound))
	}
	return errors.Join(errs...)
}

// startEndsWithContext: a start whose context ends did happen or did not; asked again, it happens once.
func startEndsWithContext(t *trial) error {
	s, err := t.sandbox(shared)
	if err != nil {
		return err
	}
	var errs []error
	for i := range 5 {
		spec := t.script(fmt.Sprintf("echo %d >>/vol/runs", i))
		ctx, cancel := context.WithTimeout(t.ctx, time.Duration(i*i)*2*time.Millisecond)
		c, err := s.Start(ctx, spec)
		cancel()
		if err != nil {
			if c, err = s.Start(t.ctx, spec); err != nil {
				return fmt.Errorf("start again: %w", err)
			}
		} else if i == 0 {
			errs = append(errs, errors.New("a start whose context had ended answers no error"))
		}
		o, err := t.end(c)
		if err != nil {
			return err
		}
		errs = append(errs, o.wrote(""))
	}
	o, err := t.in(s, "cat /vol/runs")
	if err != nil {
		return err
	}
	return errors.Join(append(errs, o.wrote("0\n1\n2\n3\n4\n"))...)
}

// twoAtOnce runs two containers that wait for each other.
func twoAtOnce(t *trial) error {
	s, err := t.sandbox(shared)
	if err != nil {
		return err
	}
	var cs []berth.Container
	for _, names := range [][]any{{"a", "b"}, {"b", "a"}} {
		c, err := s.Start(t.ctx, t.script(fmt.Sprintf("touch /vol/%s; while ! [ -e /vol/%s ]; do sleep 0.02; done; echo %[1]s", names...)))
		if err != nil {
			return err
		}
		cs = append(cs, c)
	}
	var errs []error
	for i, name := range []string{"a", "b"} {
		o, err := t.end(cs[i])
		if err != nil {
			return err
		}
		errs = append(errs, o.wrote(name+"\n"))
	}
	return errors.Join(errs...)
}

func manyAtOnce(t *trial) error {
	const n = 24
	var sandboxes [n]berth.Sandbox
	for i := range sandboxes {
		var err error
		if sandboxes[i], err = t.sandbox(); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	var errs [n]error
	for i, s := range sandboxes {
		wg.Go(func() {
			o, err := t.in(s, fmt.Sprintf("echo %d; exit %d", i, i))
			if err == nil {
				err = errors.Join(o.exited(i), same("output", o.Out, fmt.Sprintln(i)))
			}
			errs[i] = err
		})
	}
	wg.Wait()
	return errors.Join(errs[:]...)
}
