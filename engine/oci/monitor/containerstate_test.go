package monitor

import (
	"testing"

	"github.com/berth-project/berth"
)

// A container that never ran is never said to run: it has ended before its start comes to an end.
func TestNeverRanIsNeverRunning(t *testing.T) {
	for range 10_000 {
		c := &container{started: make(chan struct{}), ended: make(chan struct{})}
		go func() {
			close(c.ended)
			close(c.started)
		}()
		for {
			state := c.state()
			if state == berth.ContainerRunning {
				t.Fatal("it is said to run")
			}
			if state == berth.ContainerEnded {
				break
			}
		}
	}
}
