package store

import (
	"errors"
	"reflect"
	"testing"

	"github.com/berth-project/berth"
)

func TestUniqueNames(t *testing.T) {
	s := openNew(t)
	add := func(id, name string, uid int, unique bool) error {
		_, err := s.Submit(bg, Submission{Task: berth.Task{ID: id, Name: name}, UID: uid, UniqueName: unique})
		return err
	}
	for _, tt := range []struct {
		id, name string
		uid      int
		unique   bool
		taken    string // by which task
	}{
		{"a", "x", 1, true, ""},
		{"b", "x", 1, true, "a"},
		{"c", "x", 2, true, ""},   // of another user
		{"d", "x", 1, false, ""},  // a document's
		{"e", "xy", 1, true, ""},  // another name
		{"f", "", 1, true, ""},    // none
		{"g", "", 1, true, ""},    // none again
		{"h", "x", 3, false, ""},  //
		{"i", "x", 3, true, "h"},  // whoever has it
		{"j", "xy", 1, true, "e"}, //
	} {
		err := add(tt.id, tt.name, tt.uid, tt.unique)
		taken := ""
		if e := (*NameError)(nil); errors.As(err, &e) {
			taken = e.ID
			isKind(t, err, berth.ErrConflict)
		} else if err != nil {
			t.Fatal(err)
		}
		if taken != tt.taken {
			t.Errorf("%s: the name is taken by %q, want %q", tt.id, taken, tt.taken)
		}
	}
	for _, id := range []string{"a", "d"} {
		if _, err := s.Append(bg, Event{Task: id, Kind: "cancel", State: berth.Canceled}); err != nil {
			t.Fatal(err)
		}
	}
	if err := add("b", "x", 1, true); err != nil {
		t.Errorf("after the others have ended: %v", err)
	}
	// Those that have not ended come first.
	ids, err := s.Named(bg, "x", 10)
	if want := []string{"b", "h", "c", "d", "a"}; !reflect.DeepEqual(ids, want) || err != nil {
		t.Errorf("named x are %q, %v, want %q", ids, err, want)
	}
	if ids, err := s.Named(bg, "x", 2); len(ids) != 2 || err != nil {
		t.Errorf("two of them are %q, %v", ids, err)
	}
	if ids, err := s.Named(bg, "", 2); len(ids) != 0 || err != nil {
		t.Errorf("without a name are %q, %v", ids, err)
	}
}
