package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

func (a *app) gpuReleaseCommand() *cobra.Command {
	var root string
	cmd := &cobra.Command{
		Use:   "release [flags] UUID...",
		Short: "Have GPUs lent again that are in quarantine",
		Long: `Have GPUs, or slices, lent again that are in quarantine because they reported an error from which they do not recover
by themselves; berth gpu ls tells which. What they report later puts them there again.`,
		Example: "  berth gpu release GPU-edfee158-11c1-52b8-0517-92f30e7fac88",
		Args:    argCount(1, -1),
		RunE:    func(cmd *cobra.Command, args []string) error { return a.gpuRelease(cmd.Context(), root, args) },
	}
	rootFlag(cmd, &root)
	return cmd
}

func (a *app) gpuRelease(ctx context.Context, root string, uuids []string) error {
	h, err := a.openHost(root)
	if err != nil {
		return err
	}
	dir, err := a.dataDir()
	if err != nil {
		return err
	}
	q := device.QuarantineOf(h, dir)
	held, unnoted := q.Held(), error(nil)
	if slices.ContainsFunc(uuids, func(uuid string) bool { _, is := held[uuid]; return !is }) {
		// It may be held by an error that nobody has noted: whose note nobody could write, or whose GPU nobody asked for since.
		found, err := a.findGPUs(ctx, h)
		if err != nil {
			return err
		}
		held, unnoted = q.Hold(device.FindFaults(h, found.devices)...)
	}
	all := slices.Sorted(maps.Keys(held))
	for _, uuid := range uuids {
		if !slices.Contains(all, uuid) {
			what := "nothing is"
			if len(all) > 0 {
				what = strings.Join(all, ", ") + " is"
			}
			return fmt.Errorf("release GPU %s: %w in quarantine; %s", uuid, berth.ErrNotFound, what)
		}
	}
	if unnoted != nil {
		return fmt.Errorf("release GPUs: %w", unnoted)
	}
	for _, uuid := range uuids {
		if err := q.Release(uuid); err != nil {
			return err
		}
		if _, err := fmt.Fprintln(a.out, uuid); err != nil {
			return err
		}
	}
	return nil
}
