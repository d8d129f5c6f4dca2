package runner

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"testing"

	"github.com/berth-project/berth"
	"github.com/google/go-cmp/cmp"
)

// farVolumes are volumes on another machine: directories below one, by their paths in the steps.
type farVolumes struct {
	root  string
	asked []string
}

// ArchiveVolume archives as daemons do: links are links, and the directories above are as they are.
func (f *farVolumes) ArchiveVolume(_ context.Context, p string) (io.ReadCloser, error) {
	f.asked = append(f.asked, p)
	at := filepath.Join(f.root, p)
	if _, err := os.Lstat(at); errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", p, berth.ErrNotFound)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err := filepath.WalkDir(at, func(q string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		link, _ := os.Readlink(q)
		h, err := tar.FileInfoHeader(st, link)
		if err != nil {
			return err
		}
		h.Name = path.Join(path.Base(p), q[len(at):])
		if err := w.WriteHeader(h); err != nil || !st.Mode().IsRegular() {
			return err
		}
		raw, err := os.ReadFile(q)
		if err == nil {
			_, err = w.Write(raw)
		}
		return err
	})
	return io.NopCloser(&buf), errors.Join(err, w.Close())
}

// TestMirror: what outputs name in volumes on another machine is brought with what its links lead to, and no more.
func TestMirror(t *testing.T) {
	for _, row := range []struct {
		name    string
		outputs []berth.Output
		want    []string // of the volume /v, and of the one in it
	}{
		{"a file", []berth.Output{{Path: "/v/d/file"}}, []string{"d/", "d/file file"}},
		{"a file through a link", []berth.Output{{Path: "/v/link/file"}}, []string{"d/", "d/file file", "link -> d"}},
		{"a link to a link", []berth.Output{{Path: "/v/two"}}, []string{"big/", "big/x x", "one -> /v/big/x", "two -> one"}},
		{"a circle", []berth.Output{{Path: "/v/a"}}, []string{"a -> b", "b -> a"}},
		{"a link out of the volumes", []berth.Output{{Path: "/v/out/passwd"}}, []string{"out -> /etc"}},
		{"what is not there", []berth.Output{{Path: "/v/d/none"}, {Path: "/v/none/x"}}, []string{"d/"}},
		{"a pattern", []berth.Output{{Path: "/v/d/*.txt"}}, []string{"big/", "big/x x", "d/", "d/file file", "d/sub/", "d/sub/up -> ../../big"}},
		{"a directory, and what is in it", []berth.Output{{Path: "/v/d/file"}, {Path: "/v/d", Type: berth.Directory}}, []string{"big/", "big/x x", "d/", "d/file file", "d/sub/", "d/sub/up -> ../../big"}},
		{"all, with the volume in it", []berth.Output{{Path: "/v", Type: berth.Directory}}, []string{
			"a -> b", "b -> a", "big/", "big/x x", "d/", "d/file file", "d/sub/", "d/sub/up -> ../../big", "in/", "in/inner inner", "link -> d", "one -> /v/big/x", "out -> /etc", "two -> one", "v/in: inner inner",
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			far := &farVolumes{root: t.TempDir()}
			v := filepath.Join(far.root, "v")
			err := errors.Join(os.MkdirAll(filepath.Join(v, "d", "sub"), 0o755), os.MkdirAll(filepath.Join(v, "big"), 0o755), os.MkdirAll(filepath.Join(v, "in"), 0o755),
				os.WriteFile(filepath.Join(v, "d", "file"), []byte("file"), 0o600), os.WriteFile(filepath.Join(v, "big", "x"), []byte("x"), 0o600), os.WriteFile(filepath.Join(v, "in", "inner"), []byte("inner"), 0o600),
				os.Symlink("d", filepath.Join(v, "link")), os.Symlink("/v/big/x", filepath.Join(v, "one")), os.Symlink("one", filepath.Join(v, "two")),
				os.Symlink("b", filepath.Join(v, "a")), os.Symlink("a", filepath.Join(v, "b")), os.Symlink("/etc", filepath.Join(v, "out")), os.Symlink("../../big", filepath.Join(v, "d", "sub", "up")))
			if err != nil {
				t.Fatal(err)
			}
			task := berth.Task{Volumes: []berth.Volume{{Path: "/v"}, {Path: "/v/in"}}, Outputs: row.outputs}
			lay, err := newLayout(&task)
			if err != nil {
				t.Fatal(err)
			}
			d := &drive{r: &Runner{}, rec: &Record{Task: task}, lay: lay, dir: taskDir(t.TempDir()), now: t.Context()}
			var got []string
			for _, volume := range []string{"/v", "/v/in"} {
				root, err := d.mirrored(far, volume)
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = root.Close() }()
				got = append(got, contents(t, root, volume)...)
			}
			slices.Sort(got)
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("%s\nasked for: %q", diff, far.asked)
			}
		})
	}
}

// contents lists what a mirror holds.
func contents(t *testing.T, root *os.Root, volume string) (out []string) {
	t.Helper()
	prefix := ""
	if volume != "/v" {
		prefix = volume[1:] + ": "
	}
	err := fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		switch {
		case err != nil || p == ".":
			return err
		case e.IsDir():
			out = append(out, prefix+p+"/")
			return nil
		case e.Type()&fs.ModeSymlink != 0:
			to, err := root.Readlink(p)
			out = append(out, prefix+p+" -> "+to)
			return err
		}
		raw, err := root.ReadFile(p)
		out = append(out, prefix+p+" "+string(raw))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}
