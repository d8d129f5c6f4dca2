package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/runner"
)

func (a *app) systemCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "system",
		Short: "Look after what berth keeps",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.systemCleanupCommand(), a.systemMendedCommand())
	return cmd
}

func (a *app) systemCleanupCommand() *cobra.Command {
	var format string
	cmd := &cobra.Command{
		Use:   "cleanup [flags]",
		Short: "Remove every leftover of tasks that crashed, and nothing else",
		Long: `Remove what berths that were killed have left: containers, mounts, cgroups, directories; bring tasks that they
ran in the foreground to their end, and go on with detached ones. What is found is printed. What runs, what
--keep kept, images and the records of ended tasks are left alone.`,
		Example:     `  berth system cleanup`,
		Args:        noArgs,
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, _ []string) error { return a.cleanup(cmd.Context(), format) },
	}
	formatFlag(cmd, &format)
	return cmd
}

func (a *app) cleanup(ctx context.Context, format string) error {
	ctx, stop := notify(ctx)
	defer stop()
	places, err := a.places(ctx)
	if err != nil {
		return err
	}
	for _, p := range places {
		err = errors.Join(err, a.at(p).cleanupHere(ctx, format))
	}
	return err
}

// places are the engine that was asked for, and those that have tasks which have not ended.
func (a *app) places(ctx context.Context) ([]place, error) {
	here, err := a.here()
	if err != nil {
		return nil, err
	}
	h, err := a.openTasks(ctx)
	if err != nil {
		return nil, err
	}
	defer h.close()
	all := []place{here}
	if h.tasks == nil {
		return all, nil
	}
	for r, err := range h.tasks.Stale(ctx) {
		if err != nil {
			return nil, err
		}
		if p := placeOf(r.Task); !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return all, nil
}

func (a *app) cleanupHere(ctx context.Context, format string) error {
	h, err := a.open(ctx) // opening the image store removes what broken pulls left
	if err != nil {
		return err
	}
	defer h.close()
	found, err := a.reconcile(ctx, h)
	if h.sweep != nil {
		err = errors.Join(err, h.sweep(ctx))
	}
	for _, f := range found {
		err = errors.Join(err, f.Err, a.printFound(f, format))
	}
	return err
}

// reconcile puts right what dead processes left, and has workers go on with detached tasks.
func (a *app) reconcile(ctx context.Context, h *host) ([]runner.Found, error) {
	found, resume, err := h.runner.Reconcile(ctx)
	for _, id := range resume {
		bad := a.startWorker(h.dir, id)
		found = append(found, runner.Found{Task: id, What: "a detached task that nobody went on with; a worker does now", Err: bad})
	}
	return found, err
}

func (a *app) printFound(f runner.Found, format string) error {
	if format == "json" {
		return jsonEncoder(a.out).Encode(f)
	}
	_, err := fmt.Fprintf(a.out, "%s\t%s\n", f.Task, f.What)
	return err
}
