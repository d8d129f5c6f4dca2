package docker

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/logfile"
)

// TestLogLacksOurs: a daemon that ended had not logged all that it had sent here, and the next one's log goes on with what came then.
// What was logged late by the same daemon is ours all the same.
func TestLogLacksOurs(t *testing.T) {
	const (
		soon  = -time.Second // of the last of ours
		later = time.Second
		much  = lateFor + time.Second
	)
	type message struct {
		after time.Duration // of the last of ours
		text  string
	}
	lines := ""
	for i := range 2000 {
		lines += fmt.Sprintf("line %d of many that differ\n", i)
	}
	same := strings.Repeat("...\n", 3000)
	for _, row := range []struct {
		name  string
		ours  string
		lacks int64 // before
		log   []message
		gone  bool
		tear  bool
		born  time.Duration // after the last of ours, when the daemon began; 0 is not known
		want  string        // after ours
		after int64         // what it lacks
		torn  bool          // with a mark after ours
	}{
		{name: "all of it is there", ours: lines, gone: true, log: []message{{soon, lines}, {later, "new\n"}}, want: "new\n"},
		{name: "the end of ours is not", ours: lines, gone: true, log: []message{{soon, lines[:9000]}, {later, "new\n"}, {later, lines[:5000]}}, want: "new\n" + lines[:5000], after: int64(len(lines) - 9000)},
		{name: "the same, of a daemon of which it is not known that it was gone", ours: lines, log: []message{{soon, lines[:9000]}, {later, "new\n"}, {later, lines[:5000]}}, want: "new\n" + lines[:5000], after: int64(len(lines) - 9000)},
		{name: "what comes is like it at first", ours: lines, gone: true, log: []message{{soon, lines[:9000]}, {later, lines[9000:9100]}, {later, "new\n"}}, want: lines[9000:9100] + "new\n", after: int64(len(lines) - 9000)},
		{name: "what comes is like it at first, and nothing follows", ours: lines, gone: true, log: []message{{soon, lines[:9000]}, {later, lines[9000:9100]}}, want: lines[9000:9100], after: int64(len(lines) - 9000)},
		{name: "it was logged late", ours: lines, log: []message{{soon, lines[:9000]}, {later, lines[9000:20000]}, {later, lines[20000:] + "new\n"}}, want: "new\n"},
		{name: "it was logged late, and connections were refused", ours: lines, gone: true, log: []message{{soon, lines[:9000]}, {later, lines[9000:20000]}, {later, lines[20000:] + "new\n"}}, want: "new\n"},
		{name: "a part of it was logged late, and nothing follows", ours: lines, log: []message{{soon, lines[:9000]}, {later, lines[9000:20000]}}},
		{name: "more of the same", ours: same, gone: true, log: []message{{soon, same[:6000]}, {later, same}}, want: same, after: int64(len(same) - 6000)},
		{name: "the same, logged late, without a break, and connections were refused", ours: same, gone: true, log: []message{{soon, same[:6000]}, {0, same[6000:9000]}, {endsFor + 20*time.Millisecond, same[9000:]}, {2 * endsFor, "new\n"}}, want: "new\n"},
		{name: "a little was logged late, and then the daemon was gone", ours: lines, gone: true, log: []message{{soon, lines[:9000]}, {endsFor, lines[9000:9020]}, {endsFor + 1, lines[9020:9100]}, {later, "new\n"}}, want: "new\n", after: int64(len(lines) - 9100)},
		{name: "the same, logged late", ours: same, log: []message{{soon, same[:6000]}, {later, same[6000:] + "new\n"}}, want: "new\n"},
		{name: "more of the same, much later", ours: same, log: []message{{soon, same[:6000]}, {much, same}}, want: same, after: int64(len(same) - 6000)},
		{name: "the clock was set back meanwhile", ours: lines, log: []message{{soon, lines[:9000]}, {much, lines[9000:]}, {soon, "new\n"}}, want: "new\n"},
		{name: "more of the same, a little, and nothing follows", ours: same, gone: true, log: []message{{soon, same[:6000]}, {later, "...\n"}}, want: "...\n", after: int64(len(same) - 6000)},
		{name: "it lacked some before", ours: lines, lacks: 4000, gone: true, log: []message{{soon, lines[:8000] + lines[12000:20000]}, {later, "new\n"}}, want: "new\n", after: int64(len(lines) - 16000)},
		{name: "it lacked some before, and no more since", ours: lines, lacks: 4000, gone: true, log: []message{{soon, lines[:8000] + lines[12000:]}, {later, "new\n"}}, want: "new\n", after: 4000},
		{name: "some may be missing", ours: lines, gone: true, tear: true, log: []message{{soon, lines[:9000]}, {later, "new\n"}}, want: "new\n", after: int64(len(lines) - 9000), torn: true},
		{name: "some may be missing, after what ours lacks", ours: lines, gone: true, tear: true, log: []message{{soon, lines + "more\n"}, {later, "new\n"}}, want: "more\nnew\n", torn: true},
		{name: "some may be missing, after what the first daemon still logs", ours: lines, gone: true, tear: true, log: []message{{soon, lines}, {endsFor, "more\n"}, {2 * endsFor, "and more\n"}, {later, "new\n"}}, want: "more\nand more\nnew\n", torn: true},
		{name: "some may be missing, after what the first daemon logs as slowly as a busy machine has it", ours: lines, gone: true, tear: true, born: later - 1, log: []message{{soon, lines}, {3 * endsFor, "more\n"}, {6 * endsFor, "and more\n"}, {later, "new\n"}}, want: "more\nand more\nnew\n", torn: true},
		{name: "a little was logged slowly, and then the daemon was gone", ours: lines, gone: true, born: later - 1, log: []message{{soon, lines[:9000]}, {3 * endsFor, lines[9000:9020]}, {6 * endsFor, lines[9020:9100]}, {later, "new\n"}}, want: "new\n", after: int64(len(lines) - 9100)},
		{name: "some may be missing of what a second daemon did, before a third began", ours: lines, gone: true, tear: true, born: 2 * halts, log: []message{{soon, lines}, {halts + 1, "new\n"}}, want: "new\n", torn: true},
		{name: "some may be missing, and nothing follows", ours: lines, gone: true, tear: true, log: []message{{soon, lines}}, torn: true},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := newSink(t, "stdout", row.ours)
			last := time.Now().Add(-time.Minute)
			s.first, s.last = last.Add(soon), last
			s.lacks, s.lacksFile = row.lacks, filepath.Join(t.TempDir(), "unlogged")
			if row.tear {
				s.tear = last.Add(endsFor)
			}
			errs := newSink(t, "stderr", "")
			var in strings.Builder
			for _, m := range row.log {
				for line := range strings.Lines(m.text) {
					in.WriteString(frame(1, last.Add(m.after).UTC().Format(time.RFC3339Nano)+" "+line))
				}
			}
			b := &backlog{Reader: strings.NewReader(in.String()), stamps: true, now: time.Now(), most: 1 << 20, out: newResumer(s, false), err: newResumer(errs, false)}
			b.out.gone, b.out.is.anew = row.gone, time.Now()
			if row.born > 0 {
				b.out.is.born = last.Add(row.born)
			}
			if err := b.read(); err != nil {
				t.Fatal(err)
			}
			if err := b.settle(); err != nil {
				t.Fatal(err)
			}
			o := &output{out: s}
			if err := o.tornIn(); (err != nil) != row.torn {
				t.Errorf("torn: %v", err)
			}
			if err := s.close(false); err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(s.w.Path()); err != nil || string(got) != row.ours+row.want {
				t.Errorf("%d bytes, want %d; after ours %.200q; %v", len(got), len(row.ours+row.want), got[min(len(got), len(row.ours)):], err)
			}
			if s.lacks != row.after {
				t.Errorf("it lacks %d bytes, want %d", s.lacks, row.after)
			}
			recorded := row.lacks
			if err := readJSON(s.lacksFile, &recorded); row.after != row.lacks && err != nil || recorded != row.after {
				t.Errorf("recorded are %d bytes, want %d; %v", recorded, row.after, err)
			}
			var gaps []int64
			if row.torn {
				gaps = []int64{int64(len(row.ours+row.want) - len("new\n"))}
				if row.want == "" {
					gaps = []int64{int64(len(row.ours))}
				}
			}
			ix, err := logfile.ReadIndex(filepath.Dir(s.w.Path()), filepath.Base(s.w.Path()))
			if err != nil || !slices.Equal(ix.Gaps, gaps) {
				t.Errorf("gaps %v, want %v; %v", ix.Gaps, gaps, err)
			}
		})
	}
}
