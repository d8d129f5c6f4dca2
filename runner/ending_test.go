package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/ledger"
	"github.com/google/go-cmp/cmp"
)

// TestCancel ends a task in each of its phases, by its context and by Cancel.
func TestCancel(t *testing.T) {
	const forever = `echo part > $R/out/a; sleep 30`
	for _, c := range []struct {
		name  string
		steps []berth.Step
		point string // at which the end is asked for
		now   bool
		want  berth.Result
		runs  int
	}{
		{
			name: "before it is admitted", steps: []berth.Step{sh(forever)}, point: "admit",
			want: berth.Result{State: berth.Canceled, Reason: berth.Stopped, ExitCode: -1, Detail: "an end was asked for"},
		},
		{
			name: "before its images are there", steps: []berth.Step{sh(forever)}, point: "admitted",
			want: berth.Result{State: berth.Canceled, Reason: berth.Stopped, ExitCode: -1, Detail: "an end was asked for"},
		},
		{
			name: "before its sandbox is there", steps: []berth.Step{sh(forever)}, point: "opening",
			want: berth.Result{State: berth.Canceled, Reason: berth.Stopped, ExitCode: -1, Detail: "an end was asked for"},
		},
		{
			name: "before its step starts", steps: []berth.Step{sh(forever)}, point: "open",
			want: berth.Result{State: berth.Canceled, Reason: berth.Stopped, ExitCode: -1, Detail: "an end was asked for"},
		},
		{
			name: "while its step runs, with outputs", steps: []berth.Step{sh(forever)}, point: "step started", runs: 1,
			want: berth.Result{
				State: berth.Canceled, Reason: berth.Stopped, ExitCode: 143, Detail: "an end was asked for",
				Outputs: []berth.OutputFile{{URL: "a", Path: "/out/a", Size: 5}},
			},
		},
		{
			name: "at once, without outputs", steps: []berth.Step{sh(`trap "" TERM; ` + forever)}, point: "step started", runs: 1, now: true,
			want: berth.Result{State: berth.Canceled, Reason: berth.Stopped, ExitCode: 143, Detail: "an end was asked for"},
		},
		{
			name: "after the last step: it is complete", steps: []berth.Step{sh(`echo all > $R/out/a`)}, point: "step recorded", runs: 1,
			want: berth.Result{State: berth.Complete, Reason: berth.Exited, Outputs: []berth.OutputFile{{URL: "a", Path: "/out/a", Size: 4}}},
		},
		{
			name: "between two steps", steps: []berth.Step{sh(`echo half > $R/out/a`), sh(`true`)}, point: "step recorded", runs: 1,
			want: berth.Result{
				State: berth.Canceled, Reason: berth.Stopped, Detail: "an end was asked for",
				Outputs: []berth.OutputFile{{URL: "a", Path: "/out/a", Size: 5}},
			},
		},
		{
			name: "when it is decided", steps: []berth.Step{sh(`echo all > $R/out/a`)}, point: "outcome", runs: 1,
			want: berth.Result{State: berth.Complete, Reason: berth.Exited, Outputs: []berth.OutputFile{{URL: "a", Path: "/out/a", Size: 4}}},
		},
	} {
		for _, by := range []string{"context", "Cancel"} {
			if c.now && by == "context" {
				continue
			}
			t.Run(c.name+", by "+by, func(t *testing.T) {
				b := newTestbed(t)
				ctx, cancel := context.WithCancelCause(timeout(t))
				defer cancel(nil)
				asked := false
				heard := make(chan struct{})
				hear := sync.OnceFunc(func() { close(heard) })
				at := func(point string) {
					if point != c.point || asked {
						return
					}
					asked = true
					if by == "context" {
						cancel(berth.ErrCanceled)
					} else if err := b.Cancel(ctx, "t", c.now); err != nil {
						t.Error(err)
					}
					if point == "step started" {
						for !written(filepath.Join(b.engine.dir, "sandboxes", "t", "vol", "out", "a")) {
							time.Sleep(time.Millisecond)
						}
					} else if by == "Cancel" {
						select {
						case <-heard:
						case <-ctx.Done():
						}
					}
				}
				task := berth.Task{Grace: 5 * time.Second, Steps: c.steps, Outputs: []berth.Output{{URL: "a", Path: "/out/a"}}}
				got, err := b.Run(ctx, b.at(task), Hooks{At: at, Ending: hear})
				if err != nil {
					t.Fatal(err)
				}
				want := c.want
				if want.Outputs == nil {
					want.Outputs = []berth.OutputFile{}
				}
				if diff := cmp.Diff(want, plain(got)); diff != "" {
					t.Error(diff)
				}
				b.mustBeDone(t, "t", got)
				if len(b.runs()) != c.runs {
					t.Errorf("ran: %q, want %d", b.runs(), c.runs)
				}
			})
		}
	}
}

// TestCancelTwice ends a step that ignores TERM with its grace, and then at once.
func TestCancelTwice(t *testing.T) {
	b := newTestbed(t)
	ctx := timeout(t)
	began := time.Now()
	got, err := b.Run(ctx, berth.Task{
		ID: "t", Grace: 25 * time.Second,
		Steps: []berth.Step{sh(`trap "" TERM; echo > $R/v/ready; while :; do sleep 0.05; done`)}, Volumes: []berth.Volume{{Path: "/v"}},
	}, Hooks{At: func(point string) {
		switch point {
		case "step started":
			for !written(filepath.Join(b.engine.dir, "sandboxes", "t", "vol", "v", "ready")) {
				time.Sleep(time.Millisecond)
			}
			if err := b.Cancel(ctx, "t", false); err != nil {
				t.Error(err)
			}
			time.AfterFunc(200*time.Millisecond, func() {
				if err := b.Cancel(ctx, "t", true); err != nil {
					t.Error(err)
				}
			})
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); got.State != berth.Canceled || took > 10*time.Second {
		t.Errorf("%s after %s", got.State, took)
	}
	b.mustBeDone(t, "t", got)
}

func TestDeadlineOfContext(t *testing.T) {
	b := newTestbed(t)
	ctx, cancel := context.WithCancelCause(timeout(t))
	defer cancel(nil)
	got, err := b.Run(ctx, berth.Task{ID: "t", Steps: []berth.Step{sh("sleep 30")}}, Hooks{
		Started: func(int, berth.Container) { cancel(berth.ErrDeadline) },
	})
	if err != nil || got.State != berth.ExecutorError || got.Reason != berth.TimedOut || ExitCode(got) != 124 {
		t.Errorf("%+v, %v", got, err)
	}
	b.mustBeDone(t, "t", got)
}

// TestShutdown leaves a running container to the next process, which brings the task to its end.
func TestShutdown(t *testing.T) {
	for _, cause := range []error{berth.ErrShutdown, nil, errors.New("whatever")} {
		t.Run(fmt.Sprint(cause), func(t *testing.T) {
			b := newTestbed(t)
			ctx, cancel := context.WithCancelCause(timeout(t))
			defer cancel(nil)
			id, err := b.Submit(ctx, b.at(berth.Task{
				Steps:     []berth.Step{sh(`while [ ! -e $R/v/go ]; do sleep 0.01; done; echo x > $R/out/a`)},
				Volumes:   []berth.Volume{{Path: "/v"}},
				Outputs:   []berth.Output{{URL: "a", Path: "/out/a"}},
				Resources: berth.Resources{Limits: berth.Limits{CPU: 1}},
			}))
			if err != nil {
				t.Fatal(err)
			}
			_, err = b.Resume(ctx, id, Hooks{Started: func(int, berth.Container) { cancel(cause) }})
			if want := context.Cause(ctx); !errors.Is(err, want) {
				t.Errorf("error %v, want %v", err, want)
			}
			if rec := must(b.Record(t.Context(), id)); rec.State != berth.Running {
				t.Errorf("it is %s", rec.State)
			}
			writeFile(filepath.Join(b.engine.dir, "sandboxes", id, "vol", "v", "go"), "")
			got, err := b.Resume(timeout(t), id, Hooks{})
			if err != nil || got.State != berth.Complete {
				t.Errorf("%+v, %v", got, err)
			}
			b.mustBeDone(t, id, got)
			if len(b.runs()) != 1 {
				t.Errorf("ran: %q", b.runs())
			}
		})
	}
}

// TestPark leaves a detached task to its containers, and goes on with it when they have ended.
func TestPark(t *testing.T) {
	b := newTestbed(t)
	ctx := timeout(t)
	id, err := b.Submit(ctx, b.at(berth.Task{
		Steps:     []berth.Step{sh(`while [ ! -e $R/v/1 ]; do sleep 0.01; done`), sh(`while [ ! -e $R/v/2 ]; do sleep 0.01; done; echo x > $R/out/a`)},
		Volumes:   []berth.Volume{{Path: "/v"}},
		Outputs:   []berth.Output{{URL: "a", Path: "/out/a"}},
		Resources: berth.Resources{Limits: berth.Limits{CPU: 1}},
	}))
	if err != nil {
		t.Fatal(err)
	}
	for _, step := range []string{"1", "2"} {
		for range 2 { // a second look changes nothing
			if _, err := b.Drive(ctx, id, Hooks{}); !errors.Is(err, ErrParked) {
				t.Fatalf("error %v, want %v", err, ErrParked)
			}
		}
		if got := b.holders(); !slices.Contains(got, os.Getpid()) {
			t.Errorf("while it is parked, the lease is held by %v, and not by the monitor", got)
		}
		if found, resume, err := b.Reconcile(ctx); len(found)+len(resume) > 0 || err != nil {
			t.Errorf("reconcile found %v, %v, %v", found, resume, err)
		}
		writeFile(filepath.Join(b.engine.dir, "sandboxes", id, "vol", "v", step), "")
	}
	got, err := b.Drive(ctx, id, Hooks{})
	for errors.Is(err, ErrParked) {
		got, err = b.Drive(ctx, id, Hooks{})
	}
	if err != nil || got.State != berth.Complete || len(got.Outputs) != 1 {
		t.Errorf("%+v, %v", got, err)
	}
	b.mustBeDone(t, id, got)
	if diff := cmp.Diff([]string{id + "-1", id + "-2"}, b.runs()); diff != "" {
		t.Error(diff)
	}
	if again, err := b.Resume(ctx, id, Hooks{}); err != nil || again.State != got.State {
		t.Errorf("again: %+v, %v", again, err)
	}
}

// holders are the processes that hold the one lease beside those that drive its task.
func (b *testbed) holders() (pids []int) {
	for _, l := range must(b.ledger.Snapshot(context.Background())).Leases {
		for _, h := range l.Holders {
			pids = append(pids, h.PID)
		}
	}
	return pids
}

// TestContainerHolds has a container hold the lease of its task, while it runs and no longer.
func TestContainerHolds(t *testing.T) {
	b := newTestbed(t)
	var pid int
	var running, ended []int
	_, err := b.Run(timeout(t), berth.Task{
		ID: "t", Steps: []berth.Step{sh("until [ -e $R/v/looked ]; do sleep 0.02; done")}, Volumes: []berth.Volume{{Path: "/v"}},
		Resources: berth.Resources{Limits: berth.Limits{CPU: 1}},
	}, Hooks{
		Started: func(_ int, c berth.Container) {
			pid, running = c.(Process).Pid(), b.holders()
			if err := os.WriteFile(filepath.Join(b.engine.dir, "sandboxes", "t", "vol", "v", "looked"), nil, 0o600); err != nil {
				t.Error(err)
			}
		},
		Ended: func(int, berth.Exit) { ended = b.holders() },
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(running, []int{pid}) || len(ended) > 0 {
		t.Errorf("held by %v while process %d ran, by %v afterwards", running, pid, ended)
	}
}

// TestBridge: while a detached task's step starts, who keeps its container holds the lease, should the driver be killed; then the
// container does.
func TestBridge(t *testing.T) {
	b := newTestbed(t)
	var starting, running []int
	var pid int
	_, err := b.Submit(timeout(t), berth.Task{
		ID: "t", Steps: []berth.Step{sh("until [ -e $R/v/looked ]; do sleep 0.02; done")}, Volumes: []berth.Volume{{Path: "/v"}},
		Resources: berth.Resources{Limits: berth.Limits{CPU: 1}},
	})
	if err != nil {
		t.Fatal(err)
	}
	hooks := Hooks{
		At: func(at string) {
			if at == "step start" {
				starting = b.holders()
			}
		},
		Started: func(_ int, c berth.Container) {
			pid, running = c.(Process).Pid(), b.holders()
			if err := os.WriteFile(filepath.Join(b.engine.dir, "sandboxes", "t", "vol", "v", "looked"), nil, 0o600); err != nil {
				t.Error(err)
			}
		},
	}
	for {
		if _, err = b.Drive(timeout(t), "t", hooks); !errors.Is(err, ErrParked) {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(starting, []int{monitorPID()}) || !slices.Equal(running, []int{pid}) {
		t.Errorf("held by %v while process %d was started, by %v while it ran; want %d, %[2]d", starting, pid, running, monitorPID())
	}
}

// TestCancelParked ends a task that no process drives.
func TestCancelParked(t *testing.T) {
	b := newTestbed(t)
	ctx := timeout(t)
	id, err := b.Submit(ctx, b.at(berth.Task{
		Steps:   []berth.Step{sh(`echo x > $R/out/a; echo > $R/out/ready; sleep 30`)},
		Outputs: []berth.Output{{URL: "a", Path: "/out/a"}}, Grace: time.Second,
	}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Drive(ctx, id, Hooks{}); !errors.Is(err, ErrParked) {
		t.Fatal(err)
	}
	for !written(filepath.Join(b.engine.dir, "sandboxes", id, "vol", "out", "ready")) && ctx.Err() == nil {
		time.Sleep(time.Millisecond)
	}
	if err := b.Cancel(ctx, id, false); err != nil {
		t.Fatal(err)
	}
	got := must(b.Wait(ctx, id))
	if got.State != berth.Canceled || len(got.Outputs) != 1 {
		t.Errorf("%+v", got)
	}
	b.mustBeDone(t, id, got)
	if err := b.Cancel(ctx, id, true); err != nil {
		t.Errorf("of a task that has ended: %v", err)
	}
	if err := b.Cancel(ctx, "nobody", true); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("of no task: %v", err)
	}
}

// TestCancelWhileParking asks for the end at the moment when the driver goes deaf.
func TestCancelWhileParking(t *testing.T) {
	b := newTestbed(t)
	ctx := timeout(t)
	id, err := b.Submit(ctx, berth.Task{Steps: []berth.Step{sh(`sleep 30`)}, Grace: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	canceled := make(chan error, 1)
	for _, point := range []string{"parking", "parked"} {
		asked := false
		_, err = b.Drive(ctx, id, Hooks{At: func(at string) {
			if at == point && !asked && point == "parking" {
				asked = true
				if _, err := b.store.Append(ctx, b.event(id, KindCancel, berth.Canceling, "", Cancel{})); err != nil {
					t.Error(err)
				}
				go func() { canceled <- b.pass(ctx, id) }()
			}
		}})
		if err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := <-canceled; err != nil {
		t.Error(err)
	}
	got := must(b.Wait(ctx, id))
	if got.State != berth.Canceled {
		t.Errorf("%+v", got)
	}
	b.mustBeDone(t, id, got)
}

// TestWait waits for room that another task has, says so, and runs when that has ended.
func TestWaiting(t *testing.T) {
	b := newTestbed(t)
	ctx := timeout(t)
	lease, err := b.ledger.Acquire(ctx, ledger.Request{Task: "other", CPU: 2})
	if err != nil {
		t.Fatal(err)
	}
	task := berth.Task{ID: "t", Steps: []berth.Step{sh("true")}, Resources: berth.Resources{Limits: berth.Limits{CPU: 1}}}
	var whys []string
	got, err := b.Run(ctx, task, Hooks{Waiting: func(why string) {
		whys = append(whys, why)
		if len(whys) == 1 {
			lease.Release()
		}
	}})
	if err != nil || got.State != berth.Complete {
		t.Errorf("%+v, %v", got, err)
	}
	if len(whys) < 2 || !strings.Contains(whys[0], "other") || whys[len(whys)-1] != "" {
		t.Errorf("it waited for %q", whys)
	}
	rec := must(b.Record(ctx, "t"))
	if len(rec.Log) == 0 || rec.Log[0].Text != whys[0] {
		t.Errorf("log %v, want %q", rec.Log, whys[0])
	}
	b.mustBeDone(t, "t", got)
}

func TestNoWait(t *testing.T) {
	b := newTestbed(t)
	ctx := timeout(t)
	lease, err := b.ledger.Acquire(ctx, ledger.Request{Task: "other", CPU: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	task := berth.Task{ID: "t", NoWait: true, Steps: []berth.Step{sh("true")}, Resources: berth.Resources{Limits: berth.Limits{CPU: 1}}}
	got, err := b.Run(ctx, task, Hooks{})
	if err != nil || got.State != berth.SystemError || !strings.Contains(got.Detail, "no room now") {
		t.Errorf("%+v, %v", got, err)
	}
	if len(b.runs()) > 0 {
		t.Errorf("ran: %q", b.runs())
	}
}

// TestUnavailable answers ErrUnavailable from one call of the engine, for a while or for ever.
func TestUnavailable(t *testing.T) {
	for _, call := range []string{"open", "start", "wait", "container", "remove", "close", "attach"} {
		t.Run(call, func(t *testing.T) {
			b := newTestbed(t)
			b.cfg.Clock = fastClock{}
			left := 3
			b.engine.fault = func(c string) error {
				if c == call && left > 0 {
					left--
					return fmt.Errorf("%s: %w", c, berth.ErrUnavailable)
				}
				return nil
			}
			got, err := b.Run(timeout(t), berth.Task{ID: "t", Steps: []berth.Step{sh("true"), sh("true")}}, Hooks{})
			if err != nil || got.State != berth.Complete {
				t.Errorf("%+v, %v", got, err)
			}
			b.mustBeDone(t, "t", got)
			if len(b.runs()) != 2 {
				t.Errorf("ran: %q", b.runs())
			}
		})
	}
	t.Run("for ever", func(t *testing.T) {
		b := newTestbed(t)
		b.cfg.Clock = fastClock{}
		calls := 0
		b.engine.fault = func(c string) error {
			if c != "start" {
				return nil
			}
			calls++
			return fmt.Errorf("start: %w", berth.ErrUnavailable)
		}
		got, err := b.Run(timeout(t), berth.Task{ID: "t", Steps: []berth.Step{sh("true")}}, Hooks{})
		if err != nil || got.State != berth.SystemError || calls != 6 {
			t.Errorf("%+v, %v after %d calls", got, err, calls)
		}
		b.mustBeDone(t, "t", got)
	})
}

// fastClock waits for a thousandth of the time, and so never for a lease to be looked after.
type fastClock struct{}

func (fastClock) Now() time.Time { return time.Now() }
func (fastClock) After(d time.Duration) <-chan time.Time {
	return time.After(max(d/1000, time.Millisecond))
}

// TestLost loses what a step was, with and without leave to run it again.
func TestLost(t *testing.T) {
	for _, c := range []struct {
		name  string
		again bool
		lose  string // what is lost at "step started"
		state berth.State
		runs  []string
	}{
		{"container", false, "c", berth.SystemError, []string{"t-1"}},
		{"container, may run again", true, "c", berth.Complete, []string{"t-1", "t-1-r1", "t-2-r1"}},
		{"sandbox", false, "", berth.SystemError, []string{"t-1"}},
		{"sandbox, may run again", true, "", berth.Complete, []string{"t-1", "t-1-r1", "t-2-r1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTestbed(t)
			ctx := timeout(t)
			id, err := b.Submit(ctx, b.at(berth.Task{
				RunAgain: c.again, Steps: []berth.Step{sh("sleep 0.3"), sh("echo x > $R/out/a")},
				Outputs: []berth.Output{{URL: "a", Path: "/out/a"}},
			}))
			if err != nil {
				t.Fatal(err)
			}
			sub, cancel := context.WithCancelCause(ctx)
			if _, err := b.Resume(sub, id, Hooks{Started: func(int, berth.Container) { cancel(berth.ErrShutdown) }}); !errors.Is(err, berth.ErrShutdown) {
				t.Fatal(err)
			}
			for len(b.runs()) == 0 {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(400 * time.Millisecond) // its supervisor has ended
			if err := os.RemoveAll(filepath.Join(b.engine.dir, "sandboxes", id, c.lose)); err != nil {
				t.Fatal(err)
			}
			if err := os.MkdirAll(filepath.Join(b.engine.dir, "sandboxes", id, c.lose), 0o700); c.lose != "" && err != nil {
				t.Fatal(err)
			} else if c.lose == "" {
				_ = os.Remove(filepath.Join(b.engine.dir, "sandboxes", id))
			}
			got, err := b.Resume(ctx, id, Hooks{})
			if err != nil || got.State != c.state {
				t.Errorf("%+v, %v", got, err)
			}
			if c.state == berth.SystemError && (got.Reason != berth.Lost || got.ExitCode != -1) {
				t.Errorf("%+v", got)
			}
			if c.state == berth.SystemError {
				mustSayStart(t, got)
			}
			if diff := cmp.Diff(c.runs, b.runs()); diff != "" {
				t.Error(diff)
			}
			b.mustBeDone(t, id, got)
		})
	}
}

// mustSayStart checks that the result of a lost task says what was seen of its start.
func mustSayStart(t *testing.T, got berth.Result) {
	t.Helper()
	if got.Started == nil || got.Runtime != "sh" || len(got.Steps) == 0 {
		t.Fatalf("of its start it says: %v, %q, %d steps", got.Started, got.Runtime, len(got.Steps))
	}
	last := got.Steps[len(got.Steps)-1].Exit
	if last.Reason != berth.Lost || last.Started.IsZero() || last.Ended.Before(last.Started) || time.Since(last.Started) > time.Hour {
		t.Errorf("the lost step: %+v", last)
	}
}

// TestReconcile puts right what dead processes left.
func TestReconcile(t *testing.T) {
	b := newTestbed(t)
	ctx := timeout(t)
	// A sandbox and a directory of no task, and a detached task that nobody drives.
	if _, err := b.engine.Open(ctx, berth.SandboxSpec{ID: "stray"}); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(b.dir, "tasks", "nobody", "work"), 0o700); err != nil {
		t.Fatal(err)
	}
	id, err := b.Submit(ctx, berth.Task{ID: "waits", Steps: []berth.Step{sh("true")}})
	if err != nil {
		t.Fatal(err)
	}
	found, resume, err := b.Reconcile(ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := []Found{{Task: "stray", What: "a sandbox of no task"}, {Task: "nobody", What: "a directory of no task"}}
	if diff := cmp.Diff(want, found); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(resume, []string{id}) {
		t.Errorf("to be resumed: %q", resume)
	}
	if found, _, err := b.Reconcile(ctx); len(found) > 0 || err != nil {
		t.Errorf("again: %v, %v", found, err)
	}
	got := must(b.Resume(ctx, id, Hooks{}))
	b.mustBeDone(t, id, got)
}
