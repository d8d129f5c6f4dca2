package ledger

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/berth-project/berth"
)

var bg = context.Background()

// TestHideFigures: what is said of a request that waits tells what it asks for, and nothing of what there is.
func TestHideFigures(t *testing.T) {
	cfg := config(t)
	cfg.Capacity.Disk, cfg.Capacity.DiskOf, cfg.HideFigures = 100, "8:1", true
	l := open(t, cfg)
	a, err := l.Acquire(bg, Request{Task: "a", CPU: 1.5, Memory: cfg.Capacity.Memory - 1, Disk: 80})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Release()
	_, err = l.Acquire(bg, Request{Task: "b", CPU: 1, Memory: 10, Disk: 30, NoWait: true})
	isKind(t, err, berth.ErrUnavailable)
	by := "lent to a (" + userName(l.id.hostUID) + ")"
	want := "lend to b: unavailable: waiting for 1 CPU: too many are " + by + "; waiting for 10B of memory: too much is " + by + "; waiting for 30B of disk: too much is " + by
	if err.Error() != want {
		t.Errorf("error is\n%q, want\n%q", err, want)
	}
}

func TestAcquireAndRelease(t *testing.T) {
	l := open(t, config(t))
	a, err := l.Acquire(bg, Request{Task: "a", CPU: 1.5, Memory: 1 << 30})
	if err != nil {
		t.Fatal(err)
	}
	_, err = l.Acquire(bg, Request{Task: "b", CPU: 1, NoWait: true})
	isKind(t, err, berth.ErrUnavailable)
	want := "lend to b: unavailable: waiting for 1 CPU: 1.5 of 2 are lent to a (" + userName(l.id.hostUID) + ")"
	if err.Error() != want {
		t.Errorf("error is\n%q, want\n%q", err, want)
	}
	s, err := l.Snapshot(bg)
	if err != nil || len(s.Leases) != 1 || s.Lent != (Amount{CPU: 1.5, Memory: 1 << 30}) {
		t.Errorf("snapshot is %+v (%v)", s, err)
	}
	a.Release()
	a.Release()
	b, err := l.Acquire(bg, Request{Task: "b", CPU: 2, NoWait: true})
	if err != nil {
		t.Fatal(err)
	}
	b.Release()
	if s, _ := l.Snapshot(bg); len(s.Leases)+len(s.Waiting)+len(s.Ignored) != 0 {
		t.Errorf("left over: %+v", s)
	}
}

func TestRefused(t *testing.T) {
	l := open(t, config(t))
	for _, c := range []struct {
		name string
		req  Request
		kind error
		says string
	}{
		{"more CPU than there is", Request{Task: "t", CPU: 4}, berth.ErrExhausted, "task requires at least 4 CPU(s), but this machine has a maximum of 2"},
		{"more memory than there is", Request{Task: "t", Memory: 5 << 29}, berth.ErrExhausted, "task requires at least 2.5GiB of memory, but this machine has a maximum of 2GiB"},
		{"a task without ID", Request{CPU: 1}, berth.ErrInvalid, "id"},
		{"less than no memory", Request{Task: "t", Memory: -1}, berth.ErrInvalid, "-1 bytes"},
		{"the same device twice", Request{Task: "t", Devices: []Device{{ID: "g"}, {ID: "g"}}}, berth.ErrInvalid, "asked for twice"},
		{"more of a device than it has", Request{Task: "t", Devices: []Device{{ID: "g", Bytes: 3, Total: 2}}}, berth.ErrInvalid, "3 of 2 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			isKind(t, l.Check(bg, c.req), c.kind)
			_, err := l.Acquire(bg, c.req)
			isKind(t, err, c.kind)
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not say %q", err, c.says)
			}
		})
	}
}

func TestNothingAskedForIsNothingLent(t *testing.T) {
	l := open(t, config(t))
	full, err := l.Acquire(bg, Request{Task: "full", CPU: 2, Memory: 2 << 30})
	if err != nil {
		t.Fatal(err)
	}
	defer full.Release()
	lease, err := l.Acquire(bg, Request{Task: "free"})
	if err != nil || lease.ID() != "" {
		t.Fatalf("lease %q, %v", lease.ID(), err)
	}
	if err := lease.AddHolder(bg, Holder{PID: 1}); err != nil {
		t.Error(err)
	}
	lease.Release()
}

func TestCanceledWaiter(t *testing.T) {
	l := open(t, config(t))
	a, err := l.Acquire(bg, Request{Task: "a", CPU: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Release()
	ctx, cancel := context.WithCancelCause(bg)
	_, err = l.Acquire(ctx, Request{Task: "b", CPU: 1, Waiting: func(string) { cancel(berth.ErrCanceled) }})
	if !errors.Is(err, berth.ErrCanceled) {
		t.Errorf("error is %v", err)
	}
	if s, _ := l.Snapshot(bg); len(s.Waiting) != 0 {
		t.Errorf("its ticket is left: %+v", s.Waiting)
	}
}

func BenchmarkAcquireWith50Live(b *testing.B) {
	dir := b.TempDir()
	l, err := New(Config{Dirs: Dirs{Shared: dir + "/l"}, Capacity: Capacity{CPU: 1000}})
	if err != nil {
		b.Fatal(err)
	}
	for range 50 {
		ls, err := l.Acquire(bg, Request{Task: "x", CPU: 1})
		if err != nil {
			b.Fatal(err)
		}
		defer ls.Release()
	}
	acquire := func(l *Ledger) {
		ls, err := l.Acquire(bg, Request{Task: "y", CPU: 1})
		if err != nil {
			b.Fatal(err)
		}
		ls.Release()
	}
	b.Run("first of a process", func(b *testing.B) {
		defer reportCPU(b)()
		for b.Loop() {
			fresh, err := New(l.cfg)
			if err != nil {
				b.Fatal(err)
			}
			acquire(fresh)
		}
	})
	b.Run("again", func(b *testing.B) {
		defer reportCPU(b)()
		for b.Loop() {
			acquire(l)
		}
	})
	b.Run("8 at once", func(b *testing.B) {
		defer reportCPU(b)()
		b.SetParallelism(4) // of 2 CPUs
		b.RunParallel(func(pb *testing.PB) {
			own, err := New(l.cfg)
			if err != nil {
				b.Error(err)
				return
			}
			for pb.Next() {
				acquire(own)
			}
		})
	})
}

// reportCPU adds the CPU time of an operation, which says more than its wall time on a busy machine.
func reportCPU(b *testing.B) func() {
	cpu := func() int64 {
		var ru syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
			b.Fatal(err)
		}
		return ru.Utime.Nano() + ru.Stime.Nano()
	}
	before := cpu()
	return func() { b.ReportMetric(float64(cpu()-before)/float64(b.N), "cpu-ns/op") }
}
