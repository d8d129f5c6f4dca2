package untar

import (
	"archive/tar"
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/berth-project/berth"
	"github.com/google/go-cmp/cmp"
)

func archive(headers ...tar.Header) []byte {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range headers {
		if h.Typeflag == 0 || h.Typeflag == tar.TypeReg {
			h.Size = int64(len("content"))
		}
		if err := w.WriteHeader(&h); err != nil {
			panic(err)
		}
		if h.Size > 0 {
			must(w.Write([]byte("content")))
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return buf.Bytes()
}

func TestInto(t *testing.T) {
	for _, c := range []struct {
		name    string
		headers []tar.Header
		want    []string
		fails   bool
	}{
		{
			name: "a tree",
			headers: []tar.Header{
				{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o500},
				{Name: "d/f", Mode: 0o4755},
				{Name: "d/l", Typeflag: tar.TypeSymlink, Linkname: "f"},
				{Name: "d/h", Typeflag: tar.TypeLink, Linkname: "d/f"},
			},
			want: []string{"d drwx------", "d/f -rwxr-xr-x", "d/h -rwxr-xr-x", "d/l Lrwxrwxrwx"},
		},
		{name: "a name that leads up", headers: []tar.Header{{Name: "../f", Mode: 0o644}}, fails: true},
		{name: "an absolute name stays below", headers: []tar.Header{{Name: "/f", Mode: 0o600}}, want: []string{"f -rw-------"}},
		{
			name:    "a link that leads out is not followed",
			headers: []tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/f", Mode: 0o644}},
			want:    []string{"l Lrwxrwxrwx"}, fails: true,
		},
		{
			name:    "a hard link to what lies outside",
			headers: []tar.Header{{Name: "h", Typeflag: tar.TypeLink, Linkname: "../../outside"}}, fails: true,
		},
		{name: "a device", headers: []tar.Header{{Name: "d", Typeflag: tar.TypeChar}}, fails: true},
		{name: "the same file twice", headers: []tar.Header{{Name: "f", Mode: 0o600}, {Name: "f", Mode: 0o600}}, want: []string{"f -rw-------"}, fails: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "outside"), []byte("safe"), 0o600); err != nil {
				t.Fatal(err)
			}
			root := openRoot(t, dir)
			if err := Into(bytes.NewReader(archive(c.headers...)), root); (err != nil) != c.fails {
				t.Errorf("error %v", err)
			}
			if diff := cmp.Diff(c.want, listing(filepath.Join(dir, "root"))); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{"outside -rw-------", "root drwx------"}, top(dir)); diff != "" {
				t.Errorf("outside: %s", diff)
			}
		})
	}
}

// FuzzInto unpacks whatever: nothing may be written beside the root.
func FuzzInto(f *testing.F) {
	f.Add(archive(tar.Header{Name: "a/b", Mode: 0o644}))
	f.Add(archive(tar.Header{Name: "../f", Mode: 0o644}))
	f.Add(archive(tar.Header{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../.."}, tar.Header{Name: "l/f", Mode: 0o644}))
	f.Add(archive(tar.Header{Name: "h", Typeflag: tar.TypeLink, Linkname: "/../outside"}))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "outside"), []byte("safe"), 0o600); err != nil {
			t.Fatal(err)
		}
		_ = Into(bytes.NewReader(data), openRoot(t, dir))
		if diff := cmp.Diff([]string{"outside -rw-------", "root drwx------"}, top(dir)); diff != "" {
			t.Error(diff)
		}
		if got := string(must(os.ReadFile(filepath.Join(dir, "outside")))); got != "safe" {
			t.Errorf("the file outside holds %q", got)
		}
	})
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func openRoot(t *testing.T, dir string) *os.Root {
	dir = filepath.Join(dir, "root")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	root := must(os.OpenRoot(dir))
	t.Cleanup(func() { _ = root.Close() })
	return root
}

func top(dir string) (out []string) {
	for _, e := range must(os.ReadDir(dir)) {
		out = append(out, e.Name()+" "+must(e.Info()).Mode().String())
	}
	return out
}

func listing(dir string) (out []string) {
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		out = append(out, p[len(dir)+1:]+" "+must(e.Info()).Mode().String())
		return nil
	})
	if err != nil {
		panic(err)
	}
	return out
}

// TestHoles: a file of zeros takes nothing of the disk, and has all of its length.
func TestHoles(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	content := make([]byte, 1<<20+5)
	copy(content[300_000:], "something")
	if err := w.WriteHeader(&tar.Header{Name: "f", Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	must(w.Write(content))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	whole := buf.Bytes()
	if err := Into(bytes.NewReader(whole), root); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, "f"))
	if err != nil || !bytes.Equal(got, content) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	st, err := os.Stat(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	if used := st.Sys().(*syscall.Stat_t).Blocks * 512; used > 2*holeBlock {
		t.Errorf("%d bytes of the disk are used", used)
	}
	if err := root.Remove("f"); err != nil {
		t.Fatal(err)
	}
	if err := Into(bytes.NewReader(whole[:len(whole)/2]), root); !errors.Is(err, berth.ErrUnavailable) {
		t.Errorf("half an archive: %v", err)
	}
}
