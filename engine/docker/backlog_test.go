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

// TestBacklog: where ours ends in the daemon's log, which may have lost its beginning.
func TestBacklog(t *testing.T) {
	epoch := time.Now().Add(-time.Hour)
	type message struct {
		stream byte
		after  time.Duration // of the epoch
		text   string
	}
	lines := ""
	for i := range 400 {
		lines += fmt.Sprintf("line %d of many that differ\n", i)
	}
	long := strings.Repeat("a line of fifty bytes, as there are many in a log\n", 200)
	for _, row := range []struct {
		name        string
		ours        string // of stdout; it came at the epoch, and a minute later
		log         []message
		most        int64
		want        string
		wantErr     string  // where it is looked at
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
			name: "what is ours was logged late by a loaded daemon", ours: lines,
			log: []message{
				{1, time.Minute + 2*time.Second, lines[len(lines)-6000:]},
				{2, time.Minute + 2*time.Second, "err\n"},
				{1, time.Minute + 3*time.Second, "new\n"},
			},
			want: lines + "new\n", wantErr: "err\n",
		},
		{
			name: "the same in parts, and the other stream before it", ours: lines,
			log: []message{
				{2, time.Minute + 2*time.Second, "err\n"},
				{1, time.Minute + 2*time.Second, lines[len(lines)-6000 : len(lines)-3000]},
				{1, time.Minute + 2*time.Second, lines[len(lines)-3000:] + "new\n"},
			},
			want: lines + "new\n", wantErr: "err\n",
		},
		{
			name: "a part of what is ours in time, the rest logged late", ours: lines,
			log: []message{
				{1, time.Minute, lines[len(lines)-6000 : len(lines)-3000]},
				{1, time.Minute + 2*time.Second, lines[len(lines)-3000:]},
				{1, time.Minute + 2*time.Second, "new\n"},
			},
			want: lines + "new\n",
		},
		{
			name: "more of the same is not taken for ours", ours: long,
			log:  []message{{1, time.Minute + 2*time.Second, long}, {2, time.Minute + 2*time.Second, "err\n"}},
			want: long + long, gaps: []int64{int64(len(long))}, stray: []int64{0}, wantErr: "err\n",
		},
		{
			name: "all that is ours is gone, by a little", ours: lines,
			log:  []message{{2, time.Minute + 2*time.Second, "err\n"}, {1, time.Minute + 2*time.Second, "later\n"}, {1, time.Minute + time.Hour, "on\n"}},
			want: lines + "later\non\n", gaps: []int64{int64(len(lines))}, stray: []int64{0}, wantErr: "err\n",
		},
		{
			name: "all that is ours is gone, by a little, and nothing follows", ours: lines,
			log:  []message{{2, time.Minute + 2*time.Second, "err\n"}, {1, time.Minute + 2*time.Second, "later\n"}},
			want: lines + "later\n", gaps: []int64{int64(len(lines))}, stray: []int64{0}, wantErr: "err\n",
		},
		{
			name: "all that is ours is gone, by a little, and only the other stream has more", ours: lines,
			log:  []message{{2, time.Minute + 2*time.Second, "err\n"}, {2, time.Hour, "on\n"}},
			want: lines, stray: []int64{0}, wantErr: "err\non\n",
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
			if got, err := os.ReadFile(errs.w.Path()); row.wantErr != "" && string(got) != row.wantErr {
				t.Errorf("stderr %q, want %q; %v", got, row.wantErr, err)
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
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) { // as a log is that is opened anew
		if st, err := os.Stat(w.Path()); err == nil && st.Size() == int64(len(ours)) || time.Now().After(deadline) {
			break
		}
	}
	if ours == "" {
		s.first, s.last = time.Time{}, time.Time{}
	}
	return s
}

// TestBacklogReadOn: a log that ended too early is read once more, and goes on where it was, whatever it holds.
func TestBacklogReadOn(t *testing.T) {
	epoch := time.Now().Add(-time.Hour)
	type message struct {
		stream byte
		after  time.Duration
		text   string
	}
	same := message{1, time.Second, "the same\n"}
	part := message{1, time.Second, strings.Repeat("x", logMessageMax)}
	for _, row := range []struct {
		name          string
		ours          string // of stdout, before either; it came at the epoch
		first, second []message
		mend          bool
		want, wantErr string
		gaps          []int64 // of stdout
	}{
		{
			name: "all once more, and the rest", first: []message{{1, 0, "one\n"}, {2, 1, "err\n"}},
			second: []message{{1, 0, "one\n"}, {2, 1, "err\n"}, {1, 2, "two\n"}, {2, 2, "more\n"}},
			want:   "one\ntwo\n", wantErr: "err\nmore\n",
		},
		{name: "of one time", first: []message{same, same}, second: []message{same, same, same, same}, want: strings.Repeat("the same\n", 4)},
		{
			name: "its beginning gone meanwhile", first: []message{{1, 0, "y\n"}, {1, 1, "y\n"}, {1, 2, "y\n"}},
			second: []message{{1, 2, "y\n"}, {1, 3, "y\n"}}, want: "y\ny\ny\ny\n",
		},
		{
			name: "all of it gone meanwhile", first: []message{{1, 0, "one\n"}, {2, 0, "err\n"}},
			second: []message{{1, 2, "three\n"}, {2, 2, "more\n"}}, want: "one\nthree\n", wantErr: "err\nmore\n", gaps: []int64{4},
		},
		{
			name: "ended while ours is passed over", ours: "one\ntwo\n", first: []message{{1, 0, "one\n"}},
			second: []message{{1, 0, "one\n"}, {1, 1, "two\n"}, {1, 2, "three\n"}}, want: "one\ntwo\nthree\n",
		},
		{
			name: "ended while ours is looked for", ours: strings.Repeat("before\n", 10) + "the line that came last\n",
			first:  []message{{1, time.Minute - 1, "before\n"}},
			second: []message{{1, time.Minute - 1, "before\n"}, {1, time.Minute, "the line that came last\n"}, {1, time.Hour, "new\n"}},
			want:   strings.Repeat("before\n", 10) + "the line that came last\nnew\n",
		},
		{name: "a newline that is owed", mend: true, first: []message{part, {1, 2 * time.Second, "end"}}, second: []message{part, {1, 2 * time.Second, "end"}}, want: part.text + "end\n"},
	} {
		t.Run(row.name, func(t *testing.T) {
			out, errs := newSink(t, "stdout", row.ours), newSink(t, "stderr", "")
			if row.ours != "" {
				out.first, out.last = epoch, epoch.Add(time.Minute)
			}
			var before *backlog
			for _, log := range [][]message{row.first, row.second} {
				var in strings.Builder
				for _, m := range log {
					in.WriteString(frame(m.stream, epoch.Add(m.after).UTC().Format(time.RFC3339Nano)+" "+m.text))
				}
				b := &backlog{Reader: strings.NewReader(in.String()), stamps: true, now: time.Now(), most: 1 << 20, out: newResumer(out, row.mend), err: newResumer(errs, row.mend)}
				b.goOnFrom(before)
				if err := b.read(); err != nil {
					t.Fatal(err)
				}
				before = b
			}
			if err := before.settle(); err != nil {
				t.Fatal(err)
			}
			for s, want := range map[*sink]string{out: row.want, errs: row.wantErr} {
				if err := s.close(false); err != nil {
					t.Fatal(err)
				}
				if got, err := os.ReadFile(s.w.Path()); string(got) != want {
					t.Errorf("%s: %d bytes, want %d, %v: %.200q", filepath.Base(s.w.Path()), len(got), len(want), err, got)
				}
			}
			if !slices.Equal(out.gaps, row.gaps) {
				t.Errorf("gaps %v, want %v", out.gaps, row.gaps)
			}
		})
	}
}
