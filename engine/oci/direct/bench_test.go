package direct

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth/engine/oci/bundle"
)

// bencher starts containers one by one or many at once; they are taken down in the background.
type bencher struct {
	s       *Starter
	proto   *bundle.Bundle
	dir     string
	n       atomic.Int64
	closing chan bundle.Process
	wg      sync.WaitGroup
}

func newBencher(b *testing.B, edit func(*bundle.Bundle)) *bencher {
	b.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "berth-bench-")
	if err != nil {
		b.Fatal(err)
	}
	x := &bencher{s: testStarter(b), proto: testBundle(b, testSpec(b, "/bin/true")), dir: dir, closing: make(chan bundle.Process, 1<<16)}
	if edit != nil {
		edit(x.proto)
	}
	x.wg.Go(func() {
		for p := range x.closing {
			_ = p.Close()
		}
	})
	b.Cleanup(func() {
		close(x.closing)
		x.wg.Wait()
		_ = os.RemoveAll(dir)
	})
	return x
}

// run runs one container, from the bundle to its exit.
func (x *bencher) run(b *testing.B) {
	n := *x.proto
	n.Dir = filepath.Join(x.dir, strconv.FormatInt(x.n.Add(1), 10))
	n.Root.Upper, n.Root.Work = n.Dir+"/u", n.Dir+"/w"
	for _, d := range []string{n.Dir, n.Root.Upper, n.Root.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	p, err := x.s.Start(b.Context(), &n)
	if err != nil {
		b.Fatal(err)
	}
	if st, err := p.Wait(); err != nil || st.Code != 0 || st.Signal != 0 {
		b.Fatal(st, err)
	}
	x.closing <- p
}

func plain(b *testing.B) {
	if err := exec.Command("/bin/busybox", "true").Run(); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkStart is one container after another. Each start is timed beside a plain fork and exec, so that the
// ratio of the medians means something on a machine that does other things, too.
func BenchmarkStart(b *testing.B) {
	for _, bb := range []struct {
		name string
		edit func(*testing.B, *bundle.Bundle)
	}{
		{"default", nil},
		{"given network", func(b *testing.B, x *bundle.Bundle) { x.NetNS = benchNetNS(b) }},
		{"given network and init", func(b *testing.B, x *bundle.Bundle) { x.NetNS, x.Init = benchNetNS(b), true }},
		{"given network, no seccomp", func(b *testing.B, x *bundle.Bundle) { x.NetNS, x.Spec.Linux.Seccomp = benchNetNS(b), nil }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			x := newBencher(b, func(bu *bundle.Bundle) {
				if bb.edit != nil {
					bb.edit(b, bu)
				}
			})
			var starts, plains []time.Duration
			for b.Loop() {
				t0 := time.Now()
				x.run(b)
				t1 := time.Now()
				plain(b)
				starts, plains = append(starts, t1.Sub(t0)), append(plains, time.Since(t1))
			}
			s, p := median(starts), median(plains)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(s.Microseconds()), "µs/start")
			b.ReportMetric(float64(p.Microseconds()), "µs/plain")
			b.ReportMetric(float64(s)/float64(p), "ratio")
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func benchNetNS(b *testing.B) *os.File {
	f, _ := newNetNS(b)
	return f
}

// BenchmarkParallel is how many containers a second there are at once.
func BenchmarkParallel(b *testing.B) {
	for _, par := range []int{1, 2, 4, 8} {
		b.Run(strconv.Itoa(par), func(b *testing.B) {
			x := newBencher(b, func(bu *bundle.Bundle) { bu.NetNS = benchNetNS(b) })
			b.SetParallelism((par + runtime.GOMAXPROCS(0) - 1) / runtime.GOMAXPROCS(0))
			t0 := time.Now()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					x.run(b)
				}
			})
			b.ReportMetric(float64(b.N)/time.Since(t0).Seconds(), "starts/s")
		})
	}
}
