package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// imported imports an image whose only file says its name.
func imported(t testing.TB, s *Store, name string) berth.Image {
	t.Helper()
	img, err := s.Import(t.Context(), bytes.NewReader(archive(t, file("name", name))), name, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// pulled pushes layers as an image and pulls it.
func pulled(t testing.TB, s *Store, layers ...v1.Layer) berth.Image {
	t.Helper()
	host := serve(t, nil)
	push(t, host+"/img:1", newImage(t, layers...))
	img, err := s.Image(t.Context(), amd64(host+"/img:1"))
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func count(t testing.TB, s *Store, dir string) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, dir))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func TestRemove(t *testing.T) {
	shared := layer(t, file("shared", "x"))
	host := serve(t, nil)
	push(t, host+"/a:1", newImage(t, shared, layer(t, file("a", "a"))))
	push(t, host+"/b:1", newImage(t, shared, layer(t, file("b", "bb"))))
	s := newStore(t)
	a, err := s.Image(t.Context(), amd64(host+"/a:1"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := s.Image(t.Context(), amd64(host+"/b:1"))
	if err != nil {
		t.Fatal(err)
	}
	equal(t, []int{count(t, s, "layers"), count(t, s, "l"), count(t, s, "images"), count(t, s, "refs")}, []int{3, 3, 2, 2})
	got, err := s.Remove(t.Context(), host+"/a:1")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, Removed{Refs: []string{host + "/a:1"}, Images: []string{a.ID}, Layers: 1, Bytes: 1})
	if _, err := s.Layers(a.ID); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("layers of a removed image: %v", err)
	}
	got, err = s.Remove(t.Context(), hexOf(b.ID)[:12])
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, Removed{Refs: []string{host + "/b:1"}, Images: []string{b.ID}, Layers: 2, Bytes: 3})
	equal(t, []int{count(t, s, "layers"), count(t, s, "l"), count(t, s, "images"), count(t, s, "refs"), count(t, s, "locks")}, []int{0, 0, 0, 0, 1})
	for name, kind := range map[string]error{host + "/b:1": berth.ErrNotFound, b.ID: berth.ErrNotFound, "Bad": berth.ErrInvalid} {
		if _, err := s.Remove(t.Context(), name); !errors.Is(err, kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRemoveOneOfTwoNames(t *testing.T) {
	s := newStore(t)
	body := archive(t, file("a", ""))
	for _, name := range []string{"one", "two"} {
		if _, err := s.Import(t.Context(), bytes.NewReader(body), name, ImportOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Remove(t.Context(), "one")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, Removed{Refs: []string{"docker.io/library/one:latest"}, Images: []string{}})
	info, err := s.Inspect(t.Context(), "two")
	if err != nil {
		t.Fatal(err)
	}
	equal(t, info.Refs, []string{"docker.io/library/two:latest"})
}

func TestInspect(t *testing.T) {
	now := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	s := newStore(t, func(o *Options) { o.Now = func() time.Time { return now } })
	l := layer(t, dir("d"), file("d/a", "12345"), file("b", "678"), hardlink("c", "b"))
	img := newImage(t, l)
	host := serve(t, nil)
	push(t, host+"/img:1", img)
	got, err := s.Image(t.Context(), amd64(host+"/img:1"))
	if err != nil {
		t.Fatal(err)
	}
	diff, _ := l.DiffID()
	digest, _ := l.Digest()
	size, _ := l.Size()
	want := Info{
		Image: got, Refs: []string{host + "/img:1"}, Size: 11, Added: now, Used: now, Pulled: true,
		Layers: []Layer{{DiffID: diff.String(), Digest: digest.String(), Size: 11, Compressed: size, Dir: filepath.Join(s.dir, "layers", diff.Hex, "fs")}},
	}
	for _, name := range []string{host + "/img:1", got.ID, hexOf(got.ID), hexOf(got.ID)[:12], got.Digest} {
		info, err := s.Inspect(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, info, want)
	}
	now = now.Add(time.Hour)
	if _, err := s.Image(t.Context(), amd64(host+"/img:1")); err != nil {
		t.Fatal(err)
	}
	want.Used = now
	infos, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	equal(t, infos, []Info{want})
}

func TestHold(t *testing.T) {
	s := newStore(t)
	img := imported(t, s, "img")
	holder := filepath.Join(t.TempDir(), "sandbox")
	if err := s.Hold(img.ID, holder); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("by what is not there: %v", err)
	}
	if err := os.Mkdir(holder, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Hold(img.ID, holder); err != nil {
			t.Fatal(err)
		}
	}
	inUse := func() {
		t.Helper()
		if _, err := s.Remove(t.Context(), "img"); !errors.Is(err, berth.ErrConflict) || !strings.Contains(err.Error(), "in use by "+holder) {
			t.Errorf("remove: %v", err)
		}
		got, err := s.Prune(t.Context(), PruneOptions{})
		if err != nil {
			t.Error(err)
		}
		equal(t, got, Removed{Refs: []string{}, Images: []string{}})
	}
	inUse()
	if err := s.Release(img.ID, holder); err != nil {
		t.Fatal(err)
	}
	if err := s.Release(img.ID, holder); err != nil {
		t.Errorf("released again: %v", err)
	}
	if err := s.Hold(img.ID, holder); err != nil {
		t.Fatal(err)
	}
	inUse()
	if err := os.Remove(holder); err != nil { // as a crash of its owner would have it removed
		t.Fatal(err)
	}
	if _, err := s.Remove(t.Context(), "img"); err != nil {
		t.Error(err)
	}
	equal(t, count(t, s, "holds"), 0)
	if img = imported(t, s, "img"); os.Mkdir(holder, 0o700) != nil || s.Hold(img.ID, holder) != nil || os.Remove(holder) != nil {
		t.Fatal("no hold was left behind")
	}
	equal(t, count(t, s, "holds"), 1)
	if _, err := Open(Options{Dir: s.dir}); err != nil {
		t.Fatal(err)
	}
	equal(t, count(t, s, "holds"), 0) // swept by the next process
	if _, err := s.Remove(t.Context(), "img"); err != nil {
		t.Error(err)
	}
	for name, kind := range map[string]error{img.ID: berth.ErrNotFound, "img": berth.ErrInvalid} {
		if err := s.Hold(name, t.TempDir()); !errors.Is(err, kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Hold(img.ID, "relative"); !errors.Is(err, berth.ErrInvalid) {
		t.Error(err)
	}
}

// A hold is a link beside others to the directory of the holders, or one of its own where that cannot be: the holder's
// name is too long, the hold is of an older berth, there are as many links to one as the file system has.
func TestHoldKinds(t *testing.T) {
	s := newStore(t)
	img := imported(t, s, "img")
	dir := t.TempDir()
	for _, name := range []string{"a", "b.c", strings.Repeat("n", longestBase), strings.Repeat("n", longestBase+1)} {
		holder := filepath.Join(dir, name)
		if err := os.Mkdir(holder, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := s.Hold(img.ID, holder); err != nil {
			t.Fatal(err)
		}
		equal(t, held(t, s), map[string][]string{img.ID: {holder}})
		if err := s.Release(img.ID, holder); err != nil {
			t.Fatal(err)
		}
		equal(t, count(t, s, "holds"), 0)
	}
	holder := filepath.Join(dir, "a")
	_, own := s.holdPath(img.ID, holder)
	if err := os.Symlink(holder, own); err != nil {
		t.Fatal(err)
	}
	equal(t, held(t, s), map[string][]string{img.ID: {holder}})
	if err := s.Release(img.ID, holder); err != nil {
		t.Fatal(err)
	}
	equal(t, count(t, s, "holds"), 0)
}

// More holds than a file has links on ext4.
func TestManyHolds(t *testing.T) {
	s := newStore(t)
	img := imported(t, s, "img")
	holder := filepath.Join(t.TempDir(), "a")
	if err := errors.Join(os.Mkdir(holder, 0o700), s.Hold(img.ID, holder), s.Release(img.ID, holder)); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(s.dir, "holders", shortSum(filepath.Dir(holder)))
	others := filepath.Join(s.dir, "others")
	if err := os.Mkdir(others, 0o700); err != nil {
		t.Fatal(err)
	}
	for i := 0; ; i++ {
		if i > 70_000 {
			break // this file system has no such bound
		}
		if err := os.Link(link, filepath.Join(others, fmt.Sprint(i))); errors.Is(err, unix.EMLINK) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Hold(img.ID, holder); err != nil {
		t.Fatal(err)
	}
	equal(t, held(t, s), map[string][]string{img.ID: {holder}})
}

func held(t *testing.T, s *Store) map[string][]string {
	t.Helper()
	lock, err := s.lock(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	got, err := s.holders()
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestPrune(t *testing.T) {
	now := time.Now()
	s := newStore(t, func(o *Options) { o.Now = func() time.Time { return now } })
	old := imported(t, s, "old")
	now = now.Add(2 * time.Hour)
	fresh := imported(t, s, "fresh")
	now = now.Add(time.Minute)
	want := Removed{Refs: []string{"docker.io/library/old:latest"}, Images: []string{old.ID}, Layers: 1, Bytes: 3}
	for _, dry := range []bool{true, false} {
		got, err := s.Prune(t.Context(), PruneOptions{Unused: time.Hour, All: true, DryRun: dry})
		if err != nil {
			t.Fatal(err)
		}
		equal(t, got, want)
	}
	// A layer without an image is what a crash between layers and record leaves.
	if err := os.Remove(s.imagePath(fresh.ID)); err != nil {
		t.Fatal(err)
	}
	got, err := s.Prune(t.Context(), PruneOptions{Unused: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, Removed{Refs: []string{}, Images: []string{}, Layers: 1, Bytes: 5})
	if _, err := s.Image(t.Context(), berth.ImageRequest{Ref: "fresh", Policy: berth.PullNever}); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("an image without its record: %v", err)
	}
}

// What no registry has stays as long as it has a name: nobody could fetch it again.
func TestPruneKeepsWhatIsLocal(t *testing.T) {
	s := newStore(t)
	pulled := pulled(t, s, layer(t, file("a", "x")))
	first := imported(t, s, "local")
	if _, err := s.Import(t.Context(), bytes.NewReader(archive(t, file("b", "another"))), "local:latest", ImportOptions{}); err != nil {
		t.Fatal(err)
	}
	gone := []string{first.ID, pulled.ID} // the name is another's now
	slices.Sort(gone)
	for _, dry := range []bool{true, false} {
		got, err := s.Prune(t.Context(), PruneOptions{DryRun: dry})
		if err != nil {
			t.Fatal(err)
		}
		equal(t, got.Images, gone)
		equal(t, got.Refs, []string{pulled.Ref})
		equal(t, got.Kept, []string{"docker.io/library/local:latest"})
	}
	got, err := s.Prune(t.Context(), PruneOptions{All: true})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got.Refs, []string{"docker.io/library/local:latest"})
	equal(t, got.Kept, []string(nil))
}

// A registry that has a loaded image under another name has it not under the name it was loaded by, whichever came first.
func TestPruneKeepsLocalNames(t *testing.T) {
	for _, test := range []struct {
		name                 string
		loadFirst, oldRecord bool
		remove, kept         bool
	}{
		{name: "loaded, then pulled", loadFirst: true, kept: true},
		{name: "loaded by an older berth, then pulled", loadFirst: true, oldRecord: true, kept: true},
		{name: "pulled, then loaded", kept: true},
		{name: "the local name is gone", loadFirst: true, remove: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := newStore(t)
			img := newImage(t, layer(t, file("a", "x")))
			host := serve(t, nil)
			push(t, host+"/lab/img:1", img)
			load := func() {
				if _, err := s.Load(t.Context(), dockerArchive(t, map[string]v1.Image{"local:latest": img}), LoadOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			if test.loadFirst {
				load()
			}
			if test.oldRecord {
				path := s.refPath(refKey("docker.io/library/local:latest", "linux/amd64"))
				var ref refRecord
				if err := readRecord(path, &ref); err != nil {
					t.Fatal(err)
				}
				ref.Local = false
				if err := s.writeRecord(path, ref); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := s.Image(t.Context(), amd64(host+"/lab/img:1")); err != nil {
				t.Fatal(err)
			}
			if !test.loadFirst {
				load()
			}
			if test.remove {
				if _, err := s.Remove(t.Context(), "local"); err != nil {
					t.Fatal(err)
				}
			}
			got, err := s.Prune(t.Context(), PruneOptions{})
			if err != nil || (len(got.Images) == 0) != test.kept {
				t.Errorf("%+v, %v", got, err)
			}
			if _, err := s.Inspect(t.Context(), "local"); (err == nil) != test.kept {
				t.Errorf("the image that was loaded: %v", err)
			}
		})
	}
}

// TestPruneSparesPulls prunes while a pull has its first layer and waits for its second.
func TestPruneSparesPulls(t *testing.T) {
	release := make(chan struct{})
	small, big := layer(t, file("a", "x")), noise(t, 200<<10)
	ref, b := serveBad(t, newImage(t, small, big), nil)
	digest, _ := big.Digest()
	b.answer = holdBlob(digest.Hex, release)
	s := newStore(t)
	done := make(chan error, 1)
	go func() {
		_, err := s.Image(t.Context(), amd64(ref))
		done <- err
	}()
	diff, _ := small.DiffID()
	waitFor(t, func() bool { ok, _ := s.haveLayer(diff.Hex); return ok })
	got, err := s.Prune(t.Context(), PruneOptions{})
	if err != nil {
		t.Fatal(err)
	}
	equal(t, got, Removed{Refs: []string{}, Images: []string{}})
	close(release)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// TestPowerCut spoils what a power cut spoils: layers of which not everything reached the disk, and records.
func TestPowerCut(t *testing.T) {
	ref, b := serveBad(t, newImage(t, layer(t, file("a", "12345"), file("b", "x")), layer(t, file("c", "y"))), nil)
	s := newStore(t)
	first, err := s.Image(t.Context(), amd64(ref))
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		spoil   func(layer string) error
		fetched int // layers that must be fetched again
	}{
		{"nothing", func(string) error { return nil }, 0},
		{"file cut off", func(l string) error { return os.Truncate(filepath.Join(l, "fs/a"), 0) }, 1},
		{"file missing", func(l string) error { return os.Remove(filepath.Join(l, "fs/b")) }, 1},
		{"record empty", func(l string) error { return os.Truncate(filepath.Join(l, "layer.json"), 0) }, 1},
		{"record missing", func(l string) error { return os.Remove(filepath.Join(l, "layer.json")) }, 1},
		{"layer missing", os.RemoveAll, 1},
		{"image record empty", func(string) error { return os.Truncate(s.imagePath(first.ID), 0) }, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			infos, err := s.List(t.Context())
			if err != nil || len(infos) != 1 {
				t.Fatal(infos, err)
			}
			for _, l := range infos[0].Layers { // as written in the boot before, not looked at since
				var rec layerRecord
				path := filepath.Join(filepath.Dir(l.Dir), "layer.json")
				if err := readRecord(path, &rec); err != nil {
					t.Fatal(err)
				}
				rec.Boot = s.boot
				if err := s.writeRecord(path, rec); err != nil {
					t.Fatal(err)
				}
			}
			if err := c.spoil(filepath.Dir(infos[0].Layers[0].Dir)); err != nil {
				t.Fatal(err)
			}
			next, err := Open(s.opts)
			if err != nil {
				t.Fatal(err)
			}
			next.boot = "another boot: " + c.name
			n := b.requests()
			got, err := next.Image(t.Context(), amd64(ref))
			if err != nil {
				t.Fatal(err)
			}
			equal(t, got, first)
			blobs := 0
			for _, r := range b.seen[n:] {
				if strings.Contains(r, "GET /v2/img/blobs/") && !strings.Contains(r, first.ID) {
					blobs++
				}
			}
			equal(t, blobs, c.fetched)
			if body, err := next.Lookup(got.ID, "/a"); err != nil || string(body) != "12345" {
				t.Errorf("%q, %v", body, err)
			}
		})
	}
}

// TestOverlay mounts images and compares what Lookup reads with what the kernel shows.
func TestOverlay(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	lower := layer(t, dir("d"), file("d/low", "low"), file("d/same", "old"), dir("e"), file("e/hidden", "x"), dir("f"), file("f/gone", "x"), symlink("link", "d"),
		with(dir("tmp"), func(h *tar.Header) { h.Mode = 0o1777 }), with(dir("home"), func(h *tar.Header) { h.Uid, h.Gid, h.Mode = 1000, 1000, 0o750 }), symlink("loop", "loop"), symlink("abs", "/d/low"), symlink("up", "../../../d/low"))
	middle := layer(t, file("d/same", "new"), file("e/.wh..wh..opq", ""), file("e/shown", "y"), file("f/.wh.gone", ""), hardlink("d/hard", "d/low"), hardlink("link2", "link"), file("tmp/x", "t"), file("home/me", "h"))
	upper := layer(t, file(".wh.f", ""), symlink("f2", "e/shown"), hardlink("hard3", "d/hard"))
	img := pulled(t, s, lower, middle, upper)
	paths, err := s.Layers(img.ID)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if len(filepath.Base(p)) != linkMin {
			t.Errorf("path %s", p)
		}
	}
	merged := mountOverlay(t, paths)
	for _, name := range []string{
		"d/low", "d/same", "e/hidden", "e/shown", "f/gone", "f2", "link/low", "link2/same", "d/hard", "hard3", "tmp/x", "home/me", "abs", "loop", "up",
		"d", "", "d/low/x", "nothing", "link/../e/shown", "d/./same", "../../etc/hostname", "/d//low",
	} {
		want, werr := readBeneath(merged, name)
		got, err := s.Lookup(img.ID, name)
		if string(got) != want || (err == nil) != (werr == nil) || err != nil && !hasKind(err) {
			t.Errorf("%q: got %q, %v; the kernel has %q, %v", name, got, err, want, werr)
		}
		again, err2 := s.Lookup(img.ID, name)
		if string(again) != string(got) || fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Errorf("%q: again %q, %v", name, again, err2)
		}
	}
	for name, want := range map[string]string{"tmp": "dir 1777", "home": "dir 750 1000:1000", "d": "dir 755"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(merged, name), &st); err != nil {
			t.Fatal(err)
		}
		equal(t, describeStat(filepath.Join(merged, name), &st), want)
	}
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(filepath.Join(merged, "d/low"), &a), unix.Stat(filepath.Join(merged, "hard3"), &b)); err != nil || a.Ino != b.Ino {
		t.Errorf("a hard link across layers is another file: %d, %d, %v", a.Ino, b.Ino, err)
	}
}

// readBeneath reads a file as a container would, its root being dir.
func readBeneath(dir, name string) (string, error) {
	root, err := unix.Open(dir, unix.O_PATH, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, "/"+name, &unix.OpenHow{Flags: unix.O_RDONLY, Resolve: unix.RESOLVE_IN_ROOT})
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	var b bytes.Buffer
	_, err = b.ReadFrom(f)
	return b.String(), err
}

func mountOverlay(t *testing.T, lower []string) string {
	t.Helper()
	at := t.TempDir()
	if len(lower) == 1 {
		lower = append(lower, t.TempDir())
	}
	if err := unix.Mount("overlay", at, "overlay", unix.MS_RDONLY, "lowerdir="+strings.Join(lower, ":")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return at
}

// TestLayerTwice has an image with a layer in two places, as equal steps of a build make them.
func TestLayerTwice(t *testing.T) {
	needRoot(t)
	s := newStore(t)
	a := layer(t, dir("d"), file("d/a", "a"), file("f", "a"))
	b := layer(t, file(".wh.d", ""), file("f", "b"), file("g", "b"))
	img := pulled(t, s, a, b, a)
	paths, err := s.Layers(img.ID)
	if err != nil || len(paths) != 2 {
		t.Fatal(paths, err)
	}
	equal(t, describe(t, mountOverlay(t, paths)), "/ dir 755\n/d dir 755\n/d/a file 644 \"a\"\n/f file 644 \"a\"\n/g file 644 \"b\"\n")
}

func TestNoLayers(t *testing.T) {
	s := newStore(t)
	img := pulled(t, s)
	paths, err := s.Layers(img.ID)
	if err != nil || len(paths) != 1 {
		t.Fatal(paths, err)
	}
	equal(t, describe(t, paths[0]), "/ dir 755\n")
	if _, err := s.Lookup(img.ID, "/etc/passwd"); !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
}

func TestOpaqueRoot(t *testing.T) {
	s := newStore(t)
	img := pulled(t, s, layer(t, file("a", "low")), layer(t, file(".wh..wh..opq", ""), file("b", "high")))
	paths, err := s.Layers(img.ID)
	if err != nil || len(paths) != 1 {
		t.Error(paths, err)
	}
	if _, err := s.Lookup(img.ID, "a"); !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
}

func TestHardLinkToNowhere(t *testing.T) {
	host := serve(t, nil)
	push(t, host+"/img:1", newImage(t, layer(t, file("a", "")), layer(t, hardlink("b", "nothing"))))
	_, err := newStore(t).Image(t.Context(), amd64(host+"/img:1"))
	if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), `hard link "b": no layer has the file "nothing"`) {
		t.Error(err)
	}
}

func TestShortNameCollision(t *testing.T) {
	s := newStore(t)
	a, b := strings.Repeat("00", 32), strings.Repeat("00", 31)+"01"
	first, err1 := s.shortLink(a)
	second, err2 := s.shortLink(b)
	again, err3 := s.shortLink(b)
	if err := errors.Join(err1, err2, err3); err != nil || first == second || second != again || len(filepath.Base(first)) != linkMin {
		t.Error(first, second, again, err)
	}
}

func TestOpenConflicts(t *testing.T) {
	dir := t.TempDir()
	s := newStore(t, func(o *Options) { o.Dir = dir })
	if _, err := Open(Options{Dir: dir, Rootless: true}); !errors.Is(err, berth.ErrConflict) {
		t.Errorf("root and rootless: %v", err)
	}
	if err := s.writeRecord(filepath.Join(dir, "store.json"), storeRecord{Version: storeVersion + 1}); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Options{Dir: dir}); !errors.Is(err, berth.ErrConflict) || !strings.Contains(err.Error(), "another version") {
		t.Errorf("version: %v", err)
	}
	st, err := os.Stat(dir)
	if err != nil || st.Mode().Perm()&0o077 != 0 && st.Mode().Perm() != 0o755 {
		t.Error(st.Mode(), err)
	}
}

// TestDiskFull pulls onto file systems that are full at ever later instants of the pull, of bytes and of files: it
// says so, and leaves nothing but the directories of the store. Then there is room, and the same store goes on.
func TestDiskFull(t *testing.T) {
	needRoot(t)
	var files []entry
	for i := range 20 {
		files = append(files, file(fmt.Sprint("d/f", i), strings.Repeat("x", 5000)))
	}
	img := newImage(t, layer(t, files...), noise(t, 300<<10), layer(t, hardlink("h", "d/f1"), file("d/.wh.f2", "")))
	ref, _ := serveBad(t, img, nil)
	id, _ := img.ConfigName()
	full := 0
	for _, room := range []string{
		"size=60k", "size=100k", "size=300k", "size=380k", "size=440k", "size=460k", "size=470k", "size=480k", "size=500k", "size=520k", "size=1m",
		"nr_inodes=14", "nr_inodes=16", "nr_inodes=30", "nr_inodes=38", "nr_inodes=42", "nr_inodes=44", "nr_inodes=46", "nr_inodes=48", "nr_inodes=50", "nr_inodes=60",
	} {
		t.Run(room, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, room); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
			s := newStore(t, func(o *Options) { o.Dir = filepath.Join(dir, "images") })
			got, err := s.Image(t.Context(), amd64(ref))
			if err == nil {
				equal(t, got.ID, id.String())
				return
			}
			full++
			if strings.HasPrefix(room, "size=") {
				_, err := s.Import(t.Context(), bytes.NewReader(archive(t, file("f", strings.Repeat("x", 2<<20)))), "f", ImportOptions{})
				if !errors.Is(err, berth.ErrExhausted) || !strings.Contains(err.Error(), "the disk of "+s.dir) {
					t.Errorf("import: %v", err)
				}
			}
			if !errors.Is(err, berth.ErrExhausted) || !strings.Contains(err.Error(), "the disk of "+s.dir+" is full; free some of it (`berth image prune`") || strings.Contains(err.Error(), "\n") {
				t.Error(err)
			}
			equal(t, []int{count(t, s, "tmp"), count(t, s, "images"), count(t, s, "refs")}, []int{0, 0, 0})
			if _, err := s.Prune(t.Context(), PruneOptions{}); err != nil { // layers that were whole are kept for the next try
				t.Error(err)
			}
			equal(t, []int{count(t, s, "layers"), count(t, s, "l")}, []int{0, 0})
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=10m,nr_inodes=1000"); err != nil {
				t.Fatal(err)
			}
			if got, err = s.Image(t.Context(), amd64(ref)); err != nil {
				t.Error(err)
			}
			equal(t, got.ID, id.String())
		})
	}
	if full < 10 {
		t.Errorf("the disk was full only %d times", full)
	}
}

// The test binary runs itself as the process that is killed, and as root of a user namespace.
func TestMain(m *testing.M) {
	if arg := os.Getenv("BERTH_IMAGE_TEST_CHILD"); arg != "" {
		var opts childOptions
		if err := json.Unmarshal([]byte(arg), &opts); err != nil {
			panic(err)
		}
		os.Exit(opts.run())
	}
	os.Exit(m.Run())
}

// childOptions say what a child process does: it pulls an image.
type childOptions struct {
	Dir, Ref string
	Rootless bool
}

func (o childOptions) run() int {
	s, err := Open(Options{Dir: o.Dir, Rootless: o.Rootless, Backoff: time.Millisecond})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	img, err := s.Image(contextOf(), amd64(o.Ref))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	fmt.Fprintln(os.Stdout, img.ID)
	return 0
}

func (o childOptions) command(t *testing.T) *exec.Cmd {
	t.Helper()
	b, err := json.Marshal(o)
	if err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "BERTH_IMAGE_TEST_CHILD="+string(b))
	return cmd
}

// TestKilled kills a process in the middle of a pull. Another that waits for the same image goes on at once,
// and nothing half-made is left.
func TestKilled(t *testing.T) {
	release := make(chan struct{})
	small, big := layer(t, file("a", "x")), noise(t, 300<<10)
	ref, b := serveBad(t, newImage(t, small, big), nil)
	digest, _ := big.Digest()
	b.answer = holdBlob(digest.Hex, release)
	dir := filepath.Join(t.TempDir(), "images")
	s := newStore(t, func(o *Options) { o.Dir = dir })
	child := childOptions{Dir: dir, Ref: ref}.command(t)
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	diff, _ := small.DiffID()
	waitFor(t, func() bool { ok, _ := s.haveLayer(diff.Hex); return ok })
	waiter := make(chan error, 1)
	go func() {
		_, err := s.Image(t.Context(), amd64(ref))
		waiter <- err
	}()
	other, err := Open(s.opts) // what is in use is not swept away
	if err != nil {
		t.Fatal(err)
	}
	equal(t, count(t, other, "tmp"), 1)
	select {
	case err := <-waiter:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := errors.Join(child.Process.Signal(syscall.SIGKILL)); err != nil {
		t.Fatal(err)
	}
	_ = child.Wait()
	close(release)
	if err := <-waiter; err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, r := range b.seen {
		if strings.Contains(r, "GET") && !strings.Contains(r, digest.Hex) && strings.Contains(r, "/blobs/") {
			n++
		}
	}
	if n != 3 { // the configuration twice, the small layer once
		t.Errorf("%d blobs were fetched: %v", n, b.seen)
	}
	third, err := Open(s.opts)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, count(t, third, "tmp"), 0)
}

// TestProcesses has several processes pull the same image into a new directory at once.
func TestProcesses(t *testing.T) {
	img := newImage(t, noise(t, 100<<10), layer(t, file("a", "x")))
	ref, b := serveBad(t, img, nil)
	dir := filepath.Join(t.TempDir(), "images")
	var children []*exec.Cmd
	var outs []*bytes.Buffer
	for range 4 {
		c := childOptions{Dir: dir, Ref: ref}.command(t)
		out := &bytes.Buffer{}
		c.Stdout, c.Stderr = out, out
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		children, outs = append(children, c), append(outs, out)
	}
	id, _ := img.ConfigName()
	for i, c := range children {
		if err := c.Wait(); err != nil || outs[i].String() != id.String()+"\n" {
			t.Errorf("%v: %s", err, outs[i])
		}
	}
	blobs := 0
	for _, r := range b.seen {
		if strings.Contains(r, "/blobs/") {
			blobs++
		}
	}
	equal(t, blobs, 3)
}

// TestRootless pulls as root of a user namespace that maps one user, then mounts what came as such a user can.
func TestRootless(t *testing.T) {
	needRoot(t)
	ref, _ := serveBad(t, newImage(t,
		layer(t, dir("d"), file("d/gone", "x"), with(file("owned", "x"), func(h *tar.Header) { h.Uid, h.Gid, h.Mode = 1000, 1000, 0o4755 }),
			with(file("null", ""), func(h *tar.Header) { h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, 3 }), with(file("fifo", ""), func(h *tar.Header) { h.Typeflag = tar.TypeFifo })),
		layer(t, file("d/.wh.gone", ""), dir("o"), file("o/.wh..wh..opq", ""))), nil)
	base := t.TempDir()
	for p := base; p != "/tmp" && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(base, 12345, 12345); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(base, "images")
	cmd := childOptions{Dir: dir, Ref: ref, Rootless: true}.command(t)
	exe, err := os.ReadFile(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	cmd.Path = filepath.Join(base, "test")
	if err := os.WriteFile(cmd.Path, exe, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd.Env = append(cmd.Env, "HOME="+base)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: true},
		Cloneflags:  syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 12345, Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: 12345, Size: 1}},
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	s, err := Open(Options{Dir: dir, Rootless: true})
	if err != nil {
		t.Fatal(err)
	}
	paths, err := s.Layers(strings.TrimSpace(string(out)))
	if err != nil || len(paths) != 2 {
		t.Fatal(paths, err)
	}
	low, _ := filepath.EvalSymlinks(paths[1])
	equal(t, describe(t, low), "/ dir 755 12345:12345\n/d dir 755 12345:12345\n/d/gone file 644 12345:12345 \"x\"\n/fifo fifo 644 12345:12345\n/owned file 4755 12345:12345 \"x\"\n")
	high, _ := filepath.EvalSymlinks(paths[0])
	equal(t, describe(t, high), "/ dir 755 12345:12345\n/d dir 755 12345:12345\n/d/gone whiteout\n/o dir 755 12345:12345\n")
	var v [2]byte
	if n, err := unix.Lgetxattr(filepath.Join(high, "o"), "user.overlay.opaque", v[:]); err != nil || string(v[:n]) != "y" {
		t.Errorf("opaque: %q, %v", v[:max(n, 0)], err)
	}
}

// TestSpread looks whether ext4 was asked to put each layer where there is room; others know no such flag.
func TestSpread(t *testing.T) {
	work, err := newStore(t).newWorkDir()
	if err != nil {
		t.Fatal(err)
	}
	defer work.remove()
	var fs unix.Statfs_t
	if err := unix.Statfs(work.path, &fs); err != nil {
		t.Fatal(err)
	}
	flags, err := unix.IoctlGetInt(int(work.lock.Fd()), unix.FS_IOC_GETFLAGS)
	if fs.Type == unix.EXT4_SUPER_MAGIC && (err != nil || flags&topDir == 0) {
		t.Errorf("flags %#x, %v", flags, err)
	}
}

// TestSweepRecords has a record half written when its maker dies: the next to open the store removes it, and
// leaves alone the one that is being written.
func TestSweepRecords(t *testing.T) {
	s := newStore(t)
	left := filepath.Join(s.dir, "tmp", "left.json")
	if err := os.WriteFile(left, []byte(`{"id`), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := s.newTmpFile()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(s.opts); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(s.dir, "tmp"))
	if err != nil || len(entries) != 1 || entries[0].Name() != filepath.Base(f.Name()) {
		t.Errorf("left %v, %v", entries, err)
	}
	if err := errors.Join(os.Remove(f.Name()), f.Close()); err != nil {
		t.Error(err)
	}
}
