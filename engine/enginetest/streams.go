package enginetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/berth-project/berth"
)

// streams are the checks of what a container writes and reads.
func streams() []Check {
	return []Check{
		check("output apart", outputApart),
		check("output to the byte", outputBytes),
		check("output through /dev", outputThroughDev),
		check("output through /dev of another user", outputThroughDevOfUser, Users),
		check("output at full speed", outputAtFullSpeed),
		check("output is complete at the end", outputComplete),
		check("output stays apart between containers", outputOfTwo),
		check("logs follow", logsFollow),
		check("logs tail", logsTail),
		check("logs from an offset", logsOffset),
		check("logs since a time", logsSince),
		check("logs are bounded", logsBounded),
		check("logs wait for their readers", logsHeld),
		check("logs wait for no reader that fails", logsLetGo),
		check("logs outlive the container", logsOutlive),
		check("logs of a command that never started", logsOfNone),
		check("logs of a flood", func(t *trial) error { return logsOfFlood(t, false) }),
		check("logs of a flood that are held", func(t *trial) error { return logsOfFlood(t, true) }),
		check("standard input is empty", stdinEmpty),
		check("standard input is fed", stdinFed),
		check("standard streams in files", streamFiles),
		check("terminal", terminal, Terminals),
		check("interrupt from the terminal", terminalInterrupt, Terminals, Inits),
	}
}

func outputApart(t *trial) error {
	o, err := t.sh("echo foo; echo -n bar >&2; echo baz; echo waz >&2")
	if err != nil {
		return err
	}
	return errors.Join(o.exited(0), same("standard output", o.Out, "foo\nbaz\n"), same("standard error", o.Err, "barwaz\n"))
}

func outputBytes(t *trial) error {
	var all []byte
	var script strings.Builder
	script.WriteString("printf '")
	for i := range 256 {
		all = append(all, byte(i))
		fmt.Fprintf(&script, `\%03o`, i)
	}
	script.WriteString("'")
	o, err := t.sh(script.String())
	if err != nil {
		return err
	}
	return o.wrote(string(all))
}

// thrice writes three lines; to a file as standard error, the second would truncate it.
const thrice = "echo first >&2; echo second >/dev/stderr; echo third >&2; echo one; echo two >/dev/stdout; echo three >/proc/self/fd/1"

func outputThroughDev(t *trial) error {
	o, err := t.sh(thrice)
	if err != nil {
		return err
	}
	return errors.Join(o.exited(0), same("standard error", o.Err, "first\nsecond\nthird\n"), same("standard output", o.Out, "one\ntwo\nthree\n"))
}

func outputThroughDevOfUser(t *trial) error {
	o, err := t.sh(thrice, step(func(s *berth.StepSpec) { s.User = "1000:1000" }))
	if err != nil {
		return err
	}
	return errors.Join(o.exited(0), same("standard error", o.Err, "first\nsecond\nthird\n"), same("standard output", o.Out, "one\ntwo\nthree\n"))
}

// numbered is what `seq last` writes.
func numbered(last int) []byte {
	var b bytes.Buffer
	for i := 1; i <= last; i++ {
		fmt.Fprintln(&b, i)
	}
	return b.Bytes()
}

func outputAtFullSpeed(t *trial) error {
	const lines = 300_000 // 2 MB on each stream, more than all pipes between hold; daemons take each line by itself
	o, err := t.sh(fmt.Sprintf("seq 1 %d & seq 1 %d >&2; wait", lines, lines))
	if err != nil {
		return err
	}
	want := numbered(lines)
	for name, got := range map[string]string{"standard output": o.Out, "standard error": o.Err} {
		if sha256.Sum256([]byte(got)) != sha256.Sum256(want) {
			return fmt.Errorf("%s: %d bytes, which are not the %d that were written (%s)", name, len(got), len(want), firstDifference([]byte(got), want))
		}
	}
	return o.exited(0)
}

func firstDifference(a, b []byte) string {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return fmt.Sprintf("they differ at byte %d: %s, want %s", i, quoted(string(a[i:min(i+40, len(a))])), quoted(string(b[i:min(i+40, len(b))])))
		}
	}
	return "one is the beginning of the other"
}

// outputComplete: when Wait answers, nothing is still on its way.
func outputComplete(t *trial) error {
	want := numbered(20000)
	for range 6 {
		o, err := t.sh("seq 1 20000")
		if err != nil {
			return err
		}
		if o.Out != string(want) {
			return fmt.Errorf("at the end %d bytes of %d were there", len(o.Out), len(want))
		}
	}
	return nil
}

func outputOfTwo(t *trial) error {
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	var cs []berth.Container
	for _, name := range []string{"a", "b", "c"} {
		c, err := s.Start(t.ctx, t.script("for i in 1 2 3 4 5 6 7 8 9; do echo "+name+"; sleep 0.01; done"))
		if err != nil {
			return err
		}
		cs = append(cs, c)
	}
	for i, name := range []string{"a", "b", "c"} {
		o, err := t.end(cs[i])
		if err != nil {
			return err
		}
		if err := o.wrote(strings.Repeat(name+"\n", 9)); err != nil {
			return fmt.Errorf("container %s of three: %w", name, err)
		}
	}
	return nil
}

func logsFollow(t *trial) error {
	_, c, err := t.start("echo ready; while ! [ -e /vol/go ]; do sleep 0.02; done; echo end; exit 3", shared)
	if err != nil {
		return err
	}
	r, err := c.(berth.LogReader).Logs(t.ctx, berth.LogOptions{Follow: true})
	if err != nil {
		return err
	}
	defer r.Close()
	b := make([]byte, 6)
	if _, err := io.ReadFull(r, b); err != nil || string(b) != "ready\n" {
		return fmt.Errorf("while it runs, followed logs are %q, error %w", b, orNone(err))
	}
	s := t.open[0]
	if _, err := t.in(s, "touch /vol/go"); err != nil {
		return err
	}
	rest, err := io.ReadAll(r) // ends with the container
	if err != nil || string(rest) != "end\n" {
		return fmt.Errorf("the rest of followed logs is %q, error %w", rest, orNone(err))
	}
	return nil
}

func logsTail(t *trial) error {
	_, c, err := t.start("seq 1 1000; echo -n unfinished")
	if err != nil {
		return err
	}
	if _, err := c.Wait(t.ctx); err != nil {
		return err
	}
	var errs []error
	for _, row := range []struct {
		tail int
		want string
	}{
		{0, string(numbered(1000)) + "unfinished"},
		{1, "unfinished"},
		{3, "999\n1000\nunfinished"},
		{5000, string(numbered(1000)) + "unfinished"},
		{-1, ""},
	} {
		got, err := t.logs(c, berth.LogOptions{Tail: row.tail})
		errs = append(errs, err, same(fmt.Sprintf("the last %d lines", row.tail), quoted(got), quoted(row.want)))
	}
	got, err := t.logs(c, berth.LogOptions{Tail: 2, Follow: true})
	return errors.Join(append(errs, err, same("the last 2 lines, followed", quoted(got), quoted("1000\nunfinished")))...)
}

func logsOffset(t *trial) error {
	_, c, err := t.start("echo 0123456789")
	if err != nil {
		return err
	}
	if _, err := c.Wait(t.ctx); err != nil {
		return err
	}
	var errs []error
	for offset, want := range map[int64]string{0: "0123456789\n", 4: "456789\n", 10: "\n", 11: "", 100: ""} {
		got, err := t.logs(c, berth.LogOptions{Offset: offset})
		errs = append(errs, err, same(fmt.Sprintf("from byte %d on", offset), quoted(got), quoted(want)))
	}
	return errors.Join(errs...)
}

func logsSince(t *trial) error {
	_, c, err := t.start("echo early; echo ready; while ! [ -e /vol/go ]; do sleep 0.02; done; echo late", shared)
	if err != nil {
		return err
	}
	if err := t.ready(c); err != nil {
		return err
	}
	time.Sleep(1100 * time.Millisecond) // engines may keep times by the second
	since := time.Now()
	time.Sleep(50 * time.Millisecond)
	if _, err := t.in(t.open[0], "touch /vol/go"); err != nil {
		return err
	}
	if _, err := c.Wait(t.ctx); err != nil {
		return err
	}
	got, err := t.logs(c, berth.LogOptions{Since: since})
	return errors.Join(err, same("since a time between", quoted(got), quoted("late\n")))
}

func logsBounded(t *trial) error {
	const limit = 256 << 10
	dir, err := os.MkdirTemp(t.env.Dir, "logs")
	if err != nil {
		return err
	}
	const lines = 300_000 // eight times the limit
	_, c, err := t.start(fmt.Sprintf("seq 1 %d; echo last", lines), step(func(s *berth.StepSpec) { s.LogDir, s.LogLimit = dir, limit }))
	if err != nil {
		return err
	}
	if _, err := c.Wait(t.ctx); err != nil {
		return err
	}
	got, err := t.logs(c, berth.LogOptions{Tail: 3})
	if err := errors.Join(err, same("the end of bounded logs", quoted(got), quoted("299999\n300000\nlast\n"))); err != nil {
		return err
	}
	whole := append(numbered(lines), "last\n"...)
	got, err = t.logs(c, berth.LogOptions{Offset: int64(len(whole)) - 1000})
	if err := errors.Join(err, same("bounded logs from an offset", quoted(got), quoted(string(whole[len(whole)-1000:])))); err != nil {
		return err
	}
	used, err := diskUsed(filepath.Join(dir, "stdout"))
	if err != nil {
		return fmt.Errorf("LogDir: %w", err)
	}
	if used > 4*limit {
		return fmt.Errorf("logs bounded to %d bytes take %d on disk", limit, used)
	}
	return nil
}

// logsHeld: of a step whose readers are announced nothing is dropped before they come, however late.
func logsHeld(t *trial) error {
	const size = 5_000_000 // in no lines: daemons take each line by itself
	_, c, err := t.start(fmt.Sprintf("head -c %d /dev/zero; head -c %[1]d /dev/zero >&2", size), sandbox(func(s *berth.SandboxSpec) { s.Bound = true }),
		step(func(s *berth.StepSpec) { s.LogLimit, s.Hold = 256<<10, true }))
	if err != nil {
		return err
	}
	time.Sleep(time.Second) // it is a whole log ahead by then; where it is not, nothing is found
	var errs [2]error
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			r, err := c.(berth.LogReader).Logs(t.ctx, berth.LogOptions{Follow: true, Hold: true, Stderr: i == 1})
			if err != nil {
				errs[i] = err
				return
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			if err == nil && !bytes.Equal(got, make([]byte, size)) {
				err = fmt.Errorf("of the %d bytes of a step whose reader was announced %d came, or others", size, len(got))
			}
			errs[i] = err
		})
	}
	wg.Wait()
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	e, err := c.Wait(t.ctx)
	if err == nil && !e.OK() {
		err = fmt.Errorf("it ended with %s", outcome{Exit: e})
	}
	return err
}

// logsLetGo: a reader that was announced, and that cannot read the log, holds the container up no longer.
func logsLetGo(t *trial) error {
	dir := filepath.Join(t.env.Dir, berth.NewID())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	_, c, err := t.start("head -c 5000000 /dev/zero", sandbox(func(s *berth.SandboxSpec) { s.Bound = true }),
		step(func(s *berth.StepSpec) { s.LogDir, s.LogLimit, s.Hold = dir, 256<<10, true }))
	if err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(dir, "stdout"), filepath.Join(dir, "away")); err != nil {
		return fmt.Errorf("LogDir: %w", err)
	}
	if r, err := c.(berth.LogReader).Logs(t.ctx, berth.LogOptions{Follow: true, Hold: true}); err == nil {
		_ = r.Close()
	}
	ctx, cancel := context.WithTimeoutCause(t.ctx, 20*time.Second, errors.New("it waits for a reader that could not read"))
	defer cancel()
	e, err := c.Wait(ctx)
	if err == nil && !e.OK() {
		err = fmt.Errorf("it ended with %s", outcome{Exit: e})
	}
	return err
}

func logsOutlive(t *trial) error {
	dir, err := os.MkdirTemp(t.env.Dir, "logs")
	if err != nil {
		return err
	}
	s, c, err := t.start("echo out; echo err >&2", step(func(s *berth.StepSpec) { s.LogDir = dir }))
	if err != nil {
		return err
	}
	if _, err := c.Wait(t.ctx); err != nil {
		return err
	}
	if err := errors.Join(c.Remove(t.ctx), s.Close(t.ctx)); err != nil {
		return err
	}
	out, err := os.ReadFile(filepath.Join(dir, "stdout"))
	errs := []error{err, same("stdout in LogDir", string(out), "out\n")}
	out, err = os.ReadFile(filepath.Join(dir, "stderr"))
	return errors.Join(append(errs, err, same("stderr in LogDir", string(out), "err\n"))...)
}

// logsOfNone: they end, also for who follows them.
func logsOfNone(t *trial) error {
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	spec := t.script("")
	spec.Command = []string{"/no/such/command"}
	c, err := s.Start(t.ctx, spec)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(t.ctx, patience, errors.New("logs of a command that never started do not end"))
	defer cancel()
	var errs []error
	for _, stderr := range []bool{false, true} {
		r, err := c.(berth.LogReader).Logs(ctx, berth.LogOptions{Follow: true, Stderr: stderr})
		if err != nil {
			return fmt.Errorf("logs: %w", err)
		}
		b, err := io.ReadAll(r)
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if !stderr { // there, an engine's init may say why
			errs = append(errs, same("what it wrote", string(b), ""))
		}
		errs = append(errs, err, r.Close())
	}
	return errors.Join(errs...)
}

// logsOfFlood: a follower that does not read keeps nobody from stopping a container that writes far more than its
// logs may hold. When the check's context ends, so does a stop that hangs.
func logsOfFlood(t *trial, hold bool) error {
	line := strings.Repeat("y", 63) // and no shorter: daemons take each line by itself
	_, c, err := t.start(fmt.Sprintf("yes %s | head -c 20000000 & yes %[1]s | head -c 20000000 >&2; wait; exec sleep 1000", line), step(func(s *berth.StepSpec) { s.LogLimit = 256 << 10 }))
	if err != nil {
		return err
	}
	r, err := c.(berth.LogReader).Logs(t.ctx, berth.LogOptions{Follow: true, Hold: hold})
	if err != nil {
		return fmt.Errorf("logs: %w", err)
	}
	defer r.Close()
	if _, err := io.ReadFull(r, make([]byte, 2)); err != nil {
		return fmt.Errorf("a byte of the flood: %w", err)
	}
	if hold {
		time.Sleep(2 * time.Second) // until all that lies between is full
	}
	if err := c.Stop(t.ctx, 0); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	e, err := c.Wait(t.ctx)
	if err != nil {
		return fmt.Errorf("wait: %w", err)
	}
	if e.Reason != berth.Stopped {
		return fmt.Errorf("stopped, it ended with %s", outcome{Exit: e})
	}
	if strings.Contains(e.Detail, "did not") {
		return fmt.Errorf("its output was given up: %s", e.Detail)
	}
	tail, err := t.logs(c, berth.LogOptions{Tail: 5})
	if err != nil {
		return err
	}
	// The last line may be cut off: the write was.
	if lines := strings.Split(strings.TrimSuffix(tail, "\n"), "\n"); len(lines) != 5 || lines[0] != line || lines[3] != line {
		return fmt.Errorf("the end of the flood reads %s", quoted(tail))
	}
	return nil
}

func stdinEmpty(t *trial) error {
	o, err := t.sh("cat; echo end")
	if err != nil {
		return err
	}
	return o.wrote("end\n")
}

func stdinFed(t *trial) error {
	_, c, err := t.start("cat; echo end", step(func(s *berth.StepSpec) { s.OpenStdin = true }))
	if err != nil {
		return err
	}
	in, ok := c.(berth.StdinWriter)
	if !ok {
		return errors.New("the container is no berth.StdinWriter")
	}
	w, err := in.Stdin(t.ctx)
	if err != nil {
		return fmt.Errorf("stdin: %w", err)
	}
	if _, err := io.WriteString(w, "one\n"); err != nil {
		return err
	}
	if err := t.until(c, "cat has echoed a line", func(out string) bool { return out == "one\n" }); err != nil {
		return err
	}
	if _, err := w.Write(numbered(100000)); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	o, err := t.end(c)
	if err != nil {
		return err
	}
	return o.wrote("one\n" + string(numbered(100000)) + "end\n")
}

func streamFiles(t *trial) error {
	s, err := t.sandbox(shared)
	if err != nil {
		return err
	}
	if _, err := t.in(s, "echo input >/vol/in; echo an older and longer content >/vol/out"); err != nil {
		return err
	}
	o, err := t.in(s, "cat; echo err >&2", step(func(s *berth.StepSpec) { s.Stdin, s.Stdout, s.Stderr = "/vol/in", "/vol/out", "/vol/err" }))
	if err != nil {
		return err
	}
	if err := errors.Join(o.exited(0), same("standard output", o.Out, "input\n"), same("standard error", o.Err, "err\n")); err != nil {
		return err
	}
	if o, err = t.in(s, "cat /vol/out /vol/err"); err != nil {
		return err
	}
	return o.wrote("input\nerr\n")
}

func terminal(t *trial) error {
	// Podman's conmon sets a size some time after the service has answered.
	_, c, err := t.start(`[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo tty; echo err >&2; echo ready; read x; echo "got $x"
		i=0; until [ "$(stty size 2>&1)" = "33 77" ] || [ $i = 100 ]; do i=$((i+1)); sleep 0.1; done; stty size`,
		step(func(s *berth.StepSpec) { s.TTY, s.OpenStdin = true, true }))
	if err != nil {
		return err
	}
	r, ok := c.(berth.Terminal)
	if !ok {
		return errors.New("the container is no berth.Terminal")
	}
	if err := t.until(c, "the script is ready", func(out string) bool { return strings.Contains(out, "ready") }); err != nil {
		return err
	}
	if err := r.Resize(t.ctx, 33, 77); err != nil {
		return fmt.Errorf("resize: %w", err)
	}
	w, err := c.(berth.StdinWriter).Stdin(t.ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.WriteString(w, "hello\n"); err != nil {
		return err
	}
	o, err := t.end(c)
	if err != nil {
		return err
	}
	out := strings.ReplaceAll(o.Out, "\r\n", "\n")
	// A terminal echoes what is typed.
	return errors.Join(o.exited(0), same("the terminal's output", quoted(out), quoted("tty\nerr\nready\nhello\ngot hello\n33 77\n")), same("standard error", o.Err, ""))
}

func terminalInterrupt(t *trial) error {
	_, c, err := t.start("trap 'echo interrupted; exit 9' INT; echo ready; "+loop, step(func(s *berth.StepSpec) { s.TTY, s.OpenStdin = true, true }))
	if err != nil {
		return err
	}
	if err := t.until(c, "the script is ready", func(out string) bool { return strings.Contains(out, "ready") }); err != nil {
		return err
	}
	w, err := c.(berth.StdinWriter).Stdin(t.ctx)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := io.WriteString(w, "\x03"); err != nil {
		return err
	}
	o, err := t.end(c)
	if err != nil {
		return err
	}
	if err := o.exited(9); err != nil {
		return err
	}
	if !strings.Contains(o.Out, "interrupted") {
		return fmt.Errorf("after ^C it wrote %s", quoted(o.Out))
	}
	return nil
}
