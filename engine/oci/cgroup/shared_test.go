package cgroup

import (
	"context"
	"fmt"
	"os"
	"path"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
)

// Another berth of the host, whose last group has ended, removes the directory that all share when it is
// empty: at any moment of ours.
func TestGroupsAreMadeWhileOthersRemoveTheSharedDirectory(t *testing.T) {
	h := host(t)
	name := instance(t)
	bases := map[string]bool{}
	for _, tr := range h.trees() {
		bases[tr.mount+tr.base] = true
	}
	var stop atomic.Bool
	var others, work sync.WaitGroup
	for base := range bases {
		others.Go(func() {
			for !stop.Load() {
				_ = os.Remove(base)
			}
		})
	}
	for w := range 3 {
		work.Go(func() {
			for i := range 60 {
				g, err := h.Make(Spec{Path: fmt.Sprintf("%s/g%d-%d", name, w, i), Limits: Limits{PIDs: 10, Memory: 64 * mib}})
				if err != nil {
					t.Error(err)
					return
				}
				if err := g.Remove(t.Context()); err != nil {
					t.Error(err)
				}
				for base := range bases { // as at the end of an instance
					_ = os.Remove(path.Join(base, name))
				}
				if i%10 == 0 {
					_ = h.RemoveAll(context.Background(), name+"-nobody")
				}
			}
		})
	}
	work.Wait()
	stop.Store(true)
	others.Wait()
}

// TestFoundWhileOthersRemoveTheSharedDirectory: what a host offers does not depend on which berths end meanwhile.
func TestFoundWhileOthersRemoveTheSharedDirectory(t *testing.T) {
	h := host(t)
	var stop atomic.Bool
	var others sync.WaitGroup
	for _, tr := range h.trees() {
		others.Go(func() {
			for !stop.Load() {
				_ = os.Remove(tr.mount + tr.base)
			}
		})
	}
	for range 200 {
		again, err := Find(t.Context(), Options{Base: "berth-test", Adopt: true})
		if err != nil {
			t.Fatal(err)
		}
		if again.v2has != h.v2has || again.killer != h.killer || again.counts != h.counts || !slices.Equal(again.Controllers(), h.Controllers()) || len(again.Lacks()) != len(h.Lacks()) {
			t.Fatalf("it has %v, %v, and lacks %+v; before it had %v, %v", again.Controllers(), again.v2has, again.Lacks(), h.Controllers(), h.v2has)
		}
		if err := again.Close(); err != nil {
			t.Fatal(err)
		}
	}
	stop.Store(true)
	others.Wait()
}
