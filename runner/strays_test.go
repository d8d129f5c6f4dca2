package runner

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/google/go-cmp/cmp"
)

// markedEngine has things by their marks, without records of their sandboxes.
type markedEngine struct {
	*diskEngine
	left   []string
	purged []string
	held   error // why Purge removes nothing
}

func (e *markedEngine) List(ctx context.Context) ([]berth.Status, error) {
	all, err := e.diskEngine.List(ctx)
	for _, id := range e.left {
		all = append(all, berth.Status{Sandbox: id, Container: id + "-1", State: berth.ContainerRunning})
	}
	return all, err
}

func (e *markedEngine) Orphans(context.Context) ([]string, error) { return slices.Clone(e.left), nil }

func (e *markedEngine) Purge(_ context.Context, id string) (bool, error) {
	e.purged = append(e.purged, id)
	if e.held != nil {
		return false, e.held
	}
	was := slices.Contains(e.left, id) && id != "stuck"
	e.left = slices.DeleteFunc(e.left, func(s string) bool { return s == id && was })
	return was, nil
}

// TestStraysByTheirMarks: what has a mark of a sandbox of no task, or of one that is closed, is removed, though there is no
// record of it, and told of only where it is gone. That of a task which has not ended may be another directory's.
func TestStraysByTheirMarks(t *testing.T) {
	b := newTestbed(t)
	ctx := timeout(t)
	e := &markedEngine{diskEngine: b.engine}
	b.cfg.Engine = e
	if _, err := b.Run(ctx, berth.Task{ID: "done", Steps: []berth.Step{sh("true")}}, Hooks{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Run(ctx, berth.Task{ID: "kept", Keep: true, Steps: []berth.Step{sh("true")}}, Hooks{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Submit(ctx, berth.Task{ID: "waits", Steps: []berth.Step{sh("true")}}); err != nil {
		t.Fatal(err)
	}
	e.left = []string{"done", "ghost", "kept", "stuck", "waits"}
	found, _, err := b.Reconcile(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Found{{Task: "ghost", What: "what was left of a sandbox"}, {Task: "done", What: "what was left of a sandbox"}}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
	if left := []string{"kept", "stuck", "waits"}; !slices.Equal(e.left, left) || slices.Contains(e.purged, "waits") || slices.Contains(e.purged, "kept") {
		t.Errorf("left %q, purged %q; want left %q", e.left, e.purged, left)
	}
}

// TestHeldIsTold: what the engine could not remove of a sandbox that is closed is told by each who is to remove it, until it is gone.
func TestHeldIsTold(t *testing.T) {
	b := newTestbed(t)
	ctx := timeout(t)
	e := &markedEngine{diskEngine: b.engine}
	b.cfg.Engine = e
	if _, err := b.Run(ctx, berth.Task{ID: "kept", Keep: true, Steps: []berth.Step{sh("true")}}, Hooks{}); err != nil {
		t.Fatal(err)
	}
	sandbox, err := e.Attach(ctx, "kept")
	if err != nil {
		t.Fatal(err)
	}
	if err := sandbox.Close(ctx); err != nil {
		t.Fatal(err)
	}
	e.held = fmt.Errorf("volume v: %w: restart the daemon", berth.ErrConflict)
	for range 2 {
		if err := b.Remove(ctx, "kept"); !errors.Is(err, berth.ErrConflict) || !strings.Contains(err.Error(), "volume v: ") {
			t.Errorf("rm: %v", err)
		}
	}
	e.held = nil
	if err := b.Remove(ctx, "kept"); err != nil {
		t.Error(err)
	}
}
