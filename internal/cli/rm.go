package cli

import (
	"context"
	"fmt"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/store"
	"github.com/spf13/cobra"
)

type rmOptions struct{ force, all bool }

func (a *app) rmCommand() *cobra.Command {
	o := &rmOptions{}
	cmd := &cobra.Command{
		Use:   "rm [flags] TASK... | --all",
		Short: "Forget ended tasks: their records, logs, and what --keep kept",
		Example: `  berth rm align
  berth rm --all`,
		Args: func(cmd *cobra.Command, args []string) error {
			if o.all && len(args) > 0 {
				return usageError(cmd, "--all and %q contradict each other", args[0])
			} else if o.all {
				return nil
			}
			return argCount(1, -1)(cmd, args)
		},
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, args []string) error { return a.rm(cmd.Context(), o, args) },
	}
	cmd.Flags().BoolVarP(&o.force, "force", "f", false, "end tasks that have not ended, at once; a task that is not there is no error")
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "every task that has ended")
	return cmd
}

func (a *app) rm(ctx context.Context, o *rmOptions, refs []string) error {
	ctx, stop := notify(ctx)
	defer stop()
	find := func() ([]foundTask, error) { return a.findAll(ctx, refs, o.force) }
	if o.all {
		find = func() ([]foundTask, error) { return a.ended(ctx) }
	}
	tasks, err := find()
	if err != nil {
		return err
	}
	return a.each(ctx, tasks, func(ctx context.Context, h *host, id string) error {
		if o.force {
			if err := h.runner.Cancel(ctx, id, true); err != nil {
				return err
			}
			if _, err := h.runner.Wait(ctx, id); err != nil {
				return err
			}
		}
		return h.runner.Remove(ctx, id)
	})
}

// ended are the tasks that have ended.
func (a *app) ended(ctx context.Context) ([]foundTask, error) {
	h, err := a.openTasks(ctx)
	if err != nil || h.tasks == nil {
		return nil, err
	}
	defer h.close()
	var all []foundTask
	final := store.Filter{States: []berth.State{berth.Complete, berth.ExecutorError, berth.SystemError, berth.Canceled}}
	for r, err := range h.tasks.List(ctx, final) {
		if err != nil {
			return nil, fmt.Errorf("list tasks: %w", err)
		}
		all = append(all, foundTask{r, r.ID})
	}
	return all, nil
}
