package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

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
ended is no error.`,
		Args:        argCount(1, -1),
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, args []string) error { return a.stop(cmd.Context(), o, args) },
	}
	cmd.Flags().BoolVar(&o.now, "now", false, "KILL at once, and collect no outputs")
	return cmd
}

func (a *app) stop(ctx context.Context, o *stopOptions, refs []string) error {
	h, err := a.open(ctx)
	if err != nil {
		return err
	}
	defer h.close()
	ctx, stop := notify(ctx)
	defer stop()
	return a.each(ctx, h, refs, func(ctx context.Context, id string) error {
		if err := h.runner.Cancel(ctx, id, o.now); err != nil {
			return err
		}
		_, err := h.runner.Wait(ctx, id)
		return err
	})
}

// each finds all tasks first, does something with them at the same time, and prints the ID of each with
// which it was done.
func (a *app) each(ctx context.Context, h *host, refs []string, do func(ctx context.Context, id string) error) error {
	ids, typed := []string{}, map[string]string{}
	for _, ref := range refs {
		r, err := h.find(ctx, ref)
		if err != nil {
			return err
		}
		if typed[r.ID] == "" {
			typed[r.ID] = ref
			ids = append(ids, r.ID)
		}
	}
	return a.eachID(ctx, ids, func(ctx context.Context, id string) error { return named(do(ctx, id), id, typed[id]) })
}

// named has an error name a task as its user did.
func named(err error, id, ref string) error {
	if err == nil || id == ref {
		return err
	}
	return &quietError{strings.ReplaceAll(err.Error(), "task "+id, fmt.Sprintf("task %q", ref)), err}
}

func (a *app) eachID(ctx context.Context, ids []string, do func(ctx context.Context, id string) error) error {
	var wg sync.WaitGroup
	var mu sync.Mutex
	errs := make([]error, len(ids))
	slots := make(chan struct{}, 8)
	for i, id := range ids {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if errs[i] = do(ctx, id); errs[i] == nil {
				mu.Lock()
				defer mu.Unlock()
				_, _ = fmt.Fprintln(a.out, id)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
