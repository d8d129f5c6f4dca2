package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDataDir: a data directory that cannot be used is told in one line, with the reason and the remedy, whatever
// command meets it.
func TestDataDir(t *testing.T) {
	b := ordinary(t, 54321)
	roots := newBench(t)
	for d := roots.data; d != "/" && d != os.TempDir(); d = filepath.Dir(d) { // all of this test's: the directory above is everybody's
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, code := roots.output("run", "bb", "true"); code != 0 {
		t.Fatal(out)
	}
	closed := filepath.Join(roots.dir, "closed")
	file := filepath.Join(roots.dir, "file")
	if err := errFirst(os.MkdirAll(filepath.Join(closed, "data"), 0o700), os.WriteFile(file, nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	readOnly := filepath.Join(roots.dir, "ro")
	if err := errFirst(os.Mkdir(readOnly, 0o755), unix.Mount("tmpfs", readOnly, "tmpfs", unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(readOnly, unix.MNT_DETACH) })
	const remedy = "; give --data-dir, or set BERTH_DATA_DIR to, a directory that you can write\n"
	for _, tt := range []struct {
		bench     *bench
		dir, says string
		code      int // but of berth run
	}{
		{b, roots.data, "you may not read and write " + roots.data + ", which is another user's or closed to you", 3},
		{b, filepath.Join(closed, "data"), "you may not look into a directory above it", 3},
		{roots, file, file + " is no directory", 2},
		{roots, filepath.Join(file, "below"), file + " is no directory", 2},
		{roots, filepath.Join(readOnly, "data"), "its file system is mounted read-only", 3},
	} {
		for _, args := range [][]string{{"ps", "-a"}, {"wait", "x"}, {"image", "ls"}, {"run", "bb", "true"}} {
			out, code := tt.bench.output(append([]string{"--data-dir", tt.dir}, args...)...)
			if strings.HasSuffix(tt.dir, "/below") || strings.HasPrefix(tt.dir, readOnly) {
				if args[0] == "ps" || args[0] == "wait" {
					continue // there is none, and nothing in it
				}
			}
			want := tt.code
			if args[0] == "run" {
				want = 125
			}
			if out != "berth: data directory "+tt.dir+": "+tt.says+remedy || code != want {
				t.Errorf("%q in %s: exit code %d, want %d; %s", args, tt.dir, code, want, out)
			}
		}
	}
}
