package store

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

var bg = context.Background()

func openAt(t testing.TB, path string) *Store {
	t.Helper()
	s, err := Open(bg, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func openNew(t testing.TB) *Store {
	t.Helper()
	return openAt(t, filepath.Join(t.TempDir(), "berth.db"))
}

func submit(t testing.TB, s *Store, task berth.Task) {
	t.Helper()
	if _, err := s.Submit(bg, Submission{Task: task, UID: 7}); err != nil {
		t.Fatal(err)
	}
}

func isKind(t testing.TB, err, kind error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("error is %v, and should be %v", err, kind)
	}
}

func TestLifeOfATask(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a b?#%41", "berth.db")
	s := openAt(t, path)
	at := time.Unix(1700000000, 5)
	task := berth.Task{ID: "abc", Name: "align", Labels: map[string]string{"k": "v"}, Steps: []berth.Step{{Image: "debian"}}}
	if _, err := s.Submit(bg, Submission{Task: task, UID: 7, Detached: true, Time: at}); err != nil {
		t.Fatal(err)
	}
	result := &berth.Result{ID: "abc", State: berth.Complete, Outputs: []berth.OutputFile{}}
	for i, e := range []Event{
		{Kind: "admitted", State: berth.Initializing, Sandbox: new("abc"), Work: json.RawMessage(`{"lease":"x"}`)},
		{Kind: "started", State: berth.Running, Data: json.RawMessage(`{"step":0}`)},
		{Kind: "note"},
		{Kind: "ended", State: berth.Complete, Result: result},
	} {
		e.Task, e.Time = "abc", at.Add(time.Duration(i+1)*time.Second)
		if seq, err := s.Append(bg, e); err != nil || seq != int64(i+2) {
			t.Fatalf("append %s: seq %d, %v", e.Kind, seq, err)
		}
	}
	want := Record{
		ID: "abc", Name: "align", State: berth.Complete, Created: at, Updated: at.Add(4 * time.Second), UID: 7, Detached: true,
		Open: true, Sandbox: "abc", Work: json.RawMessage(`{"lease":"x"}`), Task: task, Result: result, n: 1,
	}
	// Another process sees the same.
	got, err := openAt(t, path).Get(bg, "abc")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Fatalf("record is\n%+v (%v), want\n%+v", got, err, want)
	}
	var kinds []string
	for e, err := range s.Events(bg, 1, "abc") {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, fmt.Sprint(e.Seq, e.Kind, e.State, string(e.Data)))
	}
	if want := []string{"2admittedINITIALIZING", `3startedRUNNING{"step":0}`, "4note", "5endedCOMPLETE"}; !reflect.DeepEqual(kinds, want) {
		t.Errorf("events are %q, want %q", kinds, want)
	}
	isKind(t, s.Delete(bg, "abc"), berth.ErrConflict)
	if _, err := s.Append(bg, Event{Task: "abc", Kind: "closed", Sandbox: new("")}); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(bg, "abc"); err != nil {
		t.Fatal(err)
	}
	_, err = s.Get(bg, "abc")
	isKind(t, err, berth.ErrNotFound)
}

func TestIllegalChange(t *testing.T) {
	s := openNew(t)
	submit(t, s, berth.Task{ID: "a"})
	_, err := s.Append(bg, Event{Task: "a", Kind: "jump", State: berth.Complete})
	isKind(t, err, berth.ErrConflict)
	if want := "append jump to task a: conflict: it is QUEUED and cannot become COMPLETE"; err.Error() != want {
		t.Errorf("error is %q, want %q", err, want)
	}
	n := 0
	for range s.Events(bg, 0, "") {
		n++
	}
	if r, _ := s.Get(bg, "a"); r.State != berth.Queued || n != 1 {
		t.Errorf("the refused event left state %s and %d events", r.State, n)
	}
	_, err = s.Append(bg, Event{Task: "none", Kind: "x"})
	isKind(t, err, berth.ErrNotFound)
	_, err = s.Submit(bg, Submission{Task: berth.Task{ID: "a"}})
	isKind(t, err, berth.ErrConflict)
	_, err = s.Submit(bg, Submission{Task: berth.Task{ID: "A/b"}})
	isKind(t, err, berth.ErrInvalid)
}

func TestFilesThatAreNoDatabase(t *testing.T) {
	foreign := filepath.Join(t.TempDir(), "foreign.db")
	s := openAt(t, foreign)
	if _, err := s.db.Exec("PRAGMA application_id = 7; PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	foreignData, err := os.ReadFile(foreign)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		data []byte
		says string
	}{
		{"empty", nil, "not a database of berth's"},
		{"short", []byte("hi"), "not a database"},
		{"text", []byte(strings.Repeat("hello ", 100)), "damaged; move it away"},
		{"another program's database", foreignData, "not a database of berth's"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "berth.db")
			if err := os.WriteFile(path, c.data, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := Open(bg, path, Options{})
			isKind(t, err, berth.ErrInvalid)
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not say %q", err, c.says)
			}
			if after, err := os.ReadFile(path); err != nil || string(after) != string(c.data) {
				t.Errorf("the file was changed to %d bytes (%v)", len(after), err)
			}
		})
	}
}

func BenchmarkOpenSubmit(b *testing.B) {
	path := filepath.Join(b.TempDir(), "berth.db")
	keep := openAt(b, path)
	submit(b, keep, berth.Task{ID: "first"})
	i := 0
	for b.Loop() {
		s, err := Open(bg, path, Options{})
		if err != nil {
			b.Fatal(err)
		}
		i++
		submit(b, s, berth.Task{ID: fmt.Sprint("t", i)})
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) {
	s := openNew(b)
	submit(b, s, berth.Task{ID: "a"})
	for b.Loop() {
		if _, err := s.Append(bg, Event{Task: "a", Kind: "note"}); err != nil {
			b.Fatal(err)
		}
	}
}

func TestNewerAndDamagedDatabases(t *testing.T) {
	path := filepath.Join(t.TempDir(), "berth.db")
	s, err := Open(bg, path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 {
		submit(t, s, berth.Task{ID: fmt.Sprint("t", i), Description: strings.Repeat("x", 500)})
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	damaged := slices.Clone(whole)
	for i := 4096; i < len(damaged); i++ { // all but the first page
		damaged[i] = byte(i)
	}
	if err := os.WriteFile(path, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	s = openAt(t, path)
	_, err = s.Get(bg, "t1")
	isKind(t, err, berth.ErrInvalid)
	_, err = s.Append(bg, Event{Task: "t1", Kind: "x"})
	isKind(t, err, berth.ErrInvalid)

	newer := filepath.Join(t.TempDir(), "berth.db")
	whole[63]++ // the last byte of user_version
	if err := os.WriteFile(newer, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Open(bg, newer, Options{})
	isKind(t, err, berth.ErrUnsupported)
}

// How a `berth run` finds the store when no other has it open: closed, or left behind by one that exited.
func BenchmarkOpenSubmitAlone(b *testing.B) {
	for _, c := range []struct {
		name  string
		close bool
	}{{"closed", true}, {"left", false}} {
		b.Run(c.name, func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "berth.db")
			run := func() {
				s, err := Open(bg, path, Options{})
				if err != nil {
					b.Fatal(err)
				}
				submit(b, s, berth.Task{ID: berth.NewID()})
				if c.close {
					_ = s.Close()
					return
				}
				b.StopTimer()
				wal, err := os.ReadFile(path + "-wal")
				if err != nil {
					b.Fatal(err)
				}
				_ = s.Close()
				if err := os.WriteFile(path+"-wal", wal, 0o600); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			run()
			for b.Loop() {
				run()
			}
		})
	}
}
