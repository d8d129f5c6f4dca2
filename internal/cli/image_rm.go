package cli

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/image"
)

func (a *app) imageRmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm IMAGE...",
		Short: "Remove images",
		Long: `Remove images, by name or ID, and the layers that no other image has. By one of several names, only the name goes.
What was removed is printed. An image that a task uses is not removed.`,
		Example:     `  berth image rm debian:12`,
		Args:        argCount(1, -1),
		Annotations: map[string]string{asRoot: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withImages(cmd.Context(), func(ctx context.Context, images imageStore) error {
				var errs []error
				for _, name := range args {
					removed, err := images.Remove(ctx, name)
					errs = append(errs, err, a.printRemoved(removed))
				}
				return errors.Join(errs...)
			})
		},
	}
}

// printRemoved prints names and IDs, a line each.
func (a *app) printRemoved(r image.Removed) error {
	for _, name := range append(r.Refs, r.Images...) {
		if _, err := fmt.Fprintln(a.out, name); err != nil {
			return err
		}
	}
	return nil
}
