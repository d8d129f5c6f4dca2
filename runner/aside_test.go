package runner

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/store"
)

// fillDisk takes all room of a testbed's disk, and what its database has in hand.
func fillDisk(t *testing.T, b *testbed, task string) (free func()) {
	t.Helper()
	_ = os.Remove(b.reserveFile())
	f := must(os.Create(filepath.Join(b.dir, "fill")))
	full := func() {
		for buf := make([]byte, 4096); ; {
			if _, err := f.Write(buf); errors.Is(err, unix.ENOSPC) {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	for {
		full()
		_, err := b.store.Append(t.Context(), store.Event{Task: task, Kind: string(KindWarning)})
		if errors.Is(err, berth.ErrExhausted) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	full()
	return func() { _ = errors.Join(f.Close(), os.Remove(f.Name())) }
}

// TestFullDisk fills the disk while a step runs: its end is set aside, told at once, and recorded once there is room.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=32m"); err != nil {
		t.Skip("needs root to mount a small file system:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	b := openTestbed(dir)
	defer func() { _ = b.store.Close() }()
	b.engine = newDiskEngine(t.TempDir())
	b.cfg.Engine = b.engine
	var free func()
	var warnings []string
	task := berth.Task{ID: "a", Steps: []berth.Step{sh("exit 7")}}
	res, err := b.Run(timeout(t), task, Hooks{
		Ended: func(int, berth.Exit) { free = fillDisk(t, b, "a") },
		Warn:  func(text string) { warnings = append(warnings, text) },
	})
	if err != nil || res.State != berth.ExecutorError || res.ExitCode != 7 {
		t.Errorf("result %+v, %v", res, err)
	}
	want := []string{"the disk of the data directory is full: how the task ended is kept, and recorded once 256 KiB are free; make room in " + dir + " (berth rm --all, berth image prune)"}
	if !slices.Equal(warnings, want) {
		t.Errorf("warnings %q, want %q", warnings, want)
	}
	// Who asks now hears the truth, although it is not in the database.
	rec := must(b.Record(t.Context(), "a"))
	if known := must(b.store.Get(t.Context(), "a")); rec.Result == nil || rec.Result.ExitCode != 7 || known.State != berth.Running {
		t.Errorf("record %+v; the database has it %s", rec.Result, known.State)
	}
	if err := b.CatchUp(t.Context()); !errors.Is(err, berth.ErrExhausted) || !strings.Contains(err.Error(), "make room in "+dir) {
		t.Errorf("catching up on a full disk: %v", err)
	}
	// A new task needs a record first.
	if _, err := b.Submit(timeout(t), berth.Task{ID: "b", Steps: []berth.Step{sh("true")}}); !errors.Is(err, berth.ErrExhausted) {
		t.Errorf("submit: %v", err)
	}
	free()
	if err := b.CatchUp(t.Context()); err != nil || b.behind() {
		t.Errorf("catching up: %v", err)
	}
	known := must(b.store.Get(t.Context(), "a"))
	if known.State != berth.ExecutorError || known.Result == nil || known.Result.ExitCode != 7 || known.Open {
		t.Errorf("the database has it %s, %+v", known.State, known.Result)
	}
	var kinds []string
	for e := range b.store.Events(context.Background(), 0, "a") {
		if e.Kind != string(KindWarning) {
			kinds = append(kinds, e.Kind)
		}
	}
	if want := []string{"submitted", "admitted", "opening", "starting", "started", "ended", "outcome", "final"}; !slices.Equal(kinds, want) {
		t.Errorf("events %q, want %q", kinds, want)
	}
}
