package runner

import (
	"context"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// nothing is an engine whose steps end at once, to measure what the runner costs.
type nothing struct{}

func (nothing) Info(context.Context) (berth.Info, error) { return berth.Info{Name: "nothing"}, nil }
func (nothing) Image(context.Context, berth.ImageRequest) (berth.Image, error) {
	return berth.Image{ID: "i", Digest: "sha256:0"}, nil
}
func (n nothing) Open(context.Context, berth.SandboxSpec) (berth.Sandbox, error) { return n, nil }
func (n nothing) Attach(context.Context, string) (berth.Sandbox, error)          { return n, nil }
func (nothing) List(context.Context) ([]berth.Status, error)                     { return nil, nil }
func (nothing) ID() string                                                       { return "n" }
func (n nothing) Start(context.Context, berth.StepSpec) (berth.Container, error) { return n, nil }
func (n nothing) Container(context.Context, string) (berth.Container, error)     { return n, nil }
func (nothing) Volume(context.Context, string) (*os.Root, error)                 { return nil, berth.ErrUnsupported }

func (nothing) DiskEnforcement() berth.DiskEnforcement    { return berth.DiskNone }
func (nothing) Close(context.Context) error               { return nil }
func (nothing) Stop(context.Context, time.Duration) error { return nil }
func (nothing) Remove(context.Context) error              { return nil }
func (nothing) Wait(context.Context) (berth.Exit, error) {
	return berth.Exit{Reason: berth.Exited, Started: time.Now(), Ended: time.Now()}, nil
}

func BenchmarkRun(b *testing.B) {
	bed := openTestbed(b.TempDir())
	defer func() { _ = bed.store.Close() }()
	bed.cfg.Engine = nothing{}
	for b.Loop() {
		task := berth.Task{Steps: []berth.Step{sh("true")}, Resources: berth.Resources{Limits: berth.Limits{CPU: 1}}}
		if res, err := bed.Run(b.Context(), task, Hooks{}); err != nil || res.State != berth.Complete {
			b.Fatal(res, err)
		}
	}
}

// TestNothingStays runs many tasks: no goroutine and no descriptor may be left of them.
func TestNothingStays(t *testing.T) {
	b := newTestbed(t)
	b.cfg.Engine = nothing{}
	ctx := timeout(t)
	run := func() {
		task := berth.Task{Steps: []berth.Step{sh("true")}, Resources: berth.Resources{Limits: berth.Limits{CPU: 1}}}
		if _, err := b.Run(ctx, task, Hooks{}); err != nil {
			t.Fatal(err)
		}
	}
	run()
	goroutines, files := runtime.NumGoroutine(), openFiles()
	for range 20 {
		run()
	}
	// The runtime may take a moment to end a goroutine whose function has returned.
	for range 100 {
		if runtime.NumGoroutine() <= goroutines {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if now := runtime.NumGoroutine(); now > goroutines {
		t.Errorf("%d goroutines, before %d", now, goroutines)
	}
	if now := openFiles(); now > files {
		t.Errorf("%d open files, before %d", now, files)
	}
}

func openFiles() int { return len(must(os.ReadDir("/proc/self/fd"))) }
