package cli

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/image"
)

type imageLsOptions struct {
	quiet  bool
	format string
}

func (a *app) imageLsCommand() *cobra.Command {
	o := &imageLsOptions{}
	cmd := &cobra.Command{
		Use:   "ls [flags]",
		Short: "List images, the most recently used first",
		Example: `  berth image ls
  berth image ls --format json`,
		Args:        noArgs,
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, _ []string) error { return a.imageLs(cmd.Context(), o) },
	}
	cmd.Flags().BoolVarP(&o.quiet, "quiet", "q", false, "IDs only")
	formatFlag(cmd, &o.format)
	return cmd
}

func (a *app) imageLs(ctx context.Context, o *imageLsOptions) error {
	return a.withImages(ctx, func(ctx context.Context, images imageStore) error {
		list, err := images.List(ctx)
		if err != nil {
			return err
		}
		switch {
		case o.quiet:
			for _, i := range list {
				if _, err := fmt.Fprintln(a.out, i.ID); err != nil {
					return err
				}
			}
			return nil
		case o.format == "json":
			enc := jsonEncoder(a.out)
			for _, i := range list {
				if err := enc.Encode(i); err != nil {
					return err
				}
			}
			return nil
		}
		w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
		_, _ = fmt.Fprintln(w, "IMAGE\tID\tPLATFORM\tSIZE\tUSED")
		for _, i := range list {
			refs := i.Refs
			if len(refs) == 0 {
				refs = []string{"-"}
			}
			for _, ref := range refs {
				_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", ref, shortID(i.ID), platform(i), bytesOf(i.Size), ago(i.Used))
			}
		}
		return w.Flush()
	})
}

func platform(i image.Info) string {
	p := i.Config.OS + "/" + i.Config.Architecture
	if i.Config.Variant != "" {
		p += "/" + i.Config.Variant
	}
	return p
}

func shortID(id string) string {
	id = strings.TrimPrefix(id, "sha256:")
	return id[:min(12, len(id))]
}

// bytesOf writes bytes for people: three digits or so.
func bytesOf(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for f >= 1000 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if f < 10 {
		return fmt.Sprintf("%.1f %ciB", f, units[i])
	}
	return fmt.Sprintf("%.0f %ciB", f, units[i])
}
