package cli

import (
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/device/cdi"
)

func (a *app) cdiCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cdi",
		Short: "Write, list, check and apply CDI specs",
		Long: `Write, list, check and apply specs of the Container Device Interface, the files that tell container engines what gets
a device into a container.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.cdiGenerateCommand(), a.cdiListCommand(), a.cdiCheckCommand(), a.cdiInjectCommand())
	return cmd
}

// cdiOptions say where specs are.
type cdiOptions struct {
	root string
	dirs []string
}

func (o *cdiOptions) flags(cmd *cobra.Command) {
	rootFlag(cmd, &o.root)
	cmd.Flags().Var(listValue{&o.dirs, "DIR"}, "spec-dir", "read specs from this DIR of the host; later ones count before earlier ones (repeat) (default /etc/cdi, /var/run/cdi)")
}

// specs opens the specs of a host.
func (a *app) specs(o *cdiOptions) (*cdi.Cache, error) {
	h, err := a.openHost(o.root)
	if err != nil {
		return nil, err
	}
	dirs := make([]string, len(o.dirs))
	for i, dir := range o.dirs {
		dirs[i] = dir
		if o.root == "/" {
			dirs[i] = a.abs(dir)
		}
	}
	return cdi.NewCache(h.CDI(), dirs...), nil
}

// problems are what is wrong with specs, each once: of two that conflict both have the same.
func problems(c *cdi.Cache) (all []cdi.Problem) {
	seen := map[string]bool{}
	for _, p := range c.Problems() {
		if text := p.Err.Error(); !seen[text] {
			seen[text] = true
			all = append(all, p)
		}
	}
	return all
}
