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
	"golang.org/x/sys/unix"
)

// errDead is what the engine of the tests says where its host is broken.
var errDead = errors.New("cannot connect to the daemon")

// errSaid is what the daemon itself says there.
var errSaid = errors.New("the daemon can run nothing")

func (e *diskEngine) Broken(err error) (broken, answered bool) {
	return errors.Is(err, errDead) || errors.Is(err, errSaid), errors.Is(err, errSaid)
}

// hookFor is a quarantine with a hook that writes what it is told to the file "told".
func hookFor(t *testing.T, b *testbed) Quarantine {
	t.Helper()
	hook := filepath.Join(b.dir, "hook")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho \"$BERTH_BROKEN_TASK: $BERTH_BROKEN_WHY\" >> "+b.dir+"/told\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return Quarantine{Hook: hook, File: filepath.Join(b.dir, "broken")}
}

// told is what the hook was told.
func (b *testbed) told() string {
	raw, _ := os.ReadFile(filepath.Join(b.dir, "told"))
	return string(raw)
}

// TestBrokenHost: where the host is broken, the task that finds it out goes back to the queue, none is begun, and the
// hook is run once. When it is mended all go on, and nothing has run twice.
func TestBrokenHost(t *testing.T) {
	b := newTestbed(t)
	q := hookFor(t, b)
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
	if told := b.told(); strings.Count(told, "\n") != 1 || !strings.HasPrefix(told, "one: ") {
		t.Errorf("the hook was told %q", told)
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

// TestCanceledBeforeItIsRecorded: the error of a task whose end was asked for while it was looked at says so.
func TestCanceledBeforeItIsRecorded(t *testing.T) {
	b := newTestbed(t)
	ctx, cancel := context.WithCancelCause(timeout(t))
	cancel(berth.ErrCanceled)
	if res, err := b.Run(ctx, berth.Task{ID: "one", Steps: []berth.Step{sh("true")}}, Hooks{}); !errors.Is(err, berth.ErrCanceled) {
		t.Errorf("%+v, %v", res, err)
	}
	if _, err := b.Record(t.Context(), "one"); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("its record: %v", err)
	}
}

// mend says that the host is mended when a task waits for that, and counts how often one did.
func mend(t *testing.T, q Quarantine, waited *int) Hooks {
	return Hooks{Waiting: func(why string) {
		if why == "" {
			return
		}
		*waited++
		if _, err := q.Mended(); err != nil {
			t.Error(err)
		}
	}}
}

// TestBrokenIsBelievedOnce: a task that meets the daemon's words again on a host that was mended is what is broken.
func TestBrokenIsBelievedOnce(t *testing.T) {
	b := newTestbed(t)
	q := hookFor(t, b)
	b.cfg.Quarantine = q
	b.engine.fault = func(call string) error {
		if call == "open" {
			return errSaid
		}
		return nil
	}
	waited := 0
	res, err := b.Run(timeout(t), berth.Task{ID: "one", Steps: []berth.Step{sh("true")}}, mend(t, q, &waited))
	if err != nil || res.State != berth.SystemError || !strings.Contains(res.Detail, errSaid.Error()) || waited != 1 {
		t.Errorf("%+v, %v, it waited %d times", res, err, waited)
	}
	if why, err := q.Broken(); why != nil || err != nil {
		t.Errorf("the host is still taken to be broken: %+v, %v", why, err)
	}
}

// TestBrokenHookOfTheDead: where the process that found the host broken died before the hook had run, a task that waits
// runs it. A file that a person made is told to nobody.
func TestBrokenHookOfTheDead(t *testing.T) {
	for name, row := range map[string]struct{ file, told string }{
		"killed":  {`{"since":"2026-01-02T03:04:05Z","why":"the daemon is dead","task":"dead"}`, "dead: the daemon is dead\n"},
		"told":    {`{"since":"2026-01-02T03:04:05Z","why":"the daemon is dead","task":"dead","told":true}`, ""},
		"by hand": {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newTestbed(t)
			q := hookFor(t, b)
			b.cfg.Quarantine = q
			if err := os.WriteFile(q.File, []byte(row.file), 0o600); err != nil {
				t.Fatal(err)
			}
			for id, told := range map[string]string{"one": row.told, "two": row.told} {
				task := berth.Task{ID: id, NoWait: true, Steps: []berth.Step{sh("true")}}
				if res, err := b.Run(timeout(t), task, Hooks{}); err != nil || res.State != berth.SystemError {
					t.Errorf("%s: %+v, %v", id, res, err)
				}
				if got := b.told(); got != told {
					t.Errorf("after %s the hook was told %q", id, got)
				}
			}
			if why, err := q.Broken(); err != nil || why == nil || !why.Told {
				t.Errorf("the file says %+v, %v", why, err)
			}
		})
	}
}

// TestBrokenOnAFullDisk: the host is in quarantine, and somebody is told once, even where the file has no room for why.
func TestBrokenOnAFullDisk(t *testing.T) {
	b := newTestbed(t)
	q := hookFor(t, b)
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal("needs root:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(full, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(full, "fill"), make([]byte, 4096), 0o600); err != nil {
		t.Fatal(err)
	}
	q.File = filepath.Join(full, "broken")
	for range 2 {
		if err := q.begin(t.Context(), Broken{Why: "no room", Task: "one"}); err != nil {
			t.Error(err)
		}
	}
	if why, err := q.Broken(); err != nil || why == nil || b.told() != "one: no room\n" {
		t.Errorf("%+v, %v, told %q", why, err, b.told())
	}
}

// TestBrokenOfFallbacks: a daemon that cannot be reached is no reason why none of the images can be had.
func TestBrokenOfFallbacks(t *testing.T) {
	b := newTestbed(t)
	q := hookFor(t, b)
	b.cfg.Quarantine = q
	waited := 0
	b.engine.pull = func(context.Context, string) error {
		if waited == 0 {
			return errDead
		}
		return nil
	}
	step := sh("true")
	step.Fallbacks = []string{"other"}
	res, err := b.Run(timeout(t), berth.Task{ID: "one", Steps: []berth.Step{step}}, mend(t, q, &waited))
	if err != nil || res.State != berth.Complete || waited != 1 {
		t.Errorf("%+v, %v, it waited %d times", res, err, waited)
	}
}
