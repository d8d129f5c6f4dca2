package companion_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth/companion"
)

// TestStart: who starts a companion is told what became of it.
func TestStart(t *testing.T) {
	for _, row := range []struct {
		name, script string
		want         func(error) bool
	}{
		{"ready", "printf ready >&3; exec 3>&-; sleep 0.1", func(err error) bool { return err == nil }},
		{"another runs", "printf running >&3", func(err error) bool { return err == nil }},
		{"it fails", "printf 'no room' >&3; exit 1", func(err error) bool {
			said, ok := errors.AsType[*companion.FailedError](err)
			return ok && said.Why == "no room"
		}},
		{"it ends", "exit 1", func(err error) bool { return errors.Is(err, companion.ErrEnded) }},
		{"it is killed", "kill -9 $$", func(err error) bool { return errors.Is(err, companion.ErrKilled) }},
	} {
		log := filepath.Join(t.TempDir(), "log")
		err := companion.Start(t.Context(), exec.CommandContext(context.Background(), "sh", "-c", "echo logged; "+row.script), log)
		if !row.want(err) {
			t.Errorf("%s: %v", row.name, err)
		}
		if raw, err := os.ReadFile(log); string(raw) != "logged\n" {
			t.Errorf("%s: log %q, %v", row.name, raw, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if err := companion.Start(ctx, exec.CommandContext(context.Background(), "sleep", "0.1"), filepath.Join(t.TempDir(), "log")); !errors.Is(err, why) {
		t.Errorf("given up: %v", err)
	}
}

// TestDial: the path of a socket may be long, and one that a companion left is in nobody's way.
func TestDial(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("d", 200))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := companion.Dial(dir, "sock"); err == nil {
		t.Error("connected to nobody")
	}
	for range 2 {
		l, err := companion.Listen(dir, "sock")
		if err != nil {
			t.Fatal(err)
		}
		c, err := companion.Dial(dir, "sock")
		if err != nil {
			t.Fatal(err)
		}
		if st, err := os.Stat(filepath.Join(dir, "sock")); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
		_, _ = c.Close(), l.Close()
	}
}
