package oci_test

import (
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/berth-project/berth"
)

// TestStartsWhileOthersRemoveTheSharedCgroup: berths of a host have a cgroup together, which one that ends removes where it is empty. OCI runtimes use
// more hierarchies than berth does, and read what is above their own cgroup.
func TestStartsWhileOthersRemoveTheSharedCgroup(t *testing.T) {
	hierarchies, _ := filepath.Glob("/sys/fs/cgroup/*/cgroup.procs")
	if len(hierarchies) == 0 {
		hierarchies = []string{"/sys/fs/cgroup/cgroup.procs"}
	}
	var stop atomic.Bool
	var others sync.WaitGroup
	others.Go(func() {
		for !stop.Load() {
			for _, h := range hierarchies {
				_ = os.Remove(filepath.Join(filepath.Dir(h), "berth"))
			}
		}
	})
	defer others.Wait()
	defer stop.Store(true)
	for _, rt := range []string{"direct", "runc", "crun"} {
		t.Run(rt, func(t *testing.T) {
			for range 6 { // each with a monitor of its own
				e, img := newEngine(t, rt)
				sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
				if err != nil {
					t.Fatal(err)
				}
				c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "echo out; echo err >&2"}, Limits: berth.Limits{Memory: 64 << 20, PIDs: 20}})
				if exit, err := c.Wait(t.Context()); err != nil || !exit.OK() {
					t.Fatalf("%+v, %v", exit, err)
				}
				if out, errs := logs(t, c, false), logs(t, c, true); out != "out\n" || errs != "err\n" {
					t.Errorf("it wrote %q, %q", out, errs)
				}
				if err := sb.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				_ = e.Close()
			}
		})
	}
}
