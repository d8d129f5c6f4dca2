package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/store"
	"github.com/spf13/cobra"
)

type stopOptions struct{ now bool }

func (a *app) stopCommand() *cobra.Command {
	o := &stopOptions{}
	cmd := &cobra.Command{
		Use:   "stop [flags] TASK...",
		Short: "End tasks: their stop signal, their grace, KILL",
		Long: `End tasks, and wait until they have ended: each gets its stop signal and, when its grace is over, everything in
its container gets KILL. Outputs are collected. The IDs are printed as the tasks end. Stopping a task that has
ended is no error. An interrupt ends only the waiting, with exit code 130: the tasks are still ended.`,
		Example: `  berth stop align
  berth stop --now $(berth ps -q --label team=genomics)`,
		Args:        argCount(1, -1),
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, args []string) error { return a.stop(cmd.Context(), o, args) },
	}
	cmd.Flags().BoolVar(&o.now, "now", false, "KILL at once, and collect no outputs")
	return cmd
}

func (a *app) stop(ctx context.Context, o *stopOptions, refs []string) error {
	signaled, done := notify(ctx)
	defer done()
	// The cause is not the signal's: where this process drives a task to its end, it leaves it so as it is.
	ctx, leave := context.WithCancelCause(ctx)
	defer leave(nil)
	defer context.AfterFunc(signaled, func() { leave(errNoLongerWaiting) })()
	tasks, err := a.findAll(ctx, refs, false)
	if err != nil {
		return err
	}
	return a.each(ctx, tasks, func(ctx context.Context, h *host, id string) error {
		err := h.runner.Cancel(ctx, id, o.now)
		if err == nil {
			err = awaitEnd(ctx, h, id)
		}
		if err != nil && errors.Is(context.Cause(ctx), errNoLongerWaiting) {
			return a.leaveEnding(context.WithoutCancel(ctx), h, id)
		}
		return err
	})
}

// awaitEnd waits until a task has ended. That a container of it may still run is an error.
func awaitEnd(ctx context.Context, h *host, id string) error {
	res, err := h.runner.Wait(ctx, id)
	if err != nil {
		return err
	}
	r, err := h.runner.Record(ctx, id)
	if isNotFound(err) { // it was removed meanwhile
		return nil
	}
	if err == nil && r.MayRun() {
		err = &quietError{"stop: task " + id + ": " + oneLine(errors.New(res.Detail)), berth.ErrUnavailable}
	}
	return err
}

var errNoLongerWaiting = errors.New("no longer waiting")

// leaveEnding hands a task that is to end to a worker, where nobody else brings it to its end, and tells so.
func (a *app) leaveEnding(ctx context.Context, h *host, id string) error {
	r, err := h.runner.Record(ctx, id)
	switch {
	case err != nil:
		return err
	case r.Result != nil:
		return nil
	case r.Cancel == nil:
		return &quietError{"stop: interrupted before task " + id + " was asked to end; it goes on", berth.ErrCanceled}
	}
	if !h.runner.Driven(id) {
		if err := a.at(placeOf(r.Task)).startWorker(h.dir, id); err != nil {
			return err
		}
	}
	return &quietError{"stop: no longer waiting for task " + id + ", which is still being ended", berth.ErrCanceled}
}

// foundTask is a task, and how its user named it.
type foundTask struct {
	store.Record
	ref string
}

// findAll finds tasks, each once. missing: one that is not there is no error.
func (a *app) findAll(ctx context.Context, refs []string, missing bool) ([]foundTask, error) {
	h, err := a.openTasks(ctx)
	if err != nil {
		return nil, err
	}
	defer h.close()
	var all []foundTask
	seen := map[string]bool{}
	for _, ref := range refs {
		r, err := a.find(ctx, h, ref)
		if missing && isNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if !seen[r.ID] {
			seen[r.ID] = true
			all = append(all, foundTask{r, ref})
		}
	}
	return all, nil
}

// named has an error name a task as its user did.
func named(err error, id, ref string) error {
	if err == nil || id == ref {
		return err
	}
	return &quietError{strings.ReplaceAll(err.Error(), "task "+id, fmt.Sprintf("task %q", ref)), err}
}

// each does something with tasks at the same time, with their engines open, and prints the ID of each with which it
// was done.
func (a *app) each(ctx context.Context, tasks []foundTask, do func(ctx context.Context, h *host, id string) error) error {
	hosts := map[place]*host{}
	for _, r := range tasks {
		at := placeOf(r.Task)
		if hosts[at] != nil {
			continue
		}
		h, err := a.at(at).open(ctx)
		if err != nil {
			return err
		}
		defer h.close()
		defer a.lookAfter(ctx, h)()
		hosts[at] = h
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	errs := make([]error, len(tasks))
	slots := make(chan struct{}, 8)
	for i, r := range tasks {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if errs[i] = named(do(ctx, hosts[placeOf(r.Task)], r.ID), r.ID, r.ref); errs[i] == nil {
				mu.Lock()
				defer mu.Unlock()
				_, _ = fmt.Fprintln(a.out, r.ID)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
