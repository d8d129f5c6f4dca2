package device

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
)

func TestQuarantine(t *testing.T) {
	readOnly := filepath.Join(t.TempDir(), "file") // nothing can be made below it, by root neither
	if err := os.WriteFile(readOnly, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	q := Quarantine{Dirs: []string{filepath.Join(readOnly, "dir"), filepath.Join(t.TempDir(), "a", "b")}}
	start := time.Now().Add(-time.Hour)
	old, newer := Fault{UUID: "GPU-1/0", Reason: "old", Time: start}, Fault{UUID: "GPU-1/0", Reason: "newer", Time: start.Add(time.Minute)}
	held := func() (reasons []string) {
		for _, f := range q.Held() {
			reasons = append(reasons, f.UUID+" "+f.Reason)
		}
		slices.Sort(reasons)
		return reasons
	}
	for _, step := range []struct {
		what string
		do   func() error
		want []string
	}{
		{"nothing is held", func() error { return nil }, nil},
		{"put", func() error { return q.Put(old, Fault{UUID: "g", Reason: "x", Time: start}) }, []string{"GPU-1/0 old", "g x"}},
		{"put again", func() error { return q.Put(old) }, []string{"GPU-1/0 old", "g x"}},
		{"a newer fault", func() error { return q.Put(newer) }, []string{"GPU-1/0 newer", "g x"}},
		{"release", func() error { return q.Release("GPU-1/0") }, []string{"g x"}},
		{"what was released stays so", func() error { return q.Put(old, newer) }, []string{"g x"}},
		{"a fault after the release", func() error { return q.Put(Fault{UUID: "GPU-1/0", Reason: "again", Time: time.Now()}) }, []string{"GPU-1/0 again", "g x"}},
	} {
		if err := step.do(); err != nil {
			t.Fatal(step.what, err)
		}
		if diff := cmp.Diff(step.want, held()); diff != "" {
			t.Errorf("%s: %s", step.what, diff)
		}
	}
	if err := q.Release("h"); !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
	if err := (Quarantine{Dirs: q.Dirs[:1]}).Put(old); err == nil {
		t.Error("a note that nobody keeps is no error")
	}
}
