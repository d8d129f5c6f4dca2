package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/image"
)

type imagePruneOptions struct {
	unused time.Duration
	dryRun bool
	format string
}

func (a *app) imagePruneCommand() *cobra.Command {
	o := &imagePruneOptions{}
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove images that no task uses",
		Long: `Remove images that no task uses, layers that no image has, and what broken pulls left behind. What was removed is
printed, and what that freed on standard error.`,
		Example: `  berth image prune --dry-run
  berth image prune --unused 30d`,
		Args:        noArgs,
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, _ []string) error { return a.imagePrune(cmd.Context(), o) },
	}
	cmd.Flags().Var(durationValue{&o.unused}, "unused", "only those that were not used for so long, as in 7d")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "remove nothing, print what would be")
	formatFlag(cmd, &o.format)
	return cmd
}

func (a *app) imagePrune(ctx context.Context, o *imagePruneOptions) error {
	return a.withImages(ctx, func(ctx context.Context, images imageStore) error {
		removed, err := images.Prune(ctx, image.PruneOptions{Unused: o.unused, DryRun: o.dryRun})
		if err != nil {
			return err
		}
		if o.format == "json" {
			return jsonEncoder(a.out).Encode(removed)
		}
		if err := a.printRemoved(removed); err != nil {
			return err
		}
		verb := "freed"
		if o.dryRun {
			verb = "would free"
		}
		a.say("%s %s in %d layers", verb, bytesOf(removed.Bytes), removed.Layers)
		return nil
	})
}
