package enginetest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berth-project/berth"
)

// ends are the checks of how a container ends and what is said of it.
func ends() []Check {
	return []Check{
		check("exit codes", exitCodes),
		check("end by signal", endBySignal, Inits),
		check("command not there", commandNotThere),
		check("command cannot be run", commandCannotBeRun),
		check("times of the exit", exitTimes),
		check("wait again", waitAgain),
		check("wait ends with its context", waitEndsWithContext),
		check("many waits", manyWaits),
		check("stop", stop),
		check("stop kills after the grace", stopKills),
		check("stop without grace", stopAtOnce),
		check("stop ends everything", stopEndsEverything),
		check("stop while it is waited for", stopWhileWaited),
		check("the end of the command is the end", endOfCommand),
		check("stop of an ended container", stopEnded),
		check("stop signal", stopSignal),
		check("signal", signal, Inits),
		check("timeout", timeout),
		check("timeout with grace", timeoutWithGrace),
	}
}

func exitCodes(t *trial) error {
	var errs []error
	for _, code := range []int{0, 1, 3, 125, 126, 127, 128, 130, 137, 255} {
		o, err := t.sh(fmt.Sprintf("exit %d", code))
		if err == nil {
			err = o.exited(code)
		}
		if err == nil && o.OK() != (code == 0) {
			err = fmt.Errorf("exit code %d: OK says %v", code, o.OK())
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// endBySignal needs an init: the kernel does not let pid 1 kill itself.
func endBySignal(t *trial) error {
	var errs []error
	for _, sig := range []int{1, 9, 15, 11} {
		o, err := t.sh(fmt.Sprintf("kill -%d $$; sleep 10", sig))
		if err == nil && (o.Reason != berth.Signaled || o.Signal != sig || o.Code != 128+sig) {
			err = fmt.Errorf("killed by signal %d: ended with %s; want Signaled, code %d, signal %d", sig, o, 128+sig, sig)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// commands starts commands that cannot be executed.
func commands(t *trial, code int, commands ...[]string) error {
	var errs []error
	for _, c := range commands {
		s, err := t.sandbox()
		if err != nil {
			return err
		}
		spec := t.script("")
		spec.Command = c
		container, err := s.Start(t.ctx, spec)
		if err != nil {
			errs = append(errs, fmt.Errorf("start %q: %w; want no error, and NeverStarted from Wait", c, err))
			continue
		}
		o, err := t.end(container)
		if err == nil && (o.Reason != berth.NeverStarted || o.Code != code || o.Detail == "" || o.Out != "") {
			err = fmt.Errorf("%q: ended with %s; want NeverStarted, code %d, a detail and no output", c, o, code)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func commandNotThere(t *trial) error {
	return commands(t, 127, []string{"/no/such/command"}, []string{"no-such-command"}, []string{"./relative"})
}

func commandCannotBeRun(t *trial) error {
	return commands(t, 126, []string{"/etc"}, []string{"/etc/passwd"}, []string{"/etc/passwd/x"})
}

func exitTimes(t *trial) error {
	before := time.Now()
	o, err := t.sh("sleep 1")
	if err != nil {
		return err
	}
	after := time.Now()
	const drift = 50 * time.Millisecond // a clock of another machine is the engine's to correct
	switch took := o.Ended.Sub(o.Started); {
	case o.Started.Before(before.Add(-drift)) || o.Ended.After(after.Add(drift)):
		return fmt.Errorf("started %v, ended %v; want both between %v and %v", o.Started, o.Ended, before, after)
	case took < 500*time.Millisecond: // a busy daemon notices late that the command was started
		return fmt.Errorf("a command of 1 s ran for %v", took)
	case o.Runtime == "":
		return errors.New("the exit does not say what started the container")
	}
	return nil
}

func waitAgain(t *trial) error {
	s, c, err := t.start("exit 3")
	if err != nil {
		return err
	}
	first, err := c.Wait(t.ctx)
	if err != nil {
		return err
	}
	second, err := c.Wait(t.ctx)
	if err != nil {
		return fmt.Errorf("second wait: %w", err)
	}
	again, err := s.Container(t.ctx, c.ID())
	if err != nil {
		return fmt.Errorf("find the ended container: %w", err)
	}
	third, err := again.Wait(t.ctx)
	if err != nil {
		return fmt.Errorf("wait for the container found again: %w", err)
	}
	for _, e := range []berth.Exit{first, second, third} {
		if e.Reason != berth.Exited || e.Code != 3 || !e.Started.Equal(first.Started) || !e.Ended.Equal(first.Ended) {
			return fmt.Errorf("one wait answers %+v, another %+v", first, e)
		}
	}
	return nil
}

func waitEndsWithContext(t *trial) error {
	_, c, err := t.start("sleep 2; exit 4")
	if err != nil {
		return err
	}
	cause := errors.New("the check's own cause")
	ctx, cancel := context.WithTimeoutCause(t.ctx, 50*time.Millisecond, cause)
	defer cancel()
	if e, err := c.Wait(ctx); !errors.Is(err, cause) {
		return fmt.Errorf("a wait that ended early: %+v, error %w; want the context's cause", e, orNone(err))
	}
	o, err := t.end(c)
	if err != nil {
		return err
	}
	return o.exited(4) // the container went on
}

func manyWaits(t *trial) error {
	_, c, err := t.start("sleep 0.2; exit 5")
	if err != nil {
		return err
	}
	answers := make(chan error)
	for range 20 {
		go func() {
			e, err := c.Wait(t.ctx)
			if err == nil {
				err = outcome{Exit: e}.exited(5)
			}
			answers <- err
		}()
	}
	var errs []error
	for range 20 {
		errs = append(errs, <-answers)
	}
	return errors.Join(errs...)
}

// now is a context for what must be answered without waiting.
func (t *trial) now() (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(t.ctx, time.Second, errors.New("the container had not ended yet"))
}

// stopped stops a container and returns its end, which must be there at once.
func (t *trial) stopped(c berth.Container, grace time.Duration) (outcome, error) {
	if err := c.Stop(t.ctx, grace); err != nil {
		return outcome{}, fmt.Errorf("stop: %w", err)
	}
	ctx, cancel := t.now()
	defer cancel()
	if _, err := c.Wait(ctx); err != nil {
		return outcome{}, fmt.Errorf("wait after stop: %w", err)
	}
	return t.end(c)
}

const loop = "while :; do sleep 0.02; done"

func stop(t *trial) error {
	_, c, err := t.start(`trap 'echo term; sleep 0.3; echo done; exit 7' TERM; echo ready; ` + loop)
	if err != nil {
		return err
	}
	if err := t.ready(c); err != nil {
		return err
	}
	o, err := t.stopped(c, patience)
	if err != nil {
		return err
	}
	if o.Reason != berth.Stopped || o.Code != 7 || o.Out != "ready\nterm\ndone\n" {
		return fmt.Errorf("stopped, it ended with %s; want Canceled, code 7, and all that it wrote", o)
	}
	return nil
}

func stopKills(t *trial) error {
	_, c, err := t.start(`trap 'echo term' TERM; echo ready; ` + loop)
	if err != nil {
		return err
	}
	if err := t.ready(c); err != nil {
		return err
	}
	const grace = 400 * time.Millisecond
	start := time.Now()
	o, err := t.stopped(c, grace)
	if err != nil {
		return err
	}
	if took := time.Since(start); took < grace || took > grace+patience {
		return fmt.Errorf("stop with a grace of %v took %v", grace, took)
	}
	if o.Reason != berth.Stopped || o.Code != 137 || o.Signal != 9 || o.Out != "ready\nterm\n" {
		return fmt.Errorf("a command that ignores TERM ended with %s; want Canceled, code 137, signal 9, and the output of its trap", o)
	}
	return nil
}

func stopAtOnce(t *trial) error {
	_, c, err := t.start(`trap 'echo term' TERM; echo ready; ` + loop)
	if err != nil {
		return err
	}
	if err := t.ready(c); err != nil {
		return err
	}
	o, err := t.stopped(c, 0)
	if err != nil {
		return err
	}
	if o.Reason != berth.Stopped || o.Code != 137 || o.Signal != 9 || o.Out != "ready\n" {
		return fmt.Errorf("stopped with no grace, it ended with %s; want Canceled, code 137, signal 9, and no TERM before", o)
	}
	return nil
}

// stopWhileWaited: who waits is told of the end, not of an error.
func stopWhileWaited(t *trial) error {
	_, c, err := t.start("exec sleep 1000")
	if err != nil {
		return err
	}
	type answer struct {
		berth.Exit
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		e, err := c.Wait(t.ctx)
		answers <- answer{e, err}
	}()
	select { // to have it wait
	case a := <-answers:
		return fmt.Errorf("before it was stopped, the wait answered %+v, error %w", a.Exit, orNone(a.err))
	case <-time.After(100 * time.Millisecond):
	}
	if err := c.Stop(t.ctx, 0); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	select {
	case a := <-answers:
		if a.err != nil || a.Reason != berth.Stopped || a.Code == 0 {
			return fmt.Errorf("the wait answered %+v, error %w; want Stopped, a code that is not 0, and no error", a.Exit, orNone(a.err))
		}
	case <-time.After(patience):
		return errors.New("the wait goes on after the container was stopped")
	}
	o, err := t.end(c)
	return errors.Join(err, same("its output", o.Out+o.Err, ""))
}

// endOfCommand: what a command leaves behind ends with it, also what left its session and holds its output open.
func endOfCommand(t *trial) error {
	s, err := t.sandbox(shared)
	if err != nil {
		return err
	}
	// What an engine leaves running ends by itself, after longer than the check waits.
	const left = `setsid sh -c 'trap "" TERM HUP; for i in $(seq 250); do echo x >>/vol/alive || exit; sleep 0.1; done' &
		while ! [ -s /vol/alive ]; do sleep 0.02; done; echo out; echo err >&2; exit 3`
	var errs []error
	for _, noInit := range []bool{false, true} {
		start := time.Now()
		o, err := t.in(s, "rm -f /vol/alive; "+left, step(func(s *berth.StepSpec) { s.NoInit = noInit }))
		if err != nil {
			return err
		}
		errs = append(errs, o.exited(3), same("the detail of its end", o.Detail, ""), same("standard output", o.Out, "out\n"), same("standard error", o.Err, "err\n"))
		if took := time.Since(start); took > patience {
			errs = append(errs, fmt.Errorf("a command that left a process behind ended after %v, as if that were waited for", took))
		}
		errs = append(errs, t.still(s))
	}
	return errors.Join(errs...)
}

// still returns an error if something in a sandbox goes on to write to /vol/alive.
func (t *trial) still(s berth.Sandbox) error {
	o, err := t.in(s, `a=$(wc -c </vol/alive); sleep 0.3; b=$(wc -c </vol/alive); [ $a = $b ] && echo still || echo $a $b`)
	if err != nil {
		return err
	}
	return o.wrote("still\n")
}

// stopEndsEverything: a process that left the command's session and ignores TERM does not go on.
func stopEndsEverything(t *trial) error {
	s, c, err := t.start(`setsid sh -c "trap '' TERM HUP; while :; do echo x >>/vol/alive; sleep 0.02; done" >/dev/null 2>&1 &
		while ! [ -s /vol/alive ]; do sleep 0.02; done; echo ready; exec sleep 1000`, shared)
	if err != nil {
		return err
	}
	if err := t.ready(c); err != nil {
		return err
	}
	if _, err := t.stopped(c, 100*time.Millisecond); err != nil {
		return err
	}
	return t.still(s)
}

func stopEnded(t *trial) error {
	_, c, err := t.start("exit 3")
	if err != nil {
		return err
	}
	if _, err := c.Wait(t.ctx); err != nil {
		return err
	}
	for range 2 {
		o, err := t.stopped(c, time.Second)
		if err != nil {
			return err
		}
		if err := o.exited(3); err != nil {
			return err
		}
	}
	return nil
}

func stopSignal(t *trial) error {
	var errs []error
	for name, number := range map[string]int{"USR1": 10, "SIGRTMIN+3": 37, "RTMIN+20": 54} { // the second is that of systemd, the third has no name in Docker
		_, c, err := t.start(fmt.Sprintf(`trap 'echo its own; exit 8' %d; trap 'echo term; exit 9' TERM; echo ready; `+loop, number), step(func(s *berth.StepSpec) { s.StopSignal = name }))
		if err != nil {
			return err
		}
		if err := t.ready(c); err != nil {
			return err
		}
		o, err := t.stopped(c, patience)
		if err != nil {
			return err
		}
		if o.Reason != berth.Stopped || o.Code != 8 || o.Out != "ready\nits own\n" {
			errs = append(errs, fmt.Errorf("with the stop signal %s it ended with %s; want Canceled, code 8", name, o))
		}
	}
	return errors.Join(errs...)
}

func signal(t *trial) error {
	_, c, err := t.start(`trap 'echo usr2' USR2; trap 'exit 6' HUP; echo ready; ` + loop)
	if err != nil {
		return err
	}
	s, ok := c.(berth.Signaler)
	if !ok {
		return errors.New("the container is no berth.Signaler")
	}
	if err := t.ready(c); err != nil {
		return err
	}
	if err := s.Signal(t.ctx, usr2); err != nil {
		return fmt.Errorf("signal: %w", err)
	}
	if err := t.until(c, "the script got USR2", func(out string) bool { return out == "ready\nusr2\n" }); err != nil {
		return err
	}
	if err := s.Signal(t.ctx, hup); err != nil {
		return fmt.Errorf("signal: %w", err)
	}
	o, err := t.end(c)
	if err != nil {
		return err
	}
	return errors.Join(o.exited(6), kind("signal to an ended container", s.Signal(t.ctx, hup), berth.ErrConflict))
}

// shellTime is ample for a shell to begin, in which it sets its traps.
const shellTime = 2 * time.Second

func timeout(t *trial) error {
	start := time.Now()
	o, err := t.sh(`trap 'echo term' TERM; echo ready; `+loop, step(func(s *berth.StepSpec) { s.Timeout = shellTime }))
	if err != nil {
		return err
	}
	if took := time.Since(start); took < shellTime || took > patience {
		return fmt.Errorf("a limit of %v took %v", shellTime, took)
	}
	if o.Reason != berth.TimedOut || o.Detail == "" || o.Out != "ready\n" || o.OK() {
		return fmt.Errorf("over its time limit it ended with %s; want TimedOut, and a detail", o)
	}
	return nil
}

func timeoutWithGrace(t *trial) error {
	o, err := t.sh(`trap 'echo term; exit 0' TERM; echo ready; `+loop, step(func(s *berth.StepSpec) {
		s.Timeout, s.Grace = shellTime, patience
	}))
	if err != nil {
		return err
	}
	if o.Reason != berth.TimedOut || o.Out != "ready\nterm\n" {
		return fmt.Errorf("over its time limit, with a grace, it ended with %s; want TimedOut, after its trap", o)
	}
	return nil
}
