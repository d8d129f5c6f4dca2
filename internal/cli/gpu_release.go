package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
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
		RunE:    func(_ *cobra.Command, args []string) error { return a.gpuRelease(root, args) },
	}
	rootFlag(cmd, &root)
	return cmd
}

func (a *app) gpuRelease(root string, uuids []string) error {
	h, err := a.openHost(root)
	if err != nil {
		return err
	}
	dir, err := a.dataDir()
	if err != nil {
		return err
	}
	q := quarantine(h, dir)
	held := slices.Sorted(maps.Keys(q.Held()))
	for _, uuid := range uuids {
		if !slices.Contains(held, uuid) {
			what := "nothing is"
			if len(held) > 0 {
				what = strings.Join(held, ", ") + " is"
			}
			return fmt.Errorf("release GPU %s: %w in quarantine; %s", uuid, berth.ErrNotFound, what)
		}
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
