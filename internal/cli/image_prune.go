package cli

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/image"
)

type imagePruneOptions struct {
	unused time.Duration
	all    bool
	dryRun bool
	format string
}

func (a *app) imagePruneCommand() *cobra.Command {
	o := &imagePruneOptions{}
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove images that no task uses",
		Long: `Remove images that no task uses and a registry has, layers that no image has, and what broken pulls left behind. What
was removed is printed, and what that freed on standard error. Images that berth image load or import brought stay, which
nobody could fetch again, as long as they have a name: they are told, and go with --all.`,
		Example: `  berth image prune --dry-run
  berth image prune --unused 30d
  berth image prune --all`,
		Args:        noArgs,
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, _ []string) error { return a.imagePrune(cmd.Context(), o) },
	}
	cmd.Flags().Var(durationValue{&o.unused}, "unused", "only those that were not used for so long, as in 7d")
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "images that were loaded or imported, too")
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "remove nothing, print what would be")
	formatFlag(cmd, &o.format)
	return cmd
}

func (a *app) imagePrune(ctx context.Context, o *imagePruneOptions) error {
	return a.withImages(ctx, func(ctx context.Context, images imageStore) error {
		removed, err := images.Prune(ctx, image.PruneOptions{Unused: o.unused, All: o.all, DryRun: o.dryRun})
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
		if len(removed.Kept) > 0 {
			a.say("kept what was loaded or imported, and no registry has: %s; with --all it goes, too", strings.Join(removed.Kept, ", "))
		}
		return nil
	})
}
