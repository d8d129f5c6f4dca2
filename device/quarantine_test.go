package device

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
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

// TestStanding: a condition has no time. It counts when it is seen first and when it is another, and not again because it is
// seen again after a release.
func TestStanding(t *testing.T) {
	q := Quarantine{Dirs: []string{filepath.Join(t.TempDir(), "a"), t.TempDir()}}
	now := time.Now()
	tell := func(health string) func() {
		return func() {
			now = now.Add(time.Second)
			if _, err := q.Hold(standingFaults([]Device{{UUID: "g", Health: &health}, {UUID: "not asked"}}, now)...); err != nil {
				t.Error(err)
			}
		}
	}
	report := func(reason string) func() {
		return func() {
			now = now.Add(time.Second)
			if err := q.Put(Fault{UUID: "g", Reason: reason, Time: now}); err != nil {
				t.Error(err)
			}
		}
	}
	release := func() {
		f := q.Held()["g"]
		now = now.Add(time.Second)
		f.Released = now
		if err := q.write(f); err != nil {
			t.Error(err)
		}
	}
	reboot := func() {
		now = now.Add(time.Second)
		q.Boot = now
	}
	other := func() { q.Dirs[0], q.Dirs[1] = q.Dirs[1], q.Dirs[0] } // notes go to another directory now
	for _, step := range []struct {
		what string
		do   func()
		want string
	}{
		{"it is well", tell(""), ""},
		{"no longer", tell("1 error"), "1 error"},
		{"still not", tell("1 error"), "1 error"},
		{"worse", tell("2 errors"), "2 errors"},
		{"release", release, ""},
		{"as it was", tell("2 errors"), ""},
		{"as it was, seen by another", func() { other(); tell("2 errors")() }, ""},
		{"worse again", tell("3 errors"), "3 errors"},
		{"well again, but not released", tell(""), "3 errors"},
		{"release again", release, ""},
		{"the same once more", tell("3 errors"), "3 errors"},
		{"an error is reported", report("Xid 79"), "Xid 79; its driver says: 3 errors"},
		{"the condition changes with it", tell("lost"), "Xid 79; its driver says: lost"},
		{"release of both", release, ""},
		{"both as they were", tell("lost"), ""},
		{"another error is reported", report("Xid 48"), "Xid 48; its driver says: lost"},
		{"release of that", release, ""},
		{"the condition stands on", tell("lost"), ""},
		{"another one", tell("to be reset"), "to be reset"},
		{"a new start", reboot, "to be reset"},
		{"nothing cured it", tell("to be reset"), "to be reset"},
		{"another start", reboot, "to be reset"},
		{"that did", tell(""), ""},
		{"the same again", tell("to be reset"), "to be reset"},
		{"well in the same run", tell(""), "to be reset"},
		{"a third start, which an error is seen before", func() { reboot(); report("Xid 79")() }, "Xid 79"},
		{"well after it", tell(""), "Xid 79"},
	} {
		step.do()
		f := q.Held()["g"]
		got := strings.Replace(f.String(), " since "+f.Time.Local().Format(time.DateTime), "", 1)
		if got != step.want {
			t.Errorf("%s: held for %q, want %q", step.what, got, step.want)
		}
	}
	files, err := filepath.Glob(q.Dirs[0] + "/*")
	if err != nil || len(files) != 1 {
		t.Errorf("notes: %v, %v", files, err)
	}
	// Where nothing can be noted, it holds all the same, as long as it stands.
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	q.Dirs = []string{filepath.Join(file, "dir")}
	held, err := q.Hold(standingFaults([]Device{{UUID: "g", Health: new("lost")}}, now)...)
	if err == nil || held["g"].Reason != "lost" {
		t.Errorf("%v, %v", held, err)
	}
	if held := q.See(standingFaults([]Device{{UUID: "g", Health: new("lost")}}, now)...); held["g"].Reason != "lost" {
		t.Error(held)
	}
}

// TestPutTakesTheNewest: of several faults of a device at once, in any order.
func TestPutTakesTheNewest(t *testing.T) {
	q := Quarantine{Dirs: []string{t.TempDir()}}
	now := time.Now()
	old, newer := Fault{UUID: "g", Reason: "old", Time: now.Add(-time.Hour)}, Fault{UUID: "g", Reason: "newer", Time: now}
	if err := q.Put(newer, old); err != nil || q.Held()["g"].Reason != "newer" {
		t.Error(err, q.Held())
	}
}
