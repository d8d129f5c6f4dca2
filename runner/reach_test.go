package runner

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/berth-project/berth"
)

// TestOutOfReach: a task whose container nobody can end, as its engine is away, is not canceled, and none of its outputs are
// collected; the engine's return has what is left removed.
func TestOutOfReach(t *testing.T) {
	for _, now := range []bool{false, true} {
		t.Run(fmt.Sprintf("now %v", now), func(t *testing.T) {
			b := newTestbed(t)
			b.cfg.Clock = fastClock{}
			away := false
			b.engine.fault = func(call string) error {
				if away && call != "volume" {
					return fmt.Errorf("%s: %w", call, berth.ErrUnavailable)
				}
				return nil
			}
			ctx, cancel := context.WithCancelCause(timeout(t))
			defer cancel(nil)
			at := func(point string) {
				if point != "step started" {
					return
				}
				b.engine.mu.Lock()
				away = true
				b.engine.mu.Unlock()
				if !now {
					cancel(berth.ErrCanceled)
				} else if err := b.Cancel(ctx, "t", true); err != nil {
					t.Error(err)
				}
			}
			task := berth.Task{Steps: []berth.Step{sh("echo part > $R/out/a; sleep 30")}, Outputs: []berth.Output{{URL: "a", Path: "/out/a"}}}
			res, err := b.Run(ctx, b.at(task), Hooks{At: at})
			if err != nil || res.State != berth.SystemError || res.Reason != berth.Lost || len(res.Outputs) > 0 {
				t.Errorf("%+v, %v", res, err)
			}
			if !strings.Contains(res.Detail, "may still run; `berth system cleanup`") {
				t.Errorf("detail %q", res.Detail)
			}
			if rec, err := b.Record(t.Context(), "t"); err != nil || !rec.MayRun() {
				t.Errorf("record %+v, %v", rec, err)
			}
			b.engine.mu.Lock()
			away = false
			b.engine.mu.Unlock()
			found, _, err := b.Reconcile(timeout(t))
			if err != nil || len(found) != 1 || found[0].Err != nil {
				t.Errorf("found %+v, %v", found, err)
			}
			if left := b.left(); len(left) > 0 {
				t.Errorf("left over: %q", left)
			}
			if rec, err := b.Record(t.Context(), "t"); err != nil || rec.MayRun() {
				t.Errorf("record %+v, %v", rec, err)
			}
		})
	}
}
