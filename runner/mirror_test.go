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
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/store"
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
			d := &drive{r: New(Config{}), rec: &Record{Task: task}, lay: lay, dir: taskDir(t.TempDir()), now: t.Context()}
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

// archived answers with one archive, and at first with the half of it.
type archived struct {
	raw   []byte
	tries int
}

func (a *archived) ArchiveVolume(_ context.Context, p string) (io.ReadCloser, error) {
	if p != "/v" {
		return nil, fmt.Errorf("%s: %w", p, berth.ErrNotFound)
	}
	raw := a.raw
	if a.tries++; a.tries == 1 {
		raw = raw[:1200]
	}
	return io.NopCloser(bytes.NewReader(raw)), nil
}

// TestMirrorOfOddFiles: further names of what is left out are left out, too, and a connection that breaks is made again.
func TestMirrorOfOddFiles(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Name: "v/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "v/file", Typeflag: tar.TypeReg, Mode: 0o600, Size: 1000},
		{Name: "v/a", Typeflag: tar.TypeFifo, Mode: 0o600},
		{Name: "v/b", Typeflag: tar.TypeLink, Linkname: "v/a"},
		{Name: "v/c", Typeflag: tar.TypeLink, Linkname: "v/file"},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(bytes.Repeat([]byte("x"), int(h.Size))); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	task := berth.Task{Volumes: []berth.Volume{{Path: "/v"}}, Outputs: []berth.Output{{Path: "/v", Type: berth.Directory}}}
	lay, err := newLayout(&task)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "berth.db"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	far := &archived{raw: buf.Bytes()}
	d := &drive{
		r: New(Config{Tries: 2, Clock: fastClock{}, Store: s}), rec: &Record{Task: task}, lay: lay, dir: taskDir(t.TempDir()),
		stop: t.Context(), now: t.Context(), alive: t.Context(),
	}
	root, err := d.mirrored(far, "/v")
	if err != nil || far.tries != 2 {
		t.Fatalf("after %d tries: %v", far.tries, err)
	}
	defer func() { _ = root.Close() }()
	names, err := fs.Glob(root.FS(), "*")
	if diff := cmp.Diff([]string{"c", "file"}, names); err != nil || diff != "" {
		t.Errorf("%v %s", err, diff)
	}
}

// TestUnpackAt: nothing is written or removed outside, though what was unpacked above is a link.
func TestUnpackAt(t *testing.T) {
	file := func(name string) io.Reader {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o600, Size: 1}), func() error { _, err := w.Write([]byte("x")); return err }(), w.Close()); err != nil {
			t.Fatal(err)
		}
		return &buf
	}
	outside, dir := t.TempDir(), t.TempDir()
	kept := filepath.Join(outside, "x")
	if err := errors.Join(os.WriteFile(kept, []byte("kept"), 0o600), os.Symlink(outside, filepath.Join(dir, "opt"))); err != nil {
		t.Fatal(err)
	}
	if err := unpackAt(file("x"), dir, "/opt/x"); err == nil {
		t.Error("unpacked through a link")
	}
	if raw, err := os.ReadFile(kept); string(raw) != "kept" {
		t.Errorf("outside: %q, %v", raw, err)
	}
	for range 2 { // the second time over the first
		if err := unpackAt(file("x"), dir, "/usr/local/x"); err != nil {
			t.Error(err)
		}
	}
	if raw, err := os.ReadFile(filepath.Join(dir, "usr", "local", "x")); string(raw) != "x" {
		t.Errorf("unpacked: %q, %v", raw, err)
	}
}

// cutContainer is a container whose files come by a connection that breaks.
type cutContainer struct {
	berth.Container
	raw  []byte
	cuts int // how often it breaks
	err  error
}

func (c *cutContainer) Archive(context.Context, string) (io.ReadCloser, error) {
	if c.err != nil {
		return nil, c.err
	}
	raw := c.raw
	if c.cuts > 0 {
		c.cuts--
		raw = raw[:2*512+1024] // a directory's header, and one file of it, whole
	}
	return io.NopCloser(bytes.NewReader(raw)), nil
}

// soonClock is a clock by which what is waited for is there at once.
type soonClock struct{ now *time.Time }

func (c soonClock) Now() time.Time { return *c.now }
func (c soonClock) After(d time.Duration) <-chan time.Time {
	*c.now = c.now.Add(d)
	done := make(chan time.Time, 1)
	done <- *c.now
	return done
}

// TestOutputsCut: an output that comes by a connection which breaks, between two files even, is whole or not there, and the
// error says why. It is asked for as long as a daemon may take to be started anew.
func TestOutputsCut(t *testing.T) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, h := range []tar.Header{
		{Name: "o/", Typeflag: tar.TypeDir, Mode: 0o755},
		{Name: "o/one", Typeflag: tar.TypeReg, Mode: 0o600, Size: 1024},
		{Name: "o/two", Typeflag: tar.TypeReg, Mode: 0o600, Size: 10},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(make([]byte, h.Size)); err != nil { // as if it were the mark of an archive's end
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name string
		cuts int
		want []string
		says string
	}{
		{"for a minute", 20, []string{"o", "o/one", "o/two"}, ""},
		{"for ever", 1 << 30, nil, "output /o was not read: "},
	} {
		t.Run(row.name, func(t *testing.T) {
			now := time.Now()
			task := berth.Task{Steps: make([]berth.Step, 1), Outputs: []berth.Output{{Path: "/o", Type: berth.Directory}}}
			d := &drive{
				r: New(Config{Clock: soonClock{&now}}), rec: &Record{Task: task}, lay: &layout{rooted: []int{0}}, dir: taskDir(t.TempDir()),
				stop: t.Context(), now: t.Context(), alive: t.Context(),
			}
			d.saveRooted(&cutContainer{raw: buf.Bytes(), cuts: row.cuts}, 0)
			var got []string
			for _, p := range []string{"o", "o/one", "o/two"} {
				if _, err := os.Lstat(filepath.Join(d.dir.rooted(), p)); err == nil {
					got = append(got, p)
				}
			}
			err := d.notRead()
			next := &drive{rec: d.rec, lay: d.lay, dir: d.dir} // should this berth be killed
			if again := next.notRead(); fmt.Sprint(again) != fmt.Sprint(err) {
				t.Errorf("the next berth has %v", again)
			}
			next.r, next.stop, next.now, next.alive = d.r, d.stop, d.now, d.alive
			next.saveRooted(&cutContainer{err: berth.ErrNotFound}, 0) // and finds that nothing is there
			if again := next.notRead(); again != nil {
				t.Errorf("the next berth, which has asked again, has %v", again)
			}
			if diff := cmp.Diff(row.want, got); diff != "" || (err == nil) != (row.says == "") || err != nil && !strings.HasPrefix(err.Error(), row.says) {
				t.Errorf("%v %s", err, diff)
			}
		})
	}
}

// TestOutputsAfterShutdown: what was not read, as this process was to end, is left to the next berth, with no word of it.
func TestOutputsAfterShutdown(t *testing.T) {
	now := time.Now()
	stop, end := context.WithCancelCause(t.Context())
	task := berth.Task{Steps: make([]berth.Step, 2), Outputs: []berth.Output{{Path: "/o"}, {Path: "/none", Optional: true}}}
	d := &drive{
		r: New(Config{Clock: soonClock{&now}}), rec: &Record{Task: task}, lay: &layout{rooted: []int{0, 1}}, dir: taskDir(t.TempDir()),
		stop: stop, now: stop, alive: stop,
	}
	end(berth.ErrShutdown)
	d.saveRooted(&cutContainer{err: context.Canceled}, 0)
	next := &drive{rec: d.rec, lay: d.lay, dir: d.dir}
	if err := errors.Join(d.notRead(), next.notRead()); err != nil {
		t.Error(err)
	}
}
