package staging_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
)

// grow makes a tree of what a fuzzer says: each byte a step, in or out of directories, or something made.
func grow(dir string, steps []byte) {
	names := []string{"a", "b", "c", ".d"}
	targets := []string{"a", "b", "../a", "../../b", ".", "..", "/v/a", "/v/t/b", "/v", "/w/a", "/etc", "/", "../../../../../../etc", "a/b", "../t/c", "c/../..", "/in", "/v/in/../a", "b/.", "nope"}
	at := dir
	for i := 0; i+1 < len(steps) && i < 120; i += 2 {
		name := filepath.Join(at, names[steps[i]>>6])
		switch what := steps[i] & 7; what {
		case 0, 1:
			if f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644); err == nil {
				_, _ = f.Write([]byte{'x', steps[i+1]})
				_ = f.Close()
			}
		case 2:
			if os.Mkdir(name, 0o755) == nil {
				at = name
			}
		case 3:
			if at != dir {
				at = filepath.Dir(at)
			}
		case 4:
			_ = unix.Mkfifo(name, 0o644)
		default:
			_ = os.Symlink(targets[int(steps[i+1])%len(targets)], name)
		}
	}
}

// Whatever tree a task makes: what is collected holds nothing of the host's, and no link of it leads out.
func FuzzCollectTree(f *testing.F) {
	f.Add([]byte{0x02, 0, 0x42, 0, 0x05, 3, 0x87, 7})
	f.Add([]byte{0x05, 10, 0x45, 8, 0x85, 2, 0xc5, 12})
	f.Add([]byte{0x02, 0, 0x05, 9, 0x45, 14, 0x03, 0, 0x46, 6, 0x86, 0})
	f.Fuzz(func(t *testing.T, steps []byte) {
		base, err := os.MkdirTemp("/dev/shm", "collect")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(base)
		for _, d := range []string{"v/t", "v/in", "w", "dest/below"} {
			if err := os.MkdirAll(filepath.Join(base, d), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		third := len(steps) / 3
		grow(filepath.Join(base, "v/t"), steps[:third])
		grow(filepath.Join(base, "v"), steps[third:2*third])
		grow(filepath.Join(base, "w"), steps[2*third:])
		v := view(t,
			staging.Mount{Path: "/v", Root: volume(t, filepath.Join(base, "v"))},
			staging.Mount{Path: "/v/in", HostPath: filepath.Join(base, "w")},
			staging.Mount{Path: "/w", Root: volume(t, filepath.Join(base, "w"))})
		dest := filepath.Join(base, "dest/below")
		for i, o := range []berth.Output{{Path: "/v/t", URL: dest + "/t"}, {Path: "/v/**", URL: dest + "/g"}, {Path: "/v", URL: dest + "/v"}, {Path: "/v/t", URL: dest + "/v"}} {
			_, _ = staging.Collect(t.Context(), v, []berth.Output{o}, staging.CollectOptions{})
			inside(t, dest, i < 3)
		}
		if got := show(t, filepath.Join(base, "dest")); strings.Contains(got, "berth-") {
			t.Errorf("left %s", got)
		}
	})
}

// inside checks that no link in a tree leads out of it, step by step, and, if whole, that each leads
// somewhere: merging into what is there may change what a link leads to.
func inside(t *testing.T, dest string, whole bool) {
	t.Helper()
	root, err := os.OpenRoot(dest)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	err = filepath.WalkDir(dest, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&fs.ModeSymlink == 0 {
			return err
		}
		rel, err := filepath.Rel(dest, p)
		if err != nil {
			return err
		}
		text, err := os.Readlink(p)
		if err != nil {
			return err
		}
		// os.Root refuses what leads out, even where it would come back.
		if _, err := root.Stat(rel); err != nil && (whole || strings.Contains(err.Error(), "escapes")) {
			t.Errorf("%s->%s: %v", rel, text, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
