package cli

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
)

type cdiListOptions struct {
	cdiOptions
	format string
}

func (a *app) cdiListCommand() *cobra.Command {
	o := &cdiListOptions{}
	cmd := &cobra.Command{
		Use:   "list [flags]",
		Short: "List the devices of CDI specs",
		Long: `List the devices that CDI specs describe, by their qualified names, and the file that counts for each. Files that
cannot be used are told on standard error. With --format json, it is a list with an object for each device.`,
		Example: "  berth cdi list --spec-dir /etc/cdi",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return a.cdiList(cmd.Context(), o) },
	}
	o.flags(cmd)
	formatFlag(cmd, &o.format)
	return cmd
}

// cdiLine is what list tells of a device.
type cdiLine struct {
	Name string `json:"name"`
	File string `json:"file"`
	Own  bool   `json:"own"` // berth wrote the file
}

func (a *app) cdiList(_ context.Context, o *cdiListOptions) error {
	cache, err := a.specs(&o.cdiOptions)
	if err != nil {
		return err
	}
	lines := []cdiLine{}
	for _, name := range cache.Devices() {
		if d, ok := cache.Device(name); ok {
			lines = append(lines, cdiLine{Name: name, File: d.Spec.Path, Own: d.Spec.Own})
		}
	}
	for _, p := range problems(cache) {
		a.say("%s", oneLine(p.Err))
	}
	if o.format == "json" {
		enc := jsonEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(lines)
	}
	if len(lines) == 0 {
		_, err := fmt.Fprintf(a.out, "No CDI spec in %s describes a device.\n", strings.Join(cache.Dirs(), ", "))
		return err
	}
	w := tabwriter.NewWriter(a.out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NAME\tFILE")
	for _, l := range lines {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", l.Name, l.File)
	}
	return w.Flush()
}
