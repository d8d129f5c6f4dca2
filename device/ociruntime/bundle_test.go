package ociruntime

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

func TestBundle(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte("{1}"), 0o640); err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		if err := os.Chown(path, 3, 4); err != nil {
			t.Fatal(err)
		}
	}
	labelled := unix.Setxattr(path, "user.label", []byte("kept"), 0) == nil
	var before unix.Stat_t
	if err := unix.Stat(path, &before); err != nil {
		t.Fatal(err)
	}
	write := func(want, text string) *bundle {
		t.Helper()
		b, err := readBundle(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(b.spec) != want {
			t.Errorf("read %s, want %s", b.spec, want)
		}
		if err := b.write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		return b
	}
	files := func(want int) {
		t.Helper()
		if all, err := os.ReadDir(filepath.Dir(path)); err != nil || len(all) != want {
			t.Errorf("files %v, %v; want %d", all, err, want)
		}
	}
	write("{1}", "{edited}")
	files(2)
	write("{1}", "{edited otherwise}") // the same bundle again: the original is edited anew
	files(2)
	var after unix.Stat_t
	if err := unix.Stat(path, &after); err != nil {
		t.Fatal(err)
	}
	if before.Uid != after.Uid || before.Gid != after.Gid || before.Mode != after.Mode {
		t.Errorf("owner and mode %d:%d %o, were %d:%d %o", after.Uid, after.Gid, after.Mode, before.Uid, before.Gid, before.Mode)
	}
	label := make([]byte, 10)
	if n, err := unix.Getxattr(path, "user.label", label); labelled && (err != nil || string(label[:n]) != "kept") {
		t.Errorf("label %q, %v", label[:max(n, 0)], err)
	}
	// A file that its owner has written anew is no edited one.
	if err := os.WriteFile(path, []byte("{2}"), 0o640); err != nil {
		t.Fatal(err)
	}
	b := write("{2}", "{edited}")
	if err := b.restore(); err != nil {
		t.Fatal(err)
	}
	write("{2}", "{2}")
	files(1)
}

// TestBundleIsALink: the link stays, and what it leads to is edited.
func TestBundleIsALink(t *testing.T) {
	dir := t.TempDir()
	real, link := filepath.Join(dir, "real.json"), filepath.Join(dir, "config.json")
	if err := errors.Join(os.WriteFile(real, []byte("{1}"), 0o600), os.Symlink("real.json", link)); err != nil {
		t.Fatal(err)
	}
	b, err := readBundle(link)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.write([]byte("{2}")); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(real); string(got) != "{2}" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
	if target, err := os.Readlink(link); target != "real.json" || err != nil {
		t.Errorf("%s, %v", target, err)
	}
}

func TestBundleUnchangedByFailure(t *testing.T) {
	if _, err := readBundle(filepath.Join(t.TempDir(), "config.json")); !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
	fifo := filepath.Join(t.TempDir(), "config.json")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := readBundle(fifo); err == nil && len(b.spec) > 0 { // and it does not hang
		t.Errorf("%s", b.spec)
	}
}
