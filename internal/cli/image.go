package cli

import (
	"context"

	"github.com/spf13/cobra"
)

func (a *app) imageCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Fetch, load, list and remove images",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		a.imagePullCommand(), a.imageLoadCommand(), a.imageImportCommand(), a.imageLsCommand(), a.imageInspectCommand(), a.imageRmCommand(),
		a.imagePruneCommand(),
	)
	return cmd
}

// withImages opens the image store for as long as do runs, with a context that ends at a signal.
func (a *app) withImages(ctx context.Context, do func(context.Context, imageStore) error) error {
	h, err := a.openEngine()
	if err != nil {
		return err
	}
	defer h.close()
	if h.images == nil {
		return unsupported("the engine %s has images of its own", a.global.engine)
	}
	ctx, stop := notify(ctx)
	defer stop()
	return do(ctx, h.images)
}
