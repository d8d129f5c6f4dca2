package docker

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A task that has ended, and whose sandbox could not be closed, as the daemon did not answer, may have a container that runs on. The keeper closes
// the sandbox once the daemon answers.

// unclosedFile says that the task of a sandbox has ended, and that this was not closed.
func (e *Engine) unclosedFile(id string) string { return filepath.Join(e.sandboxDir(id), "unclosed") }

// CloseLater has the keeper close the sandbox when it can, if it looks after it: of one with LabelResume that is not bound. Nobody may go on with
// it: it is for one whose Close has failed when all else of its task is over.
func (s *Sandbox) CloseLater() error {
	if !s.kept() || s.spec.Bound {
		return nil
	}
	if err := os.WriteFile(s.e.unclosedFile(s.spec.ID), nil, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) { // else it was closed meanwhile
		return fmt.Errorf("close %s later: %w: %w", s.spec.ID, kindOf(err), err)
	}
	return nil
}

// closeUnclosed begins to close what others could not.
func (k *keeper) closeUnclosed(ctx context.Context) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for id, t := range k.tended {
		if t.ending || t.users > 0 || t.sb.spec.Bound || !exists(k.e.unclosedFile(id)) {
			continue
		}
		t.ending = true
		k.wg.Go(func() { k.closeLate(ctx, t) })
	}
}

// closeLate closes a sandbox once the daemon answers. A worker puts the task's record right.
func (k *keeper) closeLate(ctx context.Context, t *tended) {
	id := t.sb.spec.ID
	defer func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		t.ending = false
	}()
	var word sparse
	for k.awaitDaemon(ctx, id) {
		k.mu.Lock()
		driven := t.users > 0
		k.mu.Unlock()
		if driven || !exists(k.e.unclosedFile(id)) {
			return
		}
		err := t.sb.Close(ctx)
		if err == nil || errors.Is(err, errHeld) {
			k.e.cfg.Logger.Info("sandbox closed, which could not be before", "sandbox", id)
			k.worker(ctx, t)
			return
		}
		if since, due := word.due(time.Now()); due {
			k.e.cfg.Logger.Error("sandbox not closed, which is tried again", "sandbox", id, "since", since, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(closeAgain):
		}
	}
}
