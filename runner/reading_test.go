package runner

import (
	"fmt"
	"sync"
	"testing"

	"github.com/berth-project/berth"
)

// TestRecordWhileItEnds: a record that says that a task has ended says how.
func TestRecordWhileItEnds(t *testing.T) {
	b := newTestbed(t)
	ctx := timeout(t)
	for i := range 40 {
		id := fmt.Sprintf("t%d", i)
		var readers sync.WaitGroup
		done := make(chan struct{})
		for range 2 {
			readers.Go(func() {
				for ended := false; !ended; {
					select {
					case <-done: // and once more
						ended = true
					default:
					}
					rec, err := b.Record(ctx, id)
					if err == nil && rec.State.Final() != (rec.Result != nil) {
						t.Errorf("task %s is %s, and its result is %+v", id, rec.State, rec.Result)
					}
				}
			})
		}
		if _, err := b.Run(ctx, berth.Task{ID: id, Steps: []berth.Step{sh("true")}}, Hooks{}); err != nil {
			t.Error(err)
		}
		close(done)
		readers.Wait()
	}
}
