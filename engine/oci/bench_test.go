package oci_test

import (
	"fmt"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/berth-project/berth"
)

// BenchmarkRun is one container after another: sandbox, start, wait, remove.
func BenchmarkRun(b *testing.B) {
	for _, rt := range []string{"direct", "runc"} {
		b.Run(rt, func(b *testing.B) {
			e, img := newEngine(b, rt)
			i := 0
			for b.Loop() {
				i++
				runOne(b, e, img, fmt.Sprintf("b%d", i))
			}
		})
	}
	b.Run("fork", func(b *testing.B) {
		for b.Loop() {
			if err := exec.Command("/bin/busybox", "true").Run(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkAtOnce(b *testing.B) {
	for _, n := range []int{2, 4, 8, 16} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			e, img := newEngine(b, "direct")
			var next atomic.Int64
			var wg sync.WaitGroup
			b.ResetTimer()
			for range n {
				wg.Go(func() {
					for i := next.Add(1); i <= int64(b.N); i = next.Add(1) {
						runOne(b, e, img, fmt.Sprintf("b%d", i))
					}
				})
			}
			wg.Wait()
		})
	}
}

func runOne(b testing.TB, e berth.Engine, img berth.Image, id string) {
	sb, err := e.Open(b.Context(), berth.SandboxSpec{ID: id})
	if err != nil {
		b.Fatal(err)
	}
	c, err := sb.Start(b.Context(), berth.StepSpec{ID: "s", Image: img, Command: []string{"true"}})
	if err != nil {
		b.Fatal(err)
	}
	if x, err := c.Wait(b.Context()); err != nil || !x.OK() {
		b.Fatalf("%+v, %v", x, err)
	}
	if err := sb.Close(b.Context()); err != nil {
		b.Fatal(err)
	}
}
