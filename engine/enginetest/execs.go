package enginetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth"
)

// execs are the checks of further commands in a running container.
func execs() []Check {
	return []Check{
		check("exec", execRuns, Execs),
		check("exec that ends otherwise", execEnds, Execs),
		check("exec as another user", execAs, Execs, Users),
		check("capabilities of an exec as another user", execCapabilities, Execs, Users, Isolation),
		check("exec is confined", execConfined, Execs, Isolation),
		check("exec with a terminal", execTerminal, Execs, Terminals),
		check("exec left running", execLeft, Execs, Terminals),
		check("exec in an ended container", execEnded, Execs),
	}
}

// executed is what an exec did.
type executed struct {
	berth.Exit
	Out, Err string
}

// running starts a container in which to exec.
func (t *trial) running(setups ...setup) (berth.Execer, berth.Container, error) {
	_, c, err := t.start("cd /tmp; echo ready; "+loop, setups...)
	if err != nil {
		return nil, nil, err
	}
	e, ok := c.(berth.Execer)
	if !ok {
		return nil, nil, errors.New("the container is no berth.Execer")
	}
	return e, c, t.ready(c)
}

func (t *trial) exec(e berth.Execer, spec berth.ExecSpec, in string) (executed, error) {
	var out, errs bytes.Buffer
	stdio := berth.Stdio{Out: &out, Err: &errs}
	if in != "" {
		stdio.In = strings.NewReader(in)
	}
	exit, err := e.Exec(t.ctx, spec, stdio)
	if err != nil {
		return executed{}, fmt.Errorf("exec %q: %w", spec.Command, err)
	}
	return executed{exit, out.String(), errs.String()}, nil
}

func execRuns(t *trial) error {
	e, c, err := t.running(step(func(s *berth.StepSpec) { s.Env, s.WorkingDir = []string{"A=1", "B=2"}, "/etc" }))
	if err != nil {
		return err
	}
	sh := func(script string) berth.ExecSpec { return berth.ExecSpec{Command: []string{"sh", "-c", script}} }
	var errs []error
	see := func(spec berth.ExecSpec, in string, code int, out, stderr string) {
		x, err := t.exec(e, spec, in)
		if err == nil && (x.Reason != berth.Exited || x.Code != code || x.Out != out || x.Err != stderr) {
			err = fmt.Errorf("exec %q: %s, code %d, output %s, errors %s; want code %d, %s, %s", spec.Command, x.Reason, x.Code, quoted(x.Out), quoted(x.Err), code, quoted(out), quoted(stderr))
		}
		errs = append(errs, err)
	}
	see(sh("echo out; echo err >&2; exit 3"), "", 3, "out\n", "err\n")
	see(sh("cat"), "fed\n", 0, "fed\n", "")
	see(sh("cat"), "", 0, "", "")
	see(sh("echo $A $B; pwd"), "", 0, "1 2\n/etc\n", "")
	own := sh("echo $A $B; pwd")
	own.Env, own.WorkingDir = []string{"B=3"}, "/tmp"
	see(own, "", 0, "1 3\n/tmp\n", "")
	own = sh("pwd")
	own.WorkingDir = "."
	see(own, "", 0, "/etc\n", "")
	for what, wrong := range map[string]berth.ExecSpec{
		"an exec in a relative directory": {Command: []string{"pwd"}, WorkingDir: "tmp"},
		"an exec as nobody there is":      {Command: []string{"id"}, User: "nobody-here"},
	} {
		x, err := t.exec(e, wrong, "")
		errs = append(errs, kind(what, err, berth.ErrInvalid), same("output of "+what, x.Out+x.Err, ""))
	}
	see(sh("echo x >/from-exec"), "", 0, "", "")
	see(sh("cat /from-exec"), "", 0, "x\n", "")
	see(sh("seq 1 200000"), "", 0, string(numbered(200000)), "")
	o, err := t.stopped(c, 0)
	return errors.Join(append(errs, err, same("what execs wrote is not in the logs", o.Out, "ready\n"))...)
}

func execEnds(t *trial) error {
	e, _, err := t.running()
	if err != nil {
		return err
	}
	var errs []error
	for _, row := range []struct {
		command []string
		want    berth.Exit
	}{
		{[]string{"no-such-command"}, berth.Exit{Reason: berth.NeverStarted, Code: 127}},
		{[]string{"/etc/passwd"}, berth.Exit{Reason: berth.NeverStarted, Code: 126}},
		{[]string{"sh", "-c", "kill -9 $$"}, berth.Exit{Reason: berth.Signaled, Code: 137, Signal: 9}},
		{[]string{"sh", "-c", "exit 137"}, berth.Exit{Reason: berth.Exited, Code: 137}},
	} {
		x, err := t.exec(e, berth.ExecSpec{Command: row.command}, "")
		if err == nil && (x.Reason != row.want.Reason || x.Code != row.want.Code || x.Signal != row.want.Signal) {
			err = fmt.Errorf("exec %q: %s, code %d, signal %d; want %s, %d, %d", row.command, x.Reason, x.Code, x.Signal, row.want.Reason, row.want.Code, row.want.Signal)
		}
		errs = append(errs, err)
	}
	_, err = t.exec(e, berth.ExecSpec{Command: []string{"true"}, Privileged: true}, "")
	return errors.Join(append(errs, kind("a privileged exec", err, berth.ErrUnsupported))...)
}

func execAs(t *trial) error {
	e, _, err := t.running(step(func(s *berth.StepSpec) { s.User = "user" }))
	if err != nil {
		return err
	}
	var errs []error
	for user, want := range map[string]string{"": "1000:1001", "root": "0:0", "65534": "65534:65534", "7:8": "7:8"} {
		x, err := t.exec(e, berth.ExecSpec{Command: []string{"sh", "-c", "echo $(id -u):$(id -g)"}, User: user}, "")
		errs = append(errs, err, same("ids of an exec as "+user, x.Out, want+"\n"))
	}
	return errors.Join(errs...)
}

// execCapabilities: root of a container has what it may have, also where the container's own user is another.
func execCapabilities(t *trial) error {
	e, _, err := t.running(step(func(s *berth.StepSpec) { s.User = "user" }))
	if err != nil {
		return err
	}
	const script = `eff=$(grep CapEff /proc/self/status | cut -f2); case $eff in
		0000000000000000) echo none;; $(grep CapBnd /proc/self/status | cut -f2)) echo all;; *) echo $eff;; esac`
	var errs []error
	for user, want := range map[string]string{"": "none", "root": "all", "65534": "none"} {
		x, err := t.exec(e, berth.ExecSpec{Command: []string{"sh", "-c", script}, User: user}, "")
		errs = append(errs, err, same("capabilities of an exec as "+user, x.Out, want+"\n"))
	}
	return errors.Join(errs...)
}

// confinement is what confines a process, as it sees it itself.
const confinement = `grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|Uid)' /proc/self/status
	for n in pid mnt net ipc uts cgroup; do readlink /proc/self/ns/$n; done; cat /proc/self/cgroup; ulimit -n; cat /proc/self/oom_score_adj`

func execConfined(t *trial) error {
	_, own, err := t.start("while ! [ -e /tmp/go ]; do sleep 0.02; done; "+confinement, step(func(s *berth.StepSpec) { s.Ulimits = []berth.Ulimit{{Name: "nofile", Soft: 321, Hard: 321}} }))
	if err != nil {
		return err
	}
	e, ok := own.(berth.Execer)
	if !ok {
		return errors.New("the container is no berth.Execer")
	}
	x, err := t.exec(e, berth.ExecSpec{Command: []string{"sh", "-c", confinement}}, "")
	if err != nil {
		return err
	}
	fds, err := t.exec(e, berth.ExecSpec{Command: []string{"sh", "-c", "echo /proc/self/fd/*"}}, "")
	if err != nil {
		return err
	}
	if _, err := t.exec(e, berth.ExecSpec{Command: []string{"touch", "/tmp/go"}}, ""); err != nil {
		return err
	}
	o, err := t.end(own)
	if err != nil {
		return err
	}
	// The shell opens /proc/self/fd itself, as descriptor 3.
	return errors.Join(same("what confines an exec", x.Out, o.Out), same("its descriptors", strings.TrimSpace(fds.Out), "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 /proc/self/fd/3"))
}

func execTerminal(t *trial) error {
	e, _, err := t.running()
	if err != nil {
		return err
	}
	var out bytes.Buffer
	sizes := make(chan berth.Size, 1)
	sizes <- berth.Size{Rows: 21, Cols: 43}
	exit, err := e.Exec(t.ctx, berth.ExecSpec{Command: []string{"sh", "-c", `[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo tty
		for i in 1 2 3 4 5 6 7 8 9 10; do [ "$(stty size 2>/dev/null)" = "21 43" ] && break; sleep 0.1; done; stty size; echo err >&2; exit 4`}, TTY: true},
		berth.Stdio{Out: &out, Resize: sizes})
	if err != nil {
		return err
	}
	got := strings.ReplaceAll(out.String(), "\r\n", "\n")
	return errors.Join(same("exit code", exit.Code, 4), same("the terminal's output", quoted(got), quoted("tty\n21 43\nerr\n")))
}

// execLeft leaves a command at a terminal: it runs on, and what it then writes does not hold it up. One whose
// client is gone otherwise may end.
func execLeft(t *trial) error {
	e, _, err := t.running()
	if err != nil {
		return err
	}
	ctx, leave := context.WithCancelCause(t.ctx)
	defer leave(nil)
	in, typed := io.Pipe()
	defer func() { _ = typed.Close() }()
	out := &watched{want: "here", seen: make(chan struct{})}
	left := make(chan error, 1)
	go func() {
		_, err := e.Exec(ctx, berth.ExecSpec{Command: []string{"sh", "-c", "echo here; while ! [ -e /tmp/left ]; do sleep 0.02; done; dd if=/dev/zero bs=4096 count=150 2>/dev/null; echo $? >/tmp/wrote; exec sleep 1000"}, TTY: true},
			berth.Stdio{In: in, Out: out})
		left <- err
	}()
	select {
	case <-out.seen:
	case err := <-left:
		return fmt.Errorf("exec ended before it was left: %w", err)
	case <-time.After(patience):
		return errors.New("an exec wrote nothing")
	}
	leave(berth.ErrDetached)
	select {
	case err := <-left:
		if !errors.Is(err, berth.ErrDetached) {
			return fmt.Errorf("an exec that was left: error %w, want ErrDetached", err)
		}
	case <-time.After(patience):
		return errors.New("an exec does not end with its context")
	}
	x, err := t.exec(e, berth.ExecSpec{Command: []string{"sh", "-c", "touch /tmp/left; i=0; while [ $i -lt 500 ] && ! [ -s /tmp/wrote ]; do sleep 0.02; i=$((i+1)); done; cat /tmp/wrote"}}, "")
	return errors.Join(err, same("what the command that was left did", x.Out, "0\n"))
}

// watched closes seen once want was written.
type watched struct {
	want string
	seen chan struct{}
	got  bytes.Buffer
	once sync.Once
}

func (w *watched) Write(p []byte) (int, error) {
	w.got.Write(p)
	if strings.Contains(w.got.String(), w.want) {
		w.once.Do(func() { close(w.seen) })
	}
	return len(p), nil
}

func execEnded(t *trial) error {
	e, c, err := t.running()
	if err != nil {
		return err
	}
	// What still runs in the container ends with it.
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = t.exec(e, berth.ExecSpec{Command: []string{"sleep", "1000"}}, "") // how it ends is the engine's to choose
	}()
	time.Sleep(100 * time.Millisecond)
	if _, err := t.stopped(c, 0); err != nil {
		return err
	}
	select {
	case <-done:
	case <-time.After(patience):
		return errors.New("an exec goes on after its container has ended")
	}
	_, err = t.exec(e, berth.ExecSpec{Command: []string{"true"}}, "")
	return kind("exec in an ended container", err, berth.ErrConflict)
}
