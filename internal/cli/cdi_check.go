package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/device/cdi"
)

type cdiCheckOptions struct {
	cdiOptions
	format string
}

func (a *app) cdiCheckCommand() *cobra.Command {
	o := &cdiCheckOptions{}
	cmd := &cobra.Command{
		Use:   "check [flags] [NAME...]",
		Short: "Compare CDI specs with this host",
		Long: `Compare CDI specs with this host: the numbers of device nodes, the files and hooks that they bring, and the version of
NVIDIA's driver with that of its libraries. Without names all specs are compared; then files that cannot be read and
those that describe the same device are faults, too. With names, only what brings these devices counts.

Each spec is told on standard output, and each fault with what to do about it. The exit code is 0 if there is none, and
3 if there is one.`,
		Example: `  berth cdi check
  berth cdi check nvidia.com/gpu=0 nvidia.com/gpu=1`,
		Args: argCount(0, -1),
		RunE: func(cmd *cobra.Command, args []string) error { return a.cdiCheck(cmd.Context(), o, args) },
	}
	o.flags(cmd)
	formatFlag(cmd, &o.format)
	return cmd
}

// cdiVerdict is what check tells of a spec file.
type cdiVerdict struct {
	File   string   `json:"file"`
	Fits   bool     `json:"fits"`
	Faults []string `json:"faults"`
	Fix    string   `json:"fix,omitempty"`

	devices int
}

func (a *app) cdiCheck(_ context.Context, o *cdiCheckOptions, names []string) error {
	cache, err := a.specs(&o.cdiOptions)
	if err != nil {
		return err
	}
	verdicts := []cdiVerdict{}
	if len(names) == 0 {
		names = cache.Devices()
		for _, p := range cache.Problems() {
			verdicts = append(verdicts, cdiVerdict{File: p.Path, Faults: []string{oneLine(p.Err)}})
		}
	}
	byFile, err := a.checkFiles(cache, names)
	if err != nil {
		return err
	}
	verdicts = append(verdicts, byFile...)
	if err := a.printVerdicts(verdicts, cache, o.format); err != nil {
		return err
	}
	for _, v := range verdicts {
		if !v.Fits {
			return exitError(exitRefused)
		}
	}
	return nil
}

// checkFiles compares the specs of devices, each file for all its devices at once.
func (a *app) checkFiles(cache *cdi.Cache, names []string) ([]cdiVerdict, error) {
	var order []string
	devices := map[string][]string{}
	for _, name := range names {
		d, ok := cache.Device(name)
		if !ok {
			_, _, err := cache.Resolve(name) // which says why
			return nil, err
		}
		if devices[d.Spec.Path] == nil {
			order = append(order, d.Spec.Path)
		}
		devices[d.Spec.Path] = append(devices[d.Spec.Path], name)
	}
	var verdicts []cdiVerdict
	for _, file := range order {
		v := cdiVerdict{File: file, Fits: true, Faults: []string{}, devices: len(devices[file])}
		err := cache.Check(devices[file]...)
		if stale, ok := errors.AsType[*cdi.StaleError](err); ok {
			v.Fits, v.Faults, v.Fix = false, stale.Causes, stale.Fix
		} else if err != nil {
			return nil, err
		}
		verdicts = append(verdicts, v)
	}
	return verdicts, nil
}

func (a *app) printVerdicts(verdicts []cdiVerdict, cache *cdi.Cache, format string) error {
	if format == "json" {
		enc := jsonEncoder(a.out)
		enc.SetIndent("", "  ")
		return enc.Encode(verdicts)
	}
	if len(verdicts) == 0 {
		_, err := fmt.Fprintf(a.out, "There are no CDI specs in %s.\n", strings.Join(cache.Dirs(), ", "))
		return err
	}
	for _, v := range verdicts {
		if v.Fits {
			if _, err := fmt.Fprintf(a.out, "%s: fits this host (%d devices)\n", v.File, v.devices); err != nil {
				return err
			}
			continue
		}
		for _, f := range v.Faults {
			if _, err := fmt.Fprintf(a.out, "%s: %s\n", v.File, f); err != nil {
				return err
			}
		}
		if v.Fix != "" {
			if _, err := fmt.Fprintf(a.out, "%s: %s\n", v.File, v.Fix); err != nil {
				return err
			}
		}
	}
	return nil
}
