package docker

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-project/berth"
)

// TestRecords: a record is there when it was written, whole, and an empty file, as a crash of the machine leaves it, is
// none.
func TestRecords(t *testing.T) {
	e := &Engine{}
	file := filepath.Join(t.TempDir(), "record")
	var got string
	if err := readJSON(file, &got); !errors.Is(err, berth.ErrNotFound) || written(file) {
		t.Errorf("before it is written: %v, %v", err, written(file))
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := readJSON(file, &got); !errors.Is(err, berth.ErrNotFound) || written(file) {
		t.Errorf("empty: %v, %v", err, written(file))
	}
	soon, err := e.writeSoon(file, "first")
	if err != nil {
		t.Fatal(err)
	}
	if err := readJSON(file, &got); err != nil || got != "first" || !written(file) {
		t.Errorf("written a moment ago: %q, %v, %v", got, err, written(file))
	}
	if err := soon.wait(); err != nil {
		t.Error(err)
	}
	if err := writeJSON(file, "second"); err != nil {
		t.Fatal(err)
	}
	if err := readJSON(file, &got); err != nil || got != "second" {
		t.Errorf("written over: %q, %v", got, err)
	}
	if mine, err := claimJSON(file, "third"); mine || err != nil {
		t.Errorf("a claim of what is there: %v, %v", mine, err)
	}
	left, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(left) != 1 {
		t.Errorf("files %v, %v; want the record alone", left, err)
	}
}

// TestRemoteRecordEmpty: an empty record of what a sandbox has on a daemon still says that it has something there.
func TestRemoteRecordEmpty(t *testing.T) {
	e := &Engine{cfg: Config{Dir: t.TempDir()}}
	r := &remote{s: &Sandbox{e: e, spec: berth.SandboxSpec{ID: "s"}}}
	if there, err := r.read(); there || err != nil {
		t.Errorf("without a record: %v, %v", there, err)
	}
	if err := os.MkdirAll(filepath.Dir(r.file()), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.file(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if there, err := r.read(); !there || err != nil {
		t.Errorf("an empty record: %v, %v", there, err)
	}
}
