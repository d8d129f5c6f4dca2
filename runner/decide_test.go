package runner

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/google/go-cmp/cmp"
)

// endedEngine has one container, which ended so. Where closes is set, somebody else has closed its sandbox by then.
type endedEngine struct {
	berth.Engine
	berth.Sandbox
	berth.Container
	exit           berth.Exit
	closes, closed bool
}

func (e *endedEngine) Attach(context.Context, string) (berth.Sandbox, error) {
	if e.closed {
		return nil, berth.ErrNotFound
	}
	return endedSandbox{e}, nil
}

type endedSandbox struct{ *endedEngine }

func (s endedSandbox) ID() string                  { return "t" }
func (s endedSandbox) Close(context.Context) error { return nil }
func (s endedSandbox) Container(context.Context, string) (berth.Container, error) {
	return endedContainer(s), nil
}

type endedContainer struct{ *endedEngine }

func (c endedContainer) ID() string                                { return "t-1" }
func (c endedContainer) Stop(context.Context, time.Duration) error { return nil }
func (c endedContainer) Wait(context.Context) (berth.Exit, error) {
	c.closed = c.closes
	return c.exit, nil
}

// TestLastWords: how a step ended whose driver was killed is told in the same words whoever ended its container first, the engine
// or who looks for the task's end.
func TestLastWords(t *testing.T) {
	killed := berth.Exit{Reason: berth.Lost, Code: -1, Detail: errKilled.Error()}
	own := berth.Exit{Reason: berth.Exited, Code: 3}
	lost := berth.Exit{Reason: berth.Lost, Code: -1, Detail: "the daemon does not know the container any more"}
	for name, row := range map[string]struct {
		exit, want berth.Exit
		closes     bool
	}{
		"stopped here":                      {berth.Exit{Reason: berth.Stopped, Code: 137, Signal: 9, Detail: "it was removed"}, killed, false},
		"its record went with the sandbox":  {berth.Exit{Reason: berth.Lost, Code: -1, Detail: "record the exit: no such file"}, killed, true},
		"lost before":                       {lost, lost, false},
		"ended by itself, and closed since": {own, own, true},
	} {
		e := &endedEngine{exit: row.exit, closes: row.closes}
		d := &drive{r: &Runner{cfg: Config{Engine: e}}, rec: &Record{Task: berth.Task{ID: "t"}}, alive: t.Context()}
		got, err := d.lastWords("t-1")
		if diff := cmp.Diff(row.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v, %s", name, err, diff)
		}
	}
}

// TestSignaledAfterCancel: where an end was asked for and the engine could not be told, what ended the step since is no failure of its
// own.
func TestSignaledAfterCancel(t *testing.T) {
	now := time.Now()
	for name, row := range map[string]struct {
		cancel *Cancel
		ended  time.Time
		state  berth.State
	}{
		"not asked for": {nil, now, berth.ExecutorError},
		"before":        {&Cancel{At: now.Add(time.Second)}, now, berth.ExecutorError},
		"after":         {&Cancel{At: now.Add(-time.Second)}, now, berth.Canceled},
	} {
		exit := berth.Exit{Reason: berth.Signaled, Code: 137, Signal: 9, Ended: row.ended}
		rec := &Record{Task: berth.Task{ID: "t", Steps: []berth.Step{{Command: []string{"x"}}}}, Steps: []StepRecord{{Started: true, Exit: &exit}}, Cancel: row.cancel}
		d := &drive{r: New(Config{}), rec: rec, stop: t.Context(), alive: t.Context()}
		if got := d.decide(nil, collected{}); got.State != row.state || got.ExitCode != 137 {
			t.Errorf("%s: %+v; want %s", name, got, row.state)
		}
	}
}

// TestCancelUnheard cancels a task whose engine cannot be told until another has killed it.
func TestCancelUnheard(t *testing.T) {
	b := newTestbed(t)
	back := time.Now().Add(time.Second)
	b.engine.fault = func(call string) error {
		if call == "stop" && time.Now().Before(back) {
			return fmt.Errorf("stop: %w", berth.ErrUnavailable)
		}
		return nil
	}
	asked := make(chan error, 1)
	got, err := b.Run(timeout(t), berth.Task{ID: "t", Steps: []berth.Step{sh("sleep 0.5; kill -9 $$")}}, Hooks{Started: func(int, berth.Container) {
		asked <- b.Cancel(t.Context(), "t", false)
	}})
	if err != nil || got.State != berth.Canceled {
		t.Errorf("%+v, %v", got, err)
	}
	if err := <-asked; err != nil {
		t.Error(err)
	}
	b.mustBeDone(t, "t", got)
}
