package docker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"
)

// A sandbox that was to be closed, and could not be, as the daemon did not answer, may have containers that run on: of a task that was
// canceled and is told as Lost. The keeper closes it once the daemon answers, unless another process drives the task.

// unclosedFile says that a sandbox was to be closed, and that this failed.
func (e *Engine) unclosedFile(id string) string { return filepath.Join(e.sandboxDir(id), "unclosed") }

func (s *Sandbox) noteUnclosed() {
	if !s.kept() || s.spec.Bound || !exists(s.e.sandboxDir(s.spec.ID)) {
		return
	}
	if err := os.WriteFile(s.e.unclosedFile(s.spec.ID), nil, 0o600); err != nil {
		s.e.cfg.Logger.Error("it is not noted that a sandbox is to be closed", "sandbox", s.spec.ID, "error", err)
	}
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
