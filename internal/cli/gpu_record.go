package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/record"
)

func (a *app) gpuRecordCommand() *cobra.Command {
	var root string
	cmd := &cobra.Command{
		Use:   "record [flags] DIR",
		Short: "Record this host's GPUs, for --root elsewhere",
		Long: `Record this host's GPUs in a new directory, so that gpu ls, gpu explain and cdi generate say the same of it elsewhere, by
--root DIR. It is of use in reports of faults and in tests.

Nothing private is in it: of the GPUs what their drivers say of models, UUIDs, addresses and memory; the numbers,
numeric owners and modes of their nodes; names of the driver's files, which themselves are empty but for the name that
libraries have for the linker; /proc/devices. No serial numbers, no host name, no CDI specs, no configuration.`,
		Example: "  berth gpu record gpus",
		Args:    argCount(1, 1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.gpuRecord(cmd.Context(), root, args[0]) },
	}
	rootFlag(cmd, &root)
	return cmd
}

func (a *app) gpuRecord(ctx context.Context, root, dir string) error {
	ctx, stop := notify(ctx)
	defer stop()
	h, err := a.openHost(root)
	if err != nil {
		return err
	}
	g, err := a.findGPUs(ctx, h)
	if err != nil {
		return err
	}
	_, err = device.Within(ctx, a.patience, "a driver of GPUs", func() (any, error) { return nil, record.Write(h, g.facts, a.abs(dir)) })
	if err != nil {
		return err
	}
	for _, note := range g.notes() {
		a.say("%s", note)
	}
	_, err = fmt.Fprintf(a.out, "%s: %d GPUs\n", dir, len(g.devices))
	return err
}
