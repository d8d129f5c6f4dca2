package docker

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth/logfile"
)

// TestLooks: what looks at a log of Podman's take, which grows, ends in a torn record that is another one at the next look, and is begun anew.
func TestLooks(t *testing.T) {
	long := ""
	for i := range 5000 {
		long += fmt.Sprintf("line %d\n", i)
	}
	end := long[len(long)-recordMost/2:]
	for _, row := range []struct {
		name string
		ours string   // is there already
		logs []string // at each look; the last is that of the ended container
		want string
		gaps []int64
	}{
		{"it grows", "", []string{"a\n", long[:40_000], long[:45_000], long}, long, nil},
		{"it stands still", "", []string{"one\n", "one\n", "one\ntwo\n", "one\ntwo\n", "one\ntwo\n"}, "one\ntwo\n", nil},
		{"some is ours", long[:20_000], []string{long[:30_000], long[:44_000], long}, long, nil},
		{"its end was torn", "", []string{long[:30_000] + "?\n", long[:30_020], long}, long, nil},
		{"it was begun anew, with ours in it", long[:20_000], []string{long[10_000:30_000], long[10_000:44_000], long[10_000:]}, long, nil},
		{"it was begun anew after ours", long[:20_000], []string{long[25_000:30_000], long[25_000:44_000], long[25_000:]}, long[:20_000] + long[25_000:], []int64{20_000}},
		{"it was begun anew, and is longer than ours", long[:10_000], []string{long[15_000:]}, long[:10_000] + long[15_000:], []int64{10_000}},
		{"it was begun anew between two looks", "", []string{long[:30_000], long[:30_000], end, long[len(long)-recordMost/2:]}, long[:30_000] + end, []int64{30_000}},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			open := func() *sink {
				w, err := logfile.Resume(dir, "stdout", logfile.Options{})
				if err != nil {
					t.Fatal(err)
				}
				pr, pw, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				s := &sink{pipe: pw, w: w, done: make(chan error, 1), init: initWord{passed: true}}
				go func() { s.done <- w.Pump(pr) }()
				return s
			}
			s := open()
			if _, err := s.Write([]byte(row.ours)); err != nil {
				t.Fatal(err)
			}
			re := &relook{before: map[*sink]int64{}, find: map[*sink]bool{}}
			for i, log := range row.logs {
				for try := 0; ; try++ {
					c := re.look(newResumer(s, false), i < len(row.logs)-1)
					_, err := copyBytes(c, log)
					if err == nil {
						err = c.finish()
					}
					if !errors.Is(err, errAnew) {
						if err != nil {
							t.Fatal(err)
						}
						break
					}
					if try > anewTries {
						t.Fatal("it is begun anew for ever")
					}
				}
			}
			gaps := s.gaps
			if err := s.close(false); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(dir, "stdout"))
			if err != nil || string(got) != row.want {
				t.Errorf("%d bytes, %v; want %d: they differ from byte %d on", len(got), err, len(row.want), differsAt(got, row.want))
			}
			if fmt.Sprint(gaps) != fmt.Sprint(row.gaps) {
				t.Errorf("gaps at %v; want %v", gaps, row.gaps)
			}
		})
	}
}

// copyBytes writes a text by and by.
func copyBytes(c *look, text string) (n int, err error) {
	for r := strings.NewReader(text); r.Len() > 0; {
		var b [1000]byte
		k, _ := r.Read(b[:])
		if _, err := c.Write(b[:k]); err != nil {
			return n, err
		}
		n += k
	}
	return n, nil
}

func differsAt(got []byte, want string) int {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return i
		}
	}
	return min(len(got), len(want))
}
