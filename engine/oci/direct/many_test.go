package direct

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestManyAtOnce starts and ends containers from many goroutines while the garbage collector runs all the time:
// a child that touched what it must not would show here.
func TestManyAtOnce(t *testing.T) {
	s := testStarter(t)
	stop := make(chan struct{})
	var gc sync.WaitGroup
	gc.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	})
	defer gc.Wait()
	defer close(stop)
	var wg sync.WaitGroup
	var n atomic.Int64
	for g := range 8 {
		wg.Go(func() {
			for i := range 10 {
				b := testBundle(t, testSpec(t, "/bin/sh", "-c", fmt.Sprintf("echo %d-%d; exit %d", g, i, g)))
				b.Init = i%2 == 0
				got, err := runBundle(t, s, b)
				if err != nil || got.stdout != fmt.Sprintf("%d-%d\n", g, i) || got.status.Code != g {
					t.Errorf("%d-%d: %v, %v", g, i, got, err)
					continue
				}
				n.Add(1)
			}
		})
	}
	wg.Wait()
	if n.Load() != 80 {
		t.Errorf("%d of 80 containers ran", n.Load())
	}
}

// TestIdleContainersAreCheap: a waiting container takes neither a thread nor much memory of this process.
func TestIdleContainersAreCheap(t *testing.T) {
	s := testStarter(t)
	const count = 60
	idle := func() (p bundle.Process) {
		b := testBundle(t, testSpec(t, "sleep", "1000"))
		b.Init = true
		p, err := s.Start(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	measure := func() (threads int, heap uint64) {
		status, err := os.ReadFile("/proc/self/status")
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(string(status), "Threads:")
		if _, err := fmt.Sscan(after, &threads); err != nil {
			t.Fatal(err)
		}
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return threads, m.HeapAlloc
	}
	all := []bundle.Process{idle()}
	threads, heap := measure()
	var wg sync.WaitGroup
	for range count {
		p := idle()
		all = append(all, p)
		wg.Go(func() { _, _ = p.Wait() })
	}
	threadsNow, heapNow := measure()
	if threadsNow > threads+4 {
		t.Errorf("%d waiting containers took %d threads", count, threadsNow-threads)
	}
	if per := int64(heapNow-heap) / count; per > 16<<10 {
		t.Errorf("a waiting container takes %d bytes of this process's heap", per)
	}
	for _, p := range all {
		_ = p.Kill()
	}
	_, _ = all[0].Wait()
	wg.Wait()
	for _, p := range all {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestNothingIsLeft: neither descriptors, mounts nor processes remain of containers that ended, or did not start.
func TestNothingIsLeft(t *testing.T) {
	s := testStarter(t)
	round := func() {
		run(t, s, "true", nil)
		b := testBundle(t, testSpec(t, "no-such-command"))
		b.Init = true
		_, _ = s.Start(t.Context(), b)
		b = testBundle(t, testSpec(t, "true"))
		b.Spec.Mounts[1].Options = []string{"size=lots"}
		_, _ = s.Start(t.Context(), b)
		b = testBundle(t, testSpec(t, "true"))
		b.Spec.Mounts = append(b.Spec.Mounts, bindMount("/etc", "/a"), bindMount("/no/such/source", "/b"))
		_, _ = s.Start(t.Context(), b)
		b = testBundle(t, testSpec(t, "true"))
		b.Spec.Process.Terminal = true
		if p, err := s.Start(t.Context(), b); err != nil {
			t.Error(err)
		} else {
			_, _ = p.Wait()
			_ = p.Close()
		}
		b = testBundle(t, testSpec(t, "true"))
		b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 1000}}
		b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = ids, ids
		if _, err := runBundle(t, s, b); err != nil {
			t.Error(err)
		}
		b = testBundle(t, testSpec(t, "true"))
		b.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_ADMIN"}}
		if _, err := runBundle(t, s, b); err != nil {
			t.Error(err)
		}
		p := startIdle(t, s, nil)
		_, _ = execIn(t, p, shell(t, "true"))
		_, _ = execIn(t, p, testSpec(t, "no-such-command").Process)
		_ = p.Kill()
		_, _ = p.Wait()
		_ = p.Close()
	}
	count := func() (fds, mounts, children int) {
		runtime.GC()
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		tasks, err := filepath.Glob("/proc/self/task/*/children")
		if err != nil || len(tasks) == 0 {
			t.Fatal(tasks, err)
		}
		for _, name := range tasks {
			list, _ := os.ReadFile(name) // a thread may have ended meanwhile
			children += len(strings.Fields(string(list)))
		}
		for line := range strings.Lines(string(info)) {
			if strings.Contains(line, t.Name()) { // others mount and unmount on this host, too
				mounts++
			}
		}
		return len(entries), mounts, children
	}
	t.Run("warm", func(*testing.T) { round() })
	fds, mounts, children := count()
	for range 3 {
		round()
	}
	if f, m, c := count(); f != fds || m != mounts || c != children {
		t.Errorf("descriptors %d, mounts %d, children %d; before %d, %d, %d", f, m, c, fds, mounts, children)
	}
}
