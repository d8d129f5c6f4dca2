package enginetest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"

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
