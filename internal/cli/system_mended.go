package cli

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) systemMendedCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "mended",
		Short: "Let tasks run again on a host that was broken",
		Long: `Let tasks run again on a host that was broken. With --broken-hook, best set in the configuration, berth tells a
broken host from a broken task: a daemon that cannot be reached, or that cannot make or start containers since its
runtime cannot mount what all of them need or its disk is full. What a registry or an input says counts for nothing.
The task that finds it out goes back to the queue unless it has run already, none is begun, and the hook is run once,
with BERTH_BROKEN_WHY and BERTH_BROKEN_TASK in its environment; again by another berth where the one that ran it was
killed. This ends that; the engine's own file "broken" in the data directory, which is there meanwhile, may be removed
instead, or made by hand. A task that meets the same answer of the daemon afterwards fails.`,
		Example: "  berth system mended",
		Args:    noArgs,
		RunE:    func(*cobra.Command, []string) error { return a.mended() },
	}
}

func (a *app) mended() error {
	dir, err := a.dataDir()
	if err != nil {
		return err
	}
	here, err := a.here()
	if err != nil {
		return err
	}
	was, err := a.at(here).quarantine(dir).Mended()
	if err != nil {
		return err
	}
	if was == nil {
		a.say("this host was not taken to be broken")
		return nil
	}
	if !was.Since.IsZero() {
		was.Why = was.Since.Format(time.RFC3339) + "\t" + was.Why
	}
	_, err = fmt.Fprintln(a.out, was.Why)
	return err
}
