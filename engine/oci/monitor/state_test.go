package monitor

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-project/berth"
)

// The records stay where they are, whatever is mounted between two monitors.
func TestStatePlace(t *testing.T) {
	first, second := t.TempDir(), t.TempDir() // not in memory yet
	m := testMonitor(t)
	m.cfg.Instance, m.places = "me", []string{first, second}
	if err := os.MkdirAll(filepath.Join(m.cfg.Dir, runDir), 0o700); err != nil {
		t.Fatal(err)
	}
	opened := func(what, want string) {
		t.Helper()
		if err := m.openState(); err != nil || m.state != want {
			t.Fatalf("%s: the records lie in %s, %v; want %s", what, m.state, err, want)
		}
	}
	clear := func() {
		t.Helper()
		if err := errors.Join(os.RemoveAll(m.state), os.MkdirAll(m.state, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	disk := filepath.Join(m.cfg.Dir, runDir, "state")
	opened("nothing is in memory", disk)
	mountTmpfs(t, second, "1m")
	opened("there is a place in memory by now", disk)
	if err := os.RemoveAll(disk); err != nil {
		t.Fatal(err)
	}
	opened("nothing is on the disk any more", filepath.Join(second, "me"))
	mountTmpfs(t, first, "1m")
	opened("there is a better place by now", filepath.Join(second, "me"))

	if err := os.Remove(filepath.Join(m.cfg.Dir, runDir, placeFile)); err != nil {
		t.Fatal(err)
	}
	opened("an older berth chose, which noted nothing", filepath.Join(second, "me"))

	clear()
	if err := writeJSON(filepath.Join(m.cfg.Dir, runDir, placeFile), place{m.state, "an earlier boot"}); err != nil {
		t.Fatal(err)
	}
	opened("the host was started anew", filepath.Join(first, "me"))

	if err := os.Chmod(first, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := m.openState(); !errors.Is(err, berth.ErrDenied) {
		t.Errorf("others may write where the records lie: %v", err)
	}
	if err := os.WriteFile(filepath.Join(m.cfg.Dir, runDir, placeFile), []byte(`{"di`), 0o600); err != nil {
		t.Fatal(err)
	}
	opened("the note was cut off", filepath.Join(second, "me"))
}
