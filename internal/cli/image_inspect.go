package cli

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/image"
)

func (a *app) imageInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:         "inspect IMAGE...",
		Short:       "Tell all that is known of images, as a JSON list",
		Example:     `  berth image inspect debian:12`,
		Args:        argCount(1, -1),
		Annotations: map[string]string{asRoot: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withImages(cmd.Context(), func(ctx context.Context, images imageStore) error {
				list := make([]image.Info, len(args))
				for i, name := range args {
					var err error
					if list[i], err = images.Inspect(ctx, name); err != nil {
						return err
					}
				}
				enc := jsonEncoder(a.out)
				enc.SetIndent("", "  ")
				return enc.Encode(list)
			})
		},
	}
}
