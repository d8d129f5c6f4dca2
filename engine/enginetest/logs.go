package enginetest

import (
	"bytes"
	"context"
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
