package runner

import (
	"context"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
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

// TestManyAtOnce runs more tasks at once than the machine has room for.
func TestManyAtOnce(t *testing.T) {
	b := newTestbed(t)
	ctx := timeout(t)
	var running, most, complete atomic.Int32
	b.cfg.Engine = busy{running: &running, most: &most}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			task := berth.Task{Steps: []berth.Step{sh("true")}, Resources: berth.Resources{Limits: berth.Limits{CPU: 1}}}
			res, err := b.Run(ctx, task, Hooks{})
			if err != nil || res.State != berth.Complete {
				t.Error(res, err)
			}
			complete.Add(1)
		})
	}
	wg.Wait()
	if complete.Load() != 8 || most.Load() != 2 {
		t.Errorf("%d ended, at most %d at once; want 8 and 2", complete.Load(), most.Load())
	}
}

// busy is an engine whose steps take a moment, and are counted.
type busy struct {
	nothing
	running, most *atomic.Int32
}

func (b busy) Open(context.Context, berth.SandboxSpec) (berth.Sandbox, error) { return b, nil }
func (b busy) Attach(context.Context, string) (berth.Sandbox, error)          { return b, nil }
func (b busy) Start(context.Context, berth.StepSpec) (berth.Container, error) { return b, nil }
func (b busy) Wait(ctx context.Context) (berth.Exit, error) {
	now := b.running.Add(1)
	defer b.running.Add(-1)
	for most := b.most.Load(); now > most && !b.most.CompareAndSwap(most, now); most = b.most.Load() {
		continue
	}
	for i := 0; b.most.Load() < 2 && i < 1000; i++ { // there is room for a second one
		time.Sleep(10 * time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond)
	return b.nothing.Wait(ctx)
}

// TestStoreFails loses the store in the middle of a task: that is said, and nothing of the task stays.
func TestStoreFails(t *testing.T) {
	for _, point := range []string{"admitted", "step started", "step ended", "step recorded", "closed"} {
		t.Run(point, func(t *testing.T) {
			b := newTestbed(t)
			b.cfg.Clock = fastClock{}
			_, err := b.Run(timeout(t), berth.Task{ID: "t", Steps: []berth.Step{sh("true")}, Grace: time.Second}, Hooks{At: func(at string) {
				if at == point {
					_ = b.store.Close()
				}
			}})
			if err == nil {
				t.Error("no error")
			}
			if left := b.left(); left != nil {
				t.Errorf("left over: %q", left)
			}
		})
	}
}

func openFiles() int { return len(must(os.ReadDir("/proc/self/fd"))) }
