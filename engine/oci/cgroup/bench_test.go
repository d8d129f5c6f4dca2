package cgroup

import (
	"strconv"
	"sync/atomic"
	"testing"
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
