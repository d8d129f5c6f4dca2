package cgroup

import (
	"os"
	"testing"
	"time"
)

// That a host counts is remembered for a while; that it does not, never: it may begin to.
func TestCountsDisks(t *testing.T) {
	h := &Host{}
	h.v1[blkio] = &tree{hierarchy: hierarchy{mount: t.TempDir()}}
	file := h.v1[blkio].mount + "/blkio.throttle.io_service_bytes"
	for i, c := range []struct {
		text string // "": no file
		aged bool
		want bool
	}{
		{"Total 0\n", false, false},
		{"8:0 Read 0\nTotal 0\n", false, true},
		{"", false, true},
		{"", true, false},
		{"8:0 Read 0\nTotal 0\n", false, true},
	} {
		_ = os.Remove(file)
		if c.text != "" {
			if err := os.WriteFile(file, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if c.aged {
			h.counted.Store(new(time.Now().Add(-2 * time.Minute)))
		}
		if got := h.countsDisks(); got != c.want {
			t.Errorf("%d: it counts: %v", i, got)
		}
	}
}
