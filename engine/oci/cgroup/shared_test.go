package cgroup

import (
	"context"
	"fmt"
	"os"
	"path"
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
