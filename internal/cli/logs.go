package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/logfile"
	"github.com/berth-project/berth/runner"
)

type logsOptions struct {
	follow, timestamps bool
	tail               string
	since              string
	offset, step       int64
	stream             string
}

func (a *app) logsCommand() *cobra.Command {
	o := &logsOptions{}
	cmd := &cobra.Command{
		Use:   "logs [flags] TASK",
		Short: "Print what a task wrote",
		Long: `Print what the steps of a task wrote, in their order: standard output to standard output, standard error to
standard error, exact to the byte. Of each stream of a step the last 64 MiB are kept (at times up to 72 MiB): what was
dropped before is told on standard error. What berth run shows in the foreground is whole, and so is what --stdout and
--stderr of berth run write to files, however much it is; a file that a full disk has cut short is no success
(SYSTEM_ERROR, which says where it ends). On Docker, the output of a task whose berth was killed, or whose daemon is
reached by TLS or SSH, goes by the daemon's log, which keeps 128 MiB of a container: a Docker before 23 reads that
more slowly than it writes it, and of a flood that is ahead by more than that some is missing, of which the exit tells.`,
		Example: `  berth logs -f align
  berth logs --tail 20 --stream stderr align`,
		Args: argCount(1, 1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.logs(cmd.Context(), o, args[0]) },
	}
	flags := cmd.Flags()
	flags.BoolVarP(&o.follow, "follow", "f", false, "go on until the task has ended")
	o.tail = "all"
	flags.StringVarP(&o.tail, "tail", "n", o.tail, "only the last `N` lines of each stream of each step")
	flags.StringVar(&o.since, "since", "", "only what was written since `T`: a time, as in 2026-01-02T15:04:05Z, or a duration before now, as in 10m")
	flags.Var(intValue{&o.offset, 0}, "offset", "begin at this byte of each stream of each step")
	flags.BoolVarP(&o.timestamps, "timestamps", "t", false, "begin each line with the time at which it was written")
	flags.Var(intValue{&o.step, 1}, "step", "only this step, from 1")
	o.stream = "both"
	flags.Var(choiceValue{&o.stream, []string{"both", "stdout", "stderr"}}, "stream", "only this stream")
	return cmd
}

// from reads --tail, --since and --offset.
func (o *logsOptions) from(now time.Time) (logfile.From, error) {
	from := logfile.From{Offset: o.offset}
	if o.tail != "all" {
		var n int64
		if err := (intValue{&n, 0}).Set(o.tail); err != nil {
			return from, invalid("logs: --tail: %v", err)
		}
		if from.Tail = int(n); n == 0 {
			from.Tail = -1
		}
	}
	if o.since == "" {
		return from, nil
	}
	if d, err := berth.ParseDuration(o.since); err == nil {
		from.Since = now.Add(-d)
		return from, nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02 15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, o.since, time.Local); err == nil {
			from.Since = t
			return from, nil
		}
	}
	return from, invalid("logs: --since: %q is neither a time, as in 2026-01-02T15:04:05Z, nor a duration, as in 10m", o.since)
}

func (a *app) logs(ctx context.Context, o *logsOptions, ref string) error {
	from, err := o.from(time.Now())
	if err != nil {
		return err
	}
	h, err := a.openTasks(ctx)
	if err != nil {
		return err
	}
	defer h.close()
	r, err := a.find(ctx, h, ref)
	if err != nil {
		return err
	}
	if o.step > int64(len(r.Task.Steps)) {
		return invalid("logs: --step %d: task %q has %s", o.step, ref, steps(len(r.Task.Steps)))
	}
	ctx, stop := notify(ctx)
	defer stop()
	if o.follow {
		defer a.lookAfter(ctx, h)()
	}
	err = a.printLogs(ctx, h, r.ID, o, from)
	if o.follow && errors.Is(err, berth.ErrCanceled) {
		return nil // that is how following ends
	}
	return err
}

// printLogs prints the streams of each step in turn, both streams of a step at once.
func (a *app) printLogs(ctx context.Context, h *host, id string, o *logsOptions, from logfile.From) error {
	for step := 0; ; step++ {
		rec, err := a.awaitStep(ctx, h, id, step, o.follow)
		if err != nil || rec == nil {
			return err
		}
		if o.step > 0 && int(o.step) != step+1 {
			continue
		}
		var wg sync.WaitGroup
		errs := make([]error, 2)
		for i, s := range []struct {
			name string
			to   io.Writer
		}{{"stdout", a.out}, {"stderr", a.err}} {
			if o.stream == "both" || o.stream == s.name {
				wg.Go(func() { errs[i] = a.printLog(ctx, h, id, step, s.name, s.to, o, from) })
			}
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return err
		}
		if o.step > 0 {
			return nil
		}
	}
}

// stepPoll is how often a followed task is looked at.
const stepPoll = 100 * time.Millisecond

// awaitStep answers the task's record once its step was started; nil if it never will be, or, not following,
// was not yet.
func (a *app) awaitStep(ctx context.Context, h *host, id string, step int, follow bool) (*runner.Record, error) {
	said := time.Now().Add(silence)
	for {
		rec, err := h.runner.Record(ctx, id)
		if err != nil {
			return nil, err
		}
		if step < len(rec.Steps) && rec.Steps[step].Started {
			return rec, nil
		}
		over := rec.Result != nil || step >= len(rec.Task.Steps)
		if step == 0 && (over || !follow) {
			a.say("the task has written nothing: it is %s%s", rec.State, waitsFor(rec))
		}
		if over || !follow {
			return nil, nil
		}
		if step == 0 && !said.IsZero() && time.Now().After(said) {
			said = time.Time{}
			a.say("the task has written nothing yet: it is %s%s", rec.State, waitsFor(rec))
		}
		if err := sleep(ctx, stepPoll); err != nil {
			return nil, err
		}
	}
}

// waitsFor is for what a task waits that is not admitted, after a colon.
func waitsFor(rec *runner.Record) string {
	if rec.Result != nil || rec.Admitted != nil || len(rec.Log) == 0 {
		return ""
	}
	return ", " + rec.Log[len(rec.Log)-1].Text
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}

func (a *app) printLog(ctx context.Context, h *host, id string, step int, stream string, to io.Writer, o *logsOptions, from logfile.From) error {
	log, err := logfile.Open(h.runner.LogDir(id, step), stream, from)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the step never came so far
	}
	if err != nil {
		return fmt.Errorf("logs of task %s: %w", id, err)
	}
	defer func() { _ = log.Close() }()
	if o.timestamps {
		to = &logfile.Timestamps{W: to, R: log}
	}
	var r io.Reader = log
	if o.follow {
		follow := log.Follow(ctx, h.moreLog(id, step, log))
		defer func() { _ = follow.Close() }()
		r = follow
	}
	_, err = io.Copy(to, r)
	for _, at := range log.Index().Gaps {
		if err == nil {
			a.say("some may be missing of %s after byte %d: no berth has read it, and the daemon does not have it", stream, at)
		}
	}
	if skipped := log.Skipped(); skipped > 0 && err == nil {
		a.say("%d bytes of %s were dropped, by the log's limit or for want of room on its disk", skipped, stream)
	}
	return err
}

// moreLog waits until a log has grown, or will not.
func (h *host) moreLog(id string, step int, log *logfile.Reader) func(context.Context, int64) (bool, error) {
	return func(ctx context.Context, have int64) (bool, error) {
		for {
			// First whether it has ended, then whether there is more: else the last bytes could be missed.
			rec, err := h.runner.Record(ctx, id)
			if err != nil {
				return false, err
			}
			ended := rec.Result != nil || step < len(rec.Steps) && rec.Steps[step].Exit != nil
			end, err := log.End()
			if err != nil || ended || end > have {
				return ended, err
			}
			if err := sleep(ctx, stepPoll); err != nil {
				return false, err
			}
		}
	}
}
