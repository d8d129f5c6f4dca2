package cli

import (
	"context"
	"errors"
	"fmt"

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
	cmd.AddCommand(a.systemCleanupCommand())
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
		Args:        noArgs,
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, _ []string) error { return a.cleanup(cmd.Context(), format) },
	}
	formatFlag(cmd, &format)
	return cmd
}

func (a *app) cleanup(ctx context.Context, format string) error {
	h, err := a.open(ctx) // opening the image store removes what broken pulls left
	if err != nil {
		return err
	}
	defer h.close()
	ctx, stop := notify(ctx)
	defer stop()
	found, err := a.reconcile(ctx, h)
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
