package cli

import (
	"context"
	"fmt"
	"io"
	"os"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/spf13/cobra"

	"github.com/berth-project/berth/device/cdi"
)

type cdiInjectOptions struct {
	cdiOptions
	output  string
	noCheck bool
}

func (a *app) cdiInjectCommand() *cobra.Command {
	o := &cdiInjectOptions{}
	cmd := &cobra.Command{
		Use:   "inject [flags] CONFIG.json NAME...",
		Short: "Edit an OCI spec so that its container gets devices",
		Long: `Edit an OCI spec, the config.json of a bundle, so that its container gets CDI devices: all of them or, on an error,
none, and then nothing is written. The specs are compared with this host first. What CDI does not touch stays as
it is. CONFIG.json may be - for standard input.`,
		Example: `  berth cdi inject bundle/config.json nvidia.com/gpu=0 --output bundle/config.json
  runc spec --bundle . && berth cdi inject - amd.com/gpu=1 < config.json`,
		Args: argCount(2, -1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.cdiInject(cmd.Context(), o, args[0], args[1:])
		},
	}
	cmd.Flags().StringVarP(&o.output, "output", "o", stdStream, "write the edited spec to this `FILE`, which may be CONFIG.json itself; - is standard output")
	cmd.Flags().BoolVar(&o.noCheck, "no-check", false, "do not compare the CDI specs with this host")
	o.flags(cmd)
	return cmd
}

func (a *app) cdiInject(_ context.Context, o *cdiInjectOptions, config string, names []string) error {
	data, err := a.readFrom(config)
	if err != nil {
		return err
	}
	for _, name := range names {
		if _, err := cdi.ParseName(name); err != nil {
			return err
		}
	}
	h, err := a.openHost(o.root)
	if err != nil {
		return err
	}
	cache, err := a.specs(&o.cdiOptions)
	if err != nil {
		return err
	}
	if !o.noCheck {
		if err := cache.Check(names...); err != nil {
			return err
		}
	}
	edited, err := cdi.Rewrite(data, func(spec *oci.Spec) error {
		edits, _, err := cache.Resolve(names...)
		if err != nil {
			return err
		}
		cdi.CloseHooks(edits)
		return cdi.Apply(spec, edits, h.CDI())
	})
	if err != nil {
		return fmt.Errorf("%s: %w", config, err)
	}
	return a.writeTo(o.output, edited)
}

// readFrom reads a file that a user named; "-" is standard input.
func (a *app) readFrom(name string) ([]byte, error) {
	if name == stdStream {
		return io.ReadAll(a.in)
	}
	data, err := os.ReadFile(a.abs(name))
	if err != nil {
		return nil, &quietError{err.Error(), fileKind(err)}
	}
	return data, nil
}
