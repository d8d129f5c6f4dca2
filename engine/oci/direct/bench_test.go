package direct

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"testing"

	"github.com/berth-project/berth/engine/oci/bundle"
)

// benchBundle is testBundle for many starts of one benchmark.
func benchBundle(b *testing.B, dir string, i int, proto *bundle.Bundle) *bundle.Bundle {
	n := *proto
	n.Dir = filepath.Join(dir, strconv.Itoa(i))
	n.Root.Upper, n.Root.Work = n.Dir+"/u", n.Dir+"/w"
	for _, d := range []string{n.Dir, n.Root.Upper, n.Root.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	return &n
}

// BenchmarkPlain is fork and exec with no container: the measure of all others.
func BenchmarkPlain(b *testing.B) {
	for b.Loop() {
		if err := exec.Command("/bin/busybox", "true").Run(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStart is one container after another, from the bundle to its exit; taking down is in another
// goroutine.
func BenchmarkStart(b *testing.B) {
	s := testStarter(b)
	dir, err := os.MkdirTemp("/dev/shm", "berth-bench-")
	if err != nil {
		b.Fatal(err)
	}
	defer os.RemoveAll(dir)
	proto := testBundle(b, testSpec(b, "/bin/true"))
	var wg sync.WaitGroup
	closing := make(chan bundle.Process, 1000)
	wg.Go(func() {
		for p := range closing {
			_ = p.Close()
		}
	})
	i := 0
	for b.Loop() {
		i++
		p, err := s.Start(b.Context(), benchBundle(b, dir, i, proto))
		if err != nil {
			b.Fatal(err)
		}
		if st, err := p.Wait(); err != nil || st.Code != 0 || st.Signal != 0 {
			b.Fatal(st, err)
		}
		closing <- p
	}
	close(closing)
	wg.Wait()
}
