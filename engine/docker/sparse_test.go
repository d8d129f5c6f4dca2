package docker

import (
	"testing"
	"time"
)

// TestSparse: what goes on is told of at once or after a while, then after longer and longer, and that it is over where it was
// told of.
func TestSparse(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name  string
		after time.Duration
		times []time.Duration // into it, at which it is noted
		told  []bool
	}{
		{"at once", 0, []time.Duration{0, 1, 9, 10, 15, 19, 21, 39, 43}, []bool{true, false, false, true, false, false, true, false, true}},
		{"after a while", awayWord, []time.Duration{0, 9, 11, 15, 20, 23, 45, 47}, []bool{false, false, true, false, false, true, false, true}},
		{"late noted", awayWord, []time.Duration{30, 59, 61}, []bool{true, false, true}},
	} {
		s := sparse{after: row.after}
		for i, d := range row.times {
			s.since = time.Now().Add(-d * time.Second) // as if it had gone on for that long
			if _, due := s.due(time.Now()); due != row.told[i] {
				t.Errorf("%s: %ds into it: told %v", row.name, d, due)
			}
		}
		if _, said := s.over(); !said {
			t.Errorf("%s: not told that it is over", row.name)
		}
		if _, said := s.over(); said {
			t.Errorf("%s: told twice that it is over", row.name)
		}
	}
	var s sparse
	if d, due := s.due(time.Now().Add(-time.Minute)); !due || d < time.Minute {
		t.Errorf("%v, %v", d, due)
	}
}
