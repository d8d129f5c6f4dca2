package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
)

type imageLoadOptions struct {
	name, platform, progress string
	quiet                    bool
}

func (a *app) imageLoadCommand() *cobra.Command {
	o := &imageLoadOptions{}
	cmd := &cobra.Command{
		Use:   "load [flags] FILE|DIR|-",
		Short: "Load images from an archive of docker save, an OCI archive, or an OCI layout",
		Long: `Load the images of an archive, as docker save and podman save write it, of an OCI archive, or of a directory in OCI
layout; plain or compressed. - is standard input. Their names are printed, or their IDs where they have none.`,
		Example: `  docker save tool:1 | berth image load -
  berth image load --name tool:1 oci-layout/`,
		Args:        argCount(1, 1),
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, args []string) error { return a.imageLoad(cmd.Context(), o, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.name, "name", "", "`NAME` for the image, in place of those in the archive")
	flags.StringVar(&o.platform, "platform", "", "`OS/ARCH` to load, where there are several (default this machine's)")
	flags.BoolVar(&o.quiet, "quiet", false, "show no progress")
	o.progress = "auto"
	flags.Var(choiceValue{&o.progress, []string{"auto", "plain", "none"}}, "progress", "how to show the progress")
	return cmd
}

func (a *app) imageLoad(ctx context.Context, o *imageLoadOptions, file string) error {
	return a.withImages(ctx, func(ctx context.Context, images imageStore) error {
		progress := a.newProgress(o.progress, o.quiet)
		opts := image.LoadOptions{Name: o.name, Platform: o.platform, Progress: func(p berth.Progress) { progress.report(file, p) }}
		var loaded []berth.Image
		var err error
		if file == "-" {
			loaded, err = images.LoadReader(ctx, a.in, opts)
		} else {
			loaded, err = images.Load(ctx, a.abs(file), opts)
		}
		progress.close()
		if err != nil {
			return err
		}
		for _, img := range loaded {
			name := img.Ref
			if name == "" {
				name = img.ID
			}
			if _, err := fmt.Fprintln(a.out, name); err != nil {
				return err
			}
		}
		return nil
	})
}
