package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
)

type imagePullOptions struct {
	platform, progress string
	insecure, quiet    bool
}

func (a *app) imagePullCommand() *cobra.Command {
	o := &imagePullOptions{}
	cmd := &cobra.Command{
		Use:   "pull [flags] IMAGE",
		Short: "Fetch an image from its registry",
		Long: `Fetch an image from its registry, whether it is here or not, and print its name in full with its digest.
Layers that are here are not fetched again. Credentials are Docker's: ~/.docker/config.json and its helpers.`,
		Example: `  berth image pull debian:12
  berth image pull --platform linux/arm64 ghcr.io/org/tool:1.4`,
		Args:        argCount(1, 1),
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, args []string) error { return a.imagePull(cmd.Context(), o, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&o.platform, "platform", "", "`OS/ARCH` of the image (default this machine's)")
	flags.BoolVar(&o.insecure, "insecure", false, "allow registries without TLS, or with a certificate that cannot be verified")
	flags.BoolVar(&o.quiet, "quiet", false, "show no progress")
	o.progress = "auto"
	flags.Var(choiceValue{&o.progress, []string{"auto", "plain", "none"}}, "progress", "how to show the progress")
	return cmd
}

func (a *app) imagePull(ctx context.Context, o *imagePullOptions, ref string) error {
	return a.withImages(ctx, func(ctx context.Context, images imageStore) error {
		progress := a.newProgress(o.progress, o.quiet)
		img, err := images.Image(ctx, berth.ImageRequest{
			Ref: ref, Policy: berth.PullAlways, Platform: o.platform, Insecure: o.insecure,
			Progress: func(p berth.Progress) { progress.report(ref, p) },
		})
		progress.close()
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.out, imageName(img))
		return err
	})
}

// imageName is an image's name with its digest, or its ID where it has none.
func imageName(img berth.Image) string {
	switch {
	case img.Ref == "":
		return img.ID
	case img.Digest == "":
		return img.Ref
	}
	return img.Ref + "@" + img.Digest
}
