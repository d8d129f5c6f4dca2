package docker

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/logfile"
)

// TestBacklog: where ours ends in the daemon's log, which may have lost its beginning.
func TestBacklog(t *testing.T) {
	epoch := time.Now().Add(-time.Hour)
	type message struct {
		stream byte
		after  time.Duration // of the epoch
		text   string
	}
	long := strings.Repeat("a line of fifty bytes, as there are many in a log\n", 200)
	for _, row := range []struct {
		name        string
		ours        string // of stdout; it came at the epoch, and a minute later
		log         []message
		most        int64
		want        string
		gaps, stray []int64 // of stdout and of stderr
	}{
		{name: "nothing is ours", log: []message{{1, 0, "one\n"}, {1, 1, "two\n"}}, want: "one\ntwo\n"},
		{name: "all is there", ours: "one\n", log: []message{{1, 0, "one\n"}, {1, 1, "two\n"}}, want: "one\ntwo\n"},
		{name: "a part of a message is ours", ours: "on", log: []message{{1, 0, "one\n"}, {1, 1, "two\n"}}, want: "one\ntwo\n"},
		{
			name: "the beginning is gone, what is ours is not", ours: "gone\nthe line that came last\n",
			log:  []message{{1, time.Minute, "the line that came last\n"}, {1, 2 * time.Minute, "new\n"}},
			want: "gone\nthe line that came last\nnew\n",
		},
		{
			name: "the end of ours lies far in what is left", ours: long + "the line that came last\n",
			log:  []message{{1, time.Second, long}, {1, time.Minute, "the line that came last\n"}, {1, 2 * time.Minute, "new\n"}},
			want: long + "the line that came last\nnew\n",
		},
		{
			name: "ours ends within a message", ours: long + "the line that",
			log:  []message{{1, time.Second, long}, {1, time.Minute, "the line that came last\n"}, {1, 2 * time.Minute, "new\n"}},
			want: long + "the line that came last\nnew\n",
		},
		{
			name: "all that is ours is gone", ours: "gone\n", log: []message{{1, 2 * time.Minute, "later\n"}, {2, 2 * time.Minute, "err\n"}},
			want: "gone\nlater\n", gaps: []int64{5}, stray: []int64{0},
		},
		{
			name: "only the other stream's beginning is gone", ours: "gone\nthe line that came last\n",
			log:  []message{{2, time.Minute, "err\n"}, {1, time.Minute, "the line that came last\n"}, {1, 2 * time.Minute, "new\n"}},
			want: "gone\nthe line that came last\nnew\n",
		},
		{
			name: "all is old", ours: long, log: []message{{1, time.Second, long[len(long)-50:]}},
			want: long,
		},
		{
			name: "nothing is ours of a log that is full", log: []message{{1, 0, "one\n"}, {1, 1, "two\n"}}, most: 60,
			want: "one\ntwo\n", gaps: []int64{0}, stray: []int64{0},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			out, errs := newSink(t, "stdout", row.ours), newSink(t, "stderr", "")
			if row.ours != "" {
				out.first, out.last = epoch, epoch.Add(time.Minute)
			}
			if row.most == 0 {
				row.most = 1 << 20
			}
			var in strings.Builder
			for _, m := range row.log {
				in.WriteString(frame(m.stream, epoch.Add(m.after).UTC().Format(time.RFC3339Nano)+" "+m.text))
			}
			b := &backlog{Reader: strings.NewReader(in.String()), stamps: true, now: time.Now(), most: row.most, out: newResumer(out, false), err: newResumer(errs, false)}
			if err := b.read(); err != nil {
				t.Fatal(err)
			}
			if err := b.settle(); err != nil {
				t.Fatal(err)
			}
			for _, s := range []struct {
				*sink
				gaps []int64
			}{{out, row.gaps}, {errs, row.stray}} {
				if err := s.close(false); err != nil {
					t.Fatal(err)
				}
				ix, err := logfile.ReadIndex(filepath.Dir(s.w.Path()), filepath.Base(s.w.Path()))
				if err != nil || !slices.Equal(ix.Gaps, s.gaps) {
					t.Errorf("%s: gaps %v, want %v; %v", filepath.Base(s.w.Path()), ix.Gaps, s.gaps, err)
				}
			}
			if got, err := os.ReadFile(out.w.Path()); string(got) != row.want {
				t.Errorf("%d bytes, want %d, %v: %.200q", len(got), len(row.want), err, got)
			}
		})
	}
}

func newSink(t *testing.T, stream, ours string) *sink {
	t.Helper()
	w, err := logfile.Create(t.TempDir(), stream, logfile.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r, pw, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	s := &sink{pipe: pw, w: w, done: make(chan error, 1), init: initWord{passed: true}}
	go func() { s.done <- w.Pump(r) }()
	if _, err := s.Write([]byte(ours)); err != nil {
		t.Fatal(err)
	}
	if ours == "" {
		s.first, s.last = time.Time{}, time.Time{}
	}
	return s
}
