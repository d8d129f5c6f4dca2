package cli

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/berth-project/berth"
)

// A link that a user names stays, and what it leads to is written; what a process has open is not, but its standard output.
func TestWriteWholeThroughLinks(t *testing.T) {
	dir := t.TempDir()
	file, log := filepath.Join(dir, "file"), filepath.Join(dir, "log")
	for _, name := range []string{file, log} {
		if err := os.WriteFile(name, []byte("old\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for link, to := range map[string]string{"l": "file", "out": "/proc/self/fd/" + strconv.Itoa(int(f.Fd()))} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
		a := &app{dir: dir}
		refused := link == "out"
		if err := a.checkResultFile("run", link, nil); (err != nil) != refused {
			t.Error(link, err)
		}
		if err := a.writeWhole(link, []byte("new\n"), nil); (err != nil) != refused {
			t.Error(link, err)
		}
		if got, err := os.Readlink(filepath.Join(dir, link)); got != to {
			t.Errorf("%s leads to %s, %v", link, got, err)
		}
	}
	for name, want := range map[string]string{file: "new\n", log: "old\n"} {
		if got, err := os.ReadFile(name); string(got) != want {
			t.Errorf("%s has %q, %v", name, got, err)
		}
	}
	if !isOpen("/proc/self/fd/1") || isOpen("/proc/self/fd/0") || isOpen(file) {
		t.Error("standard output is not told from other files")
	}
}

// What is open has no way to it, which a task could change: it is written to, whatever a task can write to. A place beyond it has one.
func TestWriteWholeToWhatIsOpen(t *testing.T) {
	writable := []string{t.TempDir()}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	a := &app{dir: t.TempDir()}
	for _, name := range []string{"/dev/fd/", "/proc/self/fd/"} {
		name += strconv.Itoa(int(w.Fd()))
		if err := errors.Join(a.checkResultFile("run", name, writable), a.writeWhole(name, []byte("new"), writable)); err != nil {
			t.Error(name, err)
			continue
		}
		got := make([]byte, 8)
		if n, err := r.Read(got); string(got[:n]) != "new" {
			t.Errorf("%s: %q, %v", name, got[:n], err)
		}
	}
	for _, name := range []string{"/dev/stdout", "/dev/stderr"} {
		if there, err := isStream(name, writable); !there || err != nil {
			t.Errorf("%s: %v, %v", name, there, err)
		}
	}
	if err := a.writeWhole("/proc/self/cwd/f", nil, writable); !errors.Is(err, berth.ErrConflict) {
		t.Error(err)
	}
}
