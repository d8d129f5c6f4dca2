package docker

import (
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/berth-project/berth/logfile"
)

// TestHoles: what comes first after the daemon's disk was full, and after it had room again, has a mark before it; and so has what comes after
// the daemon could not read its log.
func TestHoles(t *testing.T) {
	epoch := time.Now().Add(-time.Hour)
	for _, row := range []struct {
		name     string
		turns    []time.Duration
		before   int
		untimed  bool
		messages []time.Duration
		unread   int // before which message; 0 is none
		want     []int64
	}{
		{name: "it was never full", messages: []time.Duration{1, 2}},
		{name: "between two messages", turns: []time.Duration{3, 6}, messages: []time.Duration{1, 2, 7, 8}, want: []int64{2}},
		{name: "some came meanwhile", turns: []time.Duration{3, 6}, messages: []time.Duration{1, 4, 5, 7, 8}, want: []int64{1, 3}},
		{name: "nothing came after it", turns: []time.Duration{3, 6}, messages: []time.Duration{1, 2}, want: []int64{2}},
		{name: "it is full still", turns: []time.Duration{3}, messages: []time.Duration{1, 4}, want: []int64{1}},
		{name: "nothing came at all", turns: []time.Duration{3}, want: []int64{0}},
		{name: "twice", turns: []time.Duration{3, 4, 6, 7}, messages: []time.Duration{1, 5, 8}, want: []int64{1, 2}},
		{name: "before the log was followed", turns: []time.Duration{1, 2}, before: 2, messages: []time.Duration{1, 3, 4}},
		{name: "messages without their times", turns: []time.Duration{3, 6}, untimed: true, messages: []time.Duration{1, 2}, want: []int64{0}},
		{name: "the log could not be read on", messages: []time.Duration{1, 2, 3}, unread: 2, want: []int64{2}},
		{name: "it could not to its end", messages: []time.Duration{1, 2}, unread: 2, want: []int64{2}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newSink(t, "stdout", "")
			var d logDisk
			for _, at := range row.turns {
				d.turns = append(d.turns, epoch.Add(at*time.Second))
			}
			d.count.Store(int64(len(d.turns)))
			s.disk, s.turns, s.timed = &d, row.before, !row.untimed
			for i, at := range row.messages {
				s.unread = row.unread > 0 && i == row.unread
				s.sew(epoch.Add(at*time.Second), time.Time{}, sight{})
				if _, err := s.Write([]byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			s.unread = row.unread > 0 && len(row.messages) == row.unread
			s.sew(time.Time{}, time.Time{}, sight{})
			s.hole(time.Time{})
			if err := s.close(false); err != nil {
				t.Fatal(err)
			}
			ix, err := logfile.ReadIndex(filepath.Dir(s.w.Path()), "stdout")
			if err != nil || !slices.Equal(s.holes, row.want) || !slices.Equal(ix.Gaps, row.want) {
				t.Errorf("holes %v, gaps %v, want %v; %v", s.holes, ix.Gaps, row.want, err)
			}
		})
	}
}
