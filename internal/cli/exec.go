package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"syscall"
	"time"

	"github.com/moby/term"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
)

type execOptions struct {
	interactive, tty bool
	env              []string
	workdir, user    string
	detachKeys       string
	step             int64
}

func (a *app) execCommand() *cobra.Command {
	o := &execOptions{}
	cmd := &cobra.Command{
		Use:   "exec [flags] TASK COMMAND [ARG...]",
		Short: "Run a further command in a running task",
		Long: `Run a command in the container of a task's running step, with the same limits; where the task does not run
yet, berth waits until it does. Flags end at TASK. The exit code is the command's; 126 and 127 where it cannot be run or is not there; 125 for all that is berth's own.

On Docker and Podman, a command runs on in its container when berth exec is interrupted, and may when the daemon goes away:
they have no call that ends it. It ends with the task at the latest.`,
		Example: `  berth exec -it align sh
  berth exec align ps`,
		Args:        argCount(2, -1),
		Annotations: map[string]string{ownExit: "yes", asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, args []string) error { return a.exec(cmd.Context(), o, args[0], args[1:]) },
	}
	flags := cmd.Flags()
	flags.SetInterspersed(false)
	flags.BoolVarP(&o.interactive, "interactive", "i", false, "give the command berth's standard input")
	flags.BoolVarP(&o.tty, "tty", "t", false, "give the command a terminal")
	flags.VarP(listValue{&o.env, "K=V"}, "env", "e", "set a variable; K alone takes the host's (repeat)")
	flags.StringVarP(&o.workdir, "workdir", "w", "", "working `DIR` (default the container's)")
	flags.StringVar(&o.user, "user", "", "run as this `UID[:GID]` or name (default the container's)")
	flags.StringVar(&o.detachKeys, "detach-keys", "", "with -it: typing these `KEYS`, such as ctrl-p,ctrl-q, leaves the command running (default none: shells know such keys themselves)")
	flags.Var(intValue{&o.step, 1}, "step", "the step, from 1 (default the one that runs)")
	return cmd
}

func (a *app) exec(ctx context.Context, o *execOptions, ref string, argv []string) error {
	keys, err := o.keys()
	if err != nil {
		return err
	}
	if o.workdir != "" && o.workdir != "." && !path.IsAbs(o.workdir) {
		return invalid("exec: --workdir: %q is not an absolute path", o.workdir)
	}
	h, r, err := a.openOf(ctx, ref)
	if err != nil {
		return err
	}
	defer h.close()
	ctx, stop := notify(ctx)
	defer stop()
	c, err := a.awaitRunning(ctx, h, r.ID, ref, int(o.step))
	if err != nil {
		return err
	}
	execer, ok := c.(berth.Execer)
	if !ok {
		return unsupported("exec: this engine cannot")
	}
	spec := berth.ExecSpec{Command: argv, WorkingDir: o.workdir, User: o.user, TTY: o.tty}
	for _, e := range o.env {
		spec.Env = a.appendEnv(spec.Env, e)
	}
	stdio := berth.Stdio{Out: a.out, Err: a.err}
	looking, detach := context.WithCancelCause(ctx)
	defer detach(nil)
	if o.interactive {
		stdio.In = a.in
	}
	if len(keys) > 0 {
		stdio.In = &detacher{r: term.NewEscapeProxy(a.in, keys), leave: func() { detach(berth.ErrDetached) }}
	}
	var exit berth.Exit
	err = a.withTerminal(o.tty, o.interactive, func(sizes <-chan berth.Size) (err error) {
		stdio.Resize = sizes
		exit, err = execer.Exec(looking, spec, stdio)
		return err
	})
	if errors.Is(err, berth.ErrDetached) {
		a.say("detached: the command runs on in %s, and ends with it", ref)
		return nil
	}
	if err != nil {
		return err
	}
	if execCode(exit) == 128+int(syscall.SIGKILL) || exit.Reason == berth.Lost {
		if how := endedMeanwhile(ctx, h, r.ID, c); how != "" {
			a.say("the command was ended with its task: %s", how)
			return exitOf(execCode(exit))
		}
	}
	if exit.Reason == berth.Exited && exit.Detail != "" {
		a.say("warning: %s", exit.Detail)
	} else if exit.Reason != berth.Signaled && exit.Detail != "" {
		a.say("%s", colon(string(exit.Reason), exit.Detail))
	}
	return exitOf(execCode(exit))
}

// keys are the bytes of --detach-keys.
func (o *execOptions) keys() ([]byte, error) {
	if o.detachKeys == "" {
		return nil, nil
	}
	if !o.tty || !o.interactive {
		return nil, invalid("exec: --detach-keys are typed at a terminal: give -it, too")
	}
	keys, err := term.ToBytes(o.detachKeys)
	if err != nil {
		return nil, invalid("exec: --detach-keys %q: keys are characters, or ctrl- and one of a-z @ [ ] ^ _, with commas between them, such as ctrl-p,ctrl-q", o.detachKeys)
	}
	return keys, nil
}

// detacher is the input up to the detach keys. With them it calls leave, and then has nothing more until the exec
// is over: an end of input would be the command's.
type detacher struct {
	r     io.Reader
	leave func()
}

func (d *detacher) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	if _, typed := errors.AsType[term.EscapeError](err); typed {
		d.leave()
		if n == 0 {
			select {} // as a terminal at which nobody types
		}
		err = nil
	}
	return n, err
}

// endWord is how long to wait for the end of a container that seems to have ended, askedWord where its task's end was
// asked for: a busy daemon on another machine tells of it seconds after the command's.
const (
	endWord   = time.Second
	askedWord = 30 * time.Second
)

// endedMeanwhile says how a container ended, as its engine knows or, where it is removed, as is recorded; "" where it
// has not.
func endedMeanwhile(ctx context.Context, h *host, task string, c berth.Container) string {
	began := time.Now()
	first, cancel := context.WithTimeout(ctx, endWord)
	defer cancel()
	exit, err := c.Wait(first)
	for err != nil {
		rec, bad := h.runner.Record(context.WithoutCancel(ctx), task)
		if bad != nil {
			return ""
		}
		for _, s := range rec.Steps {
			if s.Spec.ID == c.ID() && s.Exit != nil {
				exit, err = *s.Exit, nil
			}
		}
		limit := endWord
		if rec.Cancel != nil {
			limit = askedWord
		}
		if err != nil && (rec.State.Final() || time.Since(began) > limit || sleep(ctx, startPoll) != nil) {
			return ""
		}
	}
	if exit.Reason == berth.Exited {
		return fmt.Sprintf("that exited with %d", exit.Code)
	}
	return colon(string(exit.Reason), exit.Detail)
}

func execCode(e berth.Exit) int {
	switch {
	case e.Signal > 0:
		return 128 + e.Signal
	case e.Code < 0:
		return exitOwn
	}
	return e.Code
}

// exitOf ends berth with a code.
func exitOf(code int) error {
	if code == 0 {
		return nil
	}
	return exitError(code)
}

// awaitRunning finds the container of a running step, or of step number n, from 1, and waits for it where the
// task has not come so far.
func (a *app) awaitRunning(ctx context.Context, h *host, task, ref string, n int) (berth.Container, error) {
	said := time.Now().Add(silence)
	for {
		rec, err := h.runner.Record(ctx, task)
		if err != nil {
			return nil, err
		}
		if n > len(rec.Task.Steps) {
			return nil, invalid("exec: --step %d: task %q has %s", n, ref, steps(len(rec.Task.Steps)))
		}
		for i, s := range slices.Backward(rec.Steps) {
			if s.Started && s.Exit == nil && s.Spec.ID != "" && (n == 0 || n == i+1) {
				return h.container(ctx, task, s.Spec.ID)
			}
		}
		switch {
		case rec.Result != nil || rec.Outcome != nil || rec.Cancel != nil:
			return nil, &quietError{fmt.Sprintf("task %q: no step of it runs: it is %s", ref, rec.State), berth.ErrConflict}
		case n > 0 && n <= len(rec.Steps) && rec.Steps[n-1].Exit != nil:
			return nil, &quietError{fmt.Sprintf("task %q: step %d has ended", ref, n), berth.ErrConflict}
		}
		if !said.IsZero() && time.Now().After(said) {
			said = time.Time{}
			a.say("waiting until task %q runs: it is %s", ref, rec.State)
		}
		if err := sleep(ctx, startPoll); err != nil {
			return nil, err
		}
	}
}

const (
	silence   = 2 * time.Second // is long for who gets no word
	startPoll = 20 * time.Millisecond
)

func steps(n int) string {
	if n == 1 {
		return "one step"
	}
	return fmt.Sprintf("%d steps", n)
}
