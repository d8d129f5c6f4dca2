package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/image"
)

func (a *app) imageRmCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm IMAGE...",
		Short: "Remove images",
		Long: `Remove images, by name or ID, and the layers that no other image has. By one of several names, only the name goes.
What was removed is printed. An image that a task uses is not removed.`,
		Example:     `  berth image rm debian:12`,
		Args:        argCount(1, -1),
		Annotations: map[string]string{asRoot: "yes"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withImages(cmd.Context(), func(ctx context.Context, images imageStore) error {
				var errs []error
				for _, name := range args {
					removed, err := images.Remove(ctx, name)
					errs = append(errs, a.heldBy(ctx, name, err), a.printRemoved(removed))
				}
				return errors.Join(errs...)
			})
		},
	}
}

// printRemoved prints names and IDs, a line each.
func (a *app) printRemoved(r image.Removed) error {
	for _, name := range append(r.Refs, r.Images...) {
		if _, err := fmt.Fprintln(a.out, name); err != nil {
			return err
		}
	}
	return nil
}

// heldBy names the tasks that use an image, which the store knows by the directories of their sandboxes.
func (a *app) heldBy(ctx context.Context, name string, err error) error {
	held, ok := errors.AsType[*image.InUseError](err)
	if !ok {
		return err
	}
	h, bad := a.openTasks(ctx)
	if bad != nil {
		return err
	}
	defer h.close()
	var users []string
	for _, dir := range held.Holders {
		user := dir
		if h.tasks == nil {
			return err
		} else if r, bad := h.tasks.Get(ctx, filepath.Base(dir)); bad == nil {
			user = "task " + r.ID
			if r.Task.Name != "" {
				user += " (" + r.Task.Name + ")"
			}
			if r.Result != nil && r.Result.Kept != "" {
				user += ", which was kept: berth rm " + r.ID
			}
		}
		users = append(users, user)
	}
	return &quietError{fmt.Sprintf("remove image %s: conflict: it is in use by %s", name, strings.Join(users, ", ")), berth.ErrConflict}
}
