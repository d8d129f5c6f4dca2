package docker

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
)

// activeMounts is in what a daemon says of a volume that it takes for mounted.
const activeMounts = "volume has active mounts"

// errHeld is that a volume is left that the daemon takes for mounted though no container has it. A daemon before 23 that was
// killed, and took its containers back, counts the volumes of those that end from then on below nothing.
var errHeld = fmt.Errorf("%w: the daemon takes it for mounted, as one does that was itself restarted while the container ran; "+
	"restart the daemon once more, and `berth system cleanup` removes it", berth.ErrConflict)

// removeVolume removes a volume of a sandbox. Its files are berth's, and removed by it, unless the volume is the daemon's own. One
// that is held (errHeld) is noted and not forced: the daemon would forget whose it is, and keep it all the same. It reports
// whether the volume was there and is gone.
func (e *Engine) removeVolume(ctx context.Context, sandbox, name string, again bool) (bool, error) {
	was, err := e.removed(ctx, again, func(ctx context.Context) error {
		_, err := e.api().VolumeRemove(ctx, name, client.VolumeRemoveOptions{})
		return err
	})
	if err == nil {
		_ = os.Remove(e.heldFile(name))
		return was, nil
	}
	if !strings.Contains(err.Error(), activeMounts) {
		return was, err
	}
	held := fmt.Errorf("volume %s: %w: %w", name, errHeld, daemonError{err})
	if err := e.noteHeld(sandbox, name); err != nil {
		held = errors.Join(held, err)
	}
	return false, held
}

// Volumes that are held are noted in the data directory, each in a file of its name that holds the sandbox's, so that each keeper
// tries them again: no sandbox has them any more.

func (e *Engine) heldFile(volume string) string {
	return filepath.Join(e.cfg.Dir, "held-volumes", volume)
}

func (e *Engine) noteHeld(sandbox, volume string) error {
	file := e.heldFile(volume)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	return os.WriteFile(file, []byte(sandbox), 0o600)
}

// sweepHeld tries to remove volumes that were held. Who asks for what is left is told by Purge what still is.
func (e *Engine) sweepHeld(ctx context.Context) {
	entries, _ := os.ReadDir(filepath.Dir(e.heldFile("any")))
	for _, d := range entries {
		sandbox, err := os.ReadFile(e.heldFile(d.Name()))
		if err != nil || exists(e.sandboxDir(string(sandbox))) { // it was opened anew: its volume may be this one
			continue
		}
		if _, err := e.removeVolume(ctx, string(sandbox), d.Name(), false); err != nil {
			e.cfg.Logger.Debug("a volume is left still", "volume", d.Name(), "error", err)
		}
	}
}
