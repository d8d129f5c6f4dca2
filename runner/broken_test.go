package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// errDead is what the engine of the tests says where its host is broken.
var errDead = errors.New("cannot connect to the daemon")

func (e *diskEngine) Broken(err error) (broken, answered bool) { return errors.Is(err, errDead), false }

// TestBrokenHost: where the host is broken, the task that finds it out goes back to the queue, none is begun, and the
// hook is run once. When it is mended all go on, and nothing has run twice.
func TestBrokenHost(t *testing.T) {
	b := newTestbed(t)
	hook := filepath.Join(b.dir, "hook")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho \"$BERTH_BROKEN_TASK: $BERTH_BROKEN_WHY\" >> "+b.dir+"/told\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	q := Quarantine{Hook: hook, File: filepath.Join(b.dir, "broken")}
	b.cfg.Quarantine = q
	var mu sync.Mutex
	dead, calls := true, 0
	b.engine.fault = func(call string) error {
		mu.Lock()
		defer mu.Unlock()
		if call != "open" {
			return nil
		}
		calls++
		if dead {
			return fmt.Errorf("docker: %w", errDead)
		}
		return nil
	}
	waiting := make(chan string, 8)
	var wg sync.WaitGroup
	run := func(id string, r berth.Resources) {
		wg.Go(func() {
			res, err := b.Run(timeout(t), berth.Task{ID: id, Steps: []berth.Step{sh("echo hello")}, Resources: r}, Hooks{Waiting: func(why string) {
				if why != "" {
					waiting <- id + " " + why
				}
			}})
			if err != nil || res.State != berth.Complete {
				t.Errorf("%s: %+v, %v", id, res, err)
			}
		})
	}
	first := func(id string, r berth.Resources) {
		t.Helper()
		run(id, r)
		select {
		case why := <-waiting:
			if !strings.HasPrefix(why, id+" until this host is mended") || !strings.Contains(why, errDead.Error()) {
				t.Errorf("it waits %q", why)
			}
		case <-time.After(20 * time.Second):
			t.Fatal("it does not wait")
		}
		if rec, err := b.Record(t.Context(), id); err != nil || rec.State != berth.Queued {
			t.Errorf("%s is %s, %v", id, rec.State, err)
		}
	}
	first("one", berth.Resources{})
	first("two", berth.Resources{Limits: berth.Limits{CPU: 1}})
	if _, err := b.Run(timeout(t), berth.Task{ID: "three", NoWait: true, Steps: []berth.Step{sh("true")}}, Hooks{}); err != nil {
		t.Error(err)
	} else if rec, err := b.Record(t.Context(), "three"); err != nil || rec.Result.State != berth.SystemError || !strings.Contains(rec.Result.Detail, "this host is broken") {
		t.Errorf("one that does not wait: %+v, %v", rec.Result, err)
	}
	mu.Lock()
	if calls != 1 {
		t.Errorf("%d sandboxes were asked for", calls)
	}
	dead = false
	mu.Unlock()
	why, err := q.Mended()
	if err != nil || why == nil || why.Task != "one" {
		t.Errorf("mended: %+v, %v", why, err)
	}
	wg.Wait()
	if told, err := os.ReadFile(filepath.Join(b.dir, "told")); err != nil || strings.Count(string(told), "\n") != 1 || !strings.HasPrefix(string(told), "one: ") {
		t.Errorf("the hook was told %q, %v", told, err)
	}
	if runs := b.runs(); len(runs) != 2 {
		t.Errorf("runs %v", runs)
	}
	if left := b.left(); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if why, err := q.Mended(); why != nil || err != nil {
		t.Errorf("mended twice: %+v, %v", why, err)
	}
}

// TestBrokenHostIsLeft: a task that waits for the host to be mended can be ended; and without a quarantine it fails.
func TestBrokenHostIsLeft(t *testing.T) {
	b := newTestbed(t)
	b.engine.fault = func(call string) error {
		if call == "open" {
			return errDead
		}
		return nil
	}
	task := berth.Task{ID: "one", Steps: []berth.Step{sh("true")}}
	if res, err := b.Run(timeout(t), task, Hooks{}); err != nil || res.State != berth.SystemError || !strings.Contains(res.Detail, errDead.Error()) {
		t.Errorf("without a quarantine: %+v, %v", res, err)
	}
	b.cfg.Quarantine = Quarantine{Hook: "true", File: filepath.Join(b.dir, "broken")}
	ctx, cancel := context.WithCancelCause(timeout(t))
	task.ID = "two"
	res, err := b.Run(ctx, task, Hooks{Waiting: func(string) { cancel(berth.ErrCanceled) }})
	if err != nil || res.State != berth.Canceled {
		t.Errorf("ended while it waits: %+v, %v", res, err)
	}
}
