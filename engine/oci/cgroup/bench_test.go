package cgroup

import (
	"context"
	"strconv"
	"sync/atomic"
	"testing"
	"time"
)

var next atomic.Int64

// BenchmarkMake is what a container's cgroups cost without a pool.
func BenchmarkMake(b *testing.B) {
	h, err := Find(b.Context(), Options{Base: "berth-bench", Adopt: true})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = h.RemoveAll(b.Context(), "bench") }()
	for i := range b.N {
		g, err := h.Make(Spec{Path: "bench/" + strconv.Itoa(i), Limits: Limits{CPU: 1, Memory: 64 * mib, PIDs: 100}})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := g.Remove(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

func BenchmarkMakeRemove(b *testing.B) {
	h, err := Find(b.Context(), Options{Base: "berth-bench", Adopt: true})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = h.RemoveAll(b.Context(), "bench") }()
	b.RunParallel(func(pb *testing.PB) {
		name := "bench/" + strconv.Itoa(int(next.Add(1))) + "-"
		for i := 0; pb.Next(); i++ {
			g, err := h.Make(Spec{Path: name + strconv.Itoa(i), Limits: Limits{CPU: 1, Memory: 64 * mib, PIDs: 100}})
			if err != nil {
				b.Fatal(err)
			}
			if err := g.Remove(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkPool is what a container's cgroups cost where a parked group is there.
func BenchmarkPool(b *testing.B) {
	h, err := Find(b.Context(), Options{Base: "berth-bench", Adopt: true})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = h.RemoveAll(b.Context(), "bench") }()
	p := h.NewPool("bench", 4)
	defer func() { _ = p.Close() }()
	parked := func() int {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.parked)
	}
	var recycling time.Duration
	for i := range b.N {
		g, err := p.Get(Spec{Path: "bench/" + strconv.Itoa(i), Limits: Limits{CPU: 1, Memory: int64(64+i%2) * mib, PIDs: 100}})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		begin := time.Now()
		p.Put(g, true)
		for parked() == 0 {
			time.Sleep(10 * time.Microsecond)
		}
		recycling += time.Since(begin)
		b.StartTimer()
	}
	b.ReportMetric(float64(recycling.Nanoseconds())/float64(b.N), "recycle-ns/op")
}

// BenchmarkEnd is what is asked of a group when its container has ended, before the answer.
func BenchmarkEnd(b *testing.B) {
	p := benchPool(b)
	for range 2 { // the second time it is one of the pool's
		g := takeAndRunTrue(b, p)
		p.recycle(g)
	}
	g := takeAndRunTrue(b, p)
	for b.Loop() {
		if err := g.Kill(b.Context()); err != nil {
			b.Fatal(err)
		}
		if _, err := g.Final(); err != nil {
			b.Fatal(err)
		}
		if n, err := g.OOMKills(); err != nil || n != 0 {
			b.Fatal(n, err)
		}
		if s := g.PIDsDetail(); s != "" {
			b.Fatal(s)
		}
	}
	p.recycle(g)
}

// BenchmarkRecycle is what it costs to have a group that a short command ran in ready for the next.
func BenchmarkRecycle(b *testing.B) {
	p := benchPool(b)
	var took time.Duration
	for range b.N {
		g := takeAndRunTrue(b, p)
		begin := time.Now()
		p.recycle(g)
		took += time.Since(begin)
	}
	b.ReportMetric(float64(took.Nanoseconds())/float64(b.N), "recycle-ns/op")
}

func benchPool(b *testing.B) *Pool {
	b.Helper()
	h, err := Find(b.Context(), Options{Base: "berth-bench", Adopt: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = h.RemoveAll(context.Background(), "bench") })
	p := h.NewPool("bench", 4)
	b.Cleanup(func() { _ = p.Close() })
	return p
}

func takeAndRunTrue(b *testing.B, p *Pool) *Group {
	b.Helper()
	g, err := p.Get(Spec{Path: "bench/x", Limits: Limits{CPU: 1, Memory: 64 * mib, PIDs: 100}})
	if err != nil {
		b.Fatal(err)
	}
	if out, err := shell(b.Context(), g, "exec true").CombinedOutput(); err != nil {
		b.Fatalf("%v %s", err, out)
	}
	return g
}
