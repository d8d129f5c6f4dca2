package staging_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/staging"
)

func needRoot(t *testing.T, why string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: " + why)
	}
}

// A task that swaps files for links and pipes while it is being collected gets nothing of the host's.
func TestCollectWhileTheTaskMovesThings(t *testing.T) {
	secret := plant(t, t.TempDir(), "s/f=SECRET")
	vol := plant(t, t.TempDir(), "d/a=1", "d/s/f=2")
	var stop atomic.Bool
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop.Store(true)
	swap := func(at string, makes ...func(tmp string) error) {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				tmp := at + ".tmp"
				if makes[i%len(makes)](tmp) != nil || unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, at, unix.RENAME_EXCHANGE) != nil {
					_ = os.Rename(tmp, at)
				}
				_ = os.RemoveAll(tmp)
				runtime.Gosched()
			}
		})
	}
	file := func(p string) error { return os.WriteFile(p, []byte("1"), 0o644) }
	dir := func(p string) error { return errors.Join(os.Mkdir(p, 0o755), file(p+"/f")) }
	out := func(p string) error { return os.Symlink(filepath.Join(secret, "s"), p) }
	swap(filepath.Join(vol, "d/a"), file, func(p string) error { return os.Symlink(filepath.Join(secret, "s/f"), p) }, func(p string) error { return unix.Mkfifo(p, 0o644) })
	swap(filepath.Join(vol, "d/s"), dir, out, func(p string) error { return os.Symlink("../../../../../../../../"+secret+"/s", p) })
	v := view(t, staging.Mount{Path: "/v", Root: volume(t, vol)})
	done := 0
	for range 100 {
		dest := t.TempDir()
		_, err := staging.Collect(t.Context(), v, []berth.Output{
			{Path: "/v/d", URL: dest + "/d"}, {Path: "/v/d/s/f", URL: dest + "/f"}, {Path: "/v/**/f", URL: dest + "/g"},
		}, staging.CollectOptions{})
		if err == nil {
			done++
		}
		if got := show(t, dest); strings.Contains(got, "SECRET") || strings.Contains(got, secret) || strings.Contains(got, ".berth-") {
			t.Fatalf("collected %s", got)
		}
		_ = os.RemoveAll(dest)
	}
	if done == 0 {
		t.Error("no round came through; the test saw little")
	}
}

// Who may write to the directory of an output puts a link to another's file in its place while it is written:
// that file keeps its mode and owner.
func TestCollectBesideAnEnemy(t *testing.T) {
	needRoot(t, "gives files away")
	secret := plant(t, t.TempDir(), "s=SECRET") + "/s"
	if err := os.Chmod(secret, 0o600); err != nil {
		t.Fatal(err)
	}
	v := view(t, staging.Mount{Path: "/v", Root: volume(t, plant(t, t.TempDir(), "f="+strings.Repeat("x", 1<<20), "d/f="+strings.Repeat("x", 1<<20)))})
	dest := t.TempDir()
	if err := os.Chmod(dest, 0o777); err != nil {
		t.Fatal(err)
	}
	var stop atomic.Bool
	var swapped atomic.Int32
	var wg sync.WaitGroup
	wg.Go(func() {
		for !stop.Load() {
			entries, _ := os.ReadDir(dest)
			for _, e := range entries {
				if !strings.HasSuffix(e.Name(), ".tmp") || e.Type()&os.ModeSymlink != 0 {
					continue
				}
				tmp := filepath.Join(dest, "swap")
				_ = os.Symlink(secret, tmp)
				if unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, filepath.Join(dest, e.Name()), unix.RENAME_EXCHANGE) == nil {
					swapped.Add(1)
				}
				_ = os.RemoveAll(tmp)
			}
		}
	})
	for i := 0; i < 50 || swapped.Load() < 20 && i < 2000; i++ {
		_, _ = staging.Collect(t.Context(), v, []berth.Output{{Path: "/v/f", URL: dest + "/f"}, {Path: "/v/d", URL: dest + "/d"}}, staging.CollectOptions{UID: 1234, GID: 1234})
		_, _ = os.RemoveAll(dest+"/d"), os.Remove(dest+"/f")
	}
	stop.Store(true)
	wg.Wait()
	var st unix.Stat_t
	if err := unix.Stat(secret, &st); err != nil || st.Mode&0o777 != 0o600 || st.Uid != 0 {
		t.Errorf("another's file has mode %o and owner %d now, %v", st.Mode&0o777, st.Uid, err)
	}
	if swapped.Load() == 0 {
		t.Error("nothing was swapped; the test saw nothing")
	}
}

// A deep tree, links that multiply, and patterns that match ever more end with an error, soon.
func TestCollectHostileTrees(t *testing.T) {
	deep := strings.Repeat("d/", 400)
	multiply := []string{"top/"}
	for i := range 20 {
		multiply = append(multiply, fmt.Sprintf("m%d/f=x", i))
		for j := range 10 {
			multiply = append(multiply, fmt.Sprintf("m%d/l%d->/v/m%d", i, j, i+1))
		}
	}
	multiply = append(multiply, "m20/f=x", "top/l->/v/m0")
	self := []string{"f=1"}
	for i := range 30 {
		self = append(self, fmt.Sprintf("s%d->.", i))
	}
	tests := []struct {
		name, path string
		tree       []string
		err        string
		files      int
	}{
		{name: "deep", path: "/v", tree: []string{deep}, err: "more than 256 directories deep"},
		{name: "deep file", path: "/v/" + deep + "f", tree: []string{deep + "f=1"}, err: "more than 256 directories deep"},
		{name: "deep pattern", path: "/v/**/f", tree: []string{deep + "f=1"}, err: "more than 256 directories deep"},
		{name: "links that multiply", path: "/v/top", tree: multiply, files: 21},
		{name: "links to themselves", path: "/v/*/*/*/*/*/*/*/f", tree: self, err: "symbolic links to follow"},
		{name: "links to themselves, recursively", path: "/v/**/f", tree: self, files: 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dest := t.TempDir()
			v := view(t, staging.Mount{Path: "/v", Root: volume(t, plant(t, t.TempDir(), tt.tree...))})
			files, err := staging.Collect(t.Context(), v, []berth.Output{{Path: tt.path, URL: dest + "/out"}}, staging.CollectOptions{})
			if len(files) != tt.files || tt.err == "" && err != nil || tt.err != "" && (err == nil || !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("%d files, %.200v", len(files), err)
			}
			if left, err := os.ReadDir(dest); tt.err != "" && (err != nil || len(left) != 0) {
				t.Errorf("left %v, %v", left, err)
			}
		})
	}
}

func TestCollectKeepsHoles(t *testing.T) {
	vol, dest := t.TempDir(), t.TempDir()
	f, err := os.Create(filepath.Join(vol, "f"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("start"), 0)
	_, err2 := f.WriteAt([]byte("middle"), 512<<20)
	if err := errors.Join(err, err2, f.Truncate(1<<30), f.Close()); err != nil {
		t.Fatal(err)
	}
	got, err := staging.Collect(t.Context(), view(t, staging.Mount{Path: "/v", Root: volume(t, vol)}),
		[]berth.Output{{Path: "/v/f", URL: dest + "/f"}}, staging.CollectOptions{})
	if err != nil || got[0].Size != 1<<30 {
		t.Fatal(got, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dest+"/f", &st); err != nil || st.Size != 1<<30 || st.Blocks*512 > 1<<20 {
		t.Errorf("%d bytes in %d blocks, %v", st.Size, st.Blocks, err)
	}
	g, err := os.Open(dest + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	buf := make([]byte, 6)
	if _, err := g.ReadAt(buf, 512<<20); err != nil || string(buf) != "middle" {
		t.Errorf("%q, %v", buf, err)
	}
}

// Between file systems, where the kernel cannot copy by itself.
func TestCollectAcrossFileSystems(t *testing.T) {
	needRoot(t, "mounts a tmpfs")
	vol, dest := t.TempDir(), t.TempDir()
	if err := unix.Mount("tmpfs", vol, "tmpfs", 0, "size=8m"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(vol, unix.MNT_DETACH)
	want := strings.Repeat("0123456789", 300_000)
	plant(t, vol, "f="+want)
	if _, err := staging.Collect(t.Context(), view(t, staging.Mount{Path: "/v", Root: volume(t, vol)}),
		[]berth.Output{{Path: "/v/f", URL: dest + "/f"}}, staging.CollectOptions{}); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(dest + "/f"); err != nil || string(got) != want {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// The owner of outputs is whoever asked for them, also of directories that are made for them.
func TestCollectOwner(t *testing.T) {
	needRoot(t, "gives files away")
	dest := t.TempDir()
	shared := plant(t, t.TempDir(), "x=1")
	if err := errors.Join(os.Chown(shared, 5, 77), os.Chmod(shared, 0o775|os.ModeSetgid)); err != nil {
		t.Fatal(err)
	}
	vol := plant(t, t.TempDir(), "d/e/f=1", "d/l->e", "g=2")
	if err := errors.Join(os.Chown(vol+"/d/e/f", 999, 999), os.Chown(vol+"/g", 999, 999)); err != nil {
		t.Fatal(err)
	}
	v := view(t, staging.Mount{Path: "/v", Root: volume(t, vol)})
	if _, err := staging.Collect(t.Context(), v, []berth.Output{
		{Path: "/v/d", URL: dest + "/new/d"}, {Path: "/v/g", URL: dest + "/new/er/g"}, {Path: "/v/g", URL: shared + "/sub/g"},
	}, staging.CollectOptions{UID: 1234, GID: 5678}); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string][2]uint32{
		dest + "/new": {1234, 5678}, dest + "/new/d": {1234, 5678}, dest + "/new/d/e": {1234, 5678}, dest + "/new/d/e/f": {1234, 5678}, dest + "/new/d/l": {1234, 5678},
		dest + "/new/er": {1234, 5678}, dest + "/new/er/g": {1234, 5678}, shared + "/sub": {1234, 77}, shared + "/sub/g": {1234, 77},
	} {
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil || [2]uint32{st.Uid, st.Gid} != want {
			t.Errorf("%s: %d:%d, want %v, %v", p, st.Uid, st.Gid, want, err)
		}
	}
}

// What cannot be written says why, and leaves nothing behind, no new parent directory either.
func TestCollectCannotWrite(t *testing.T) {
	needRoot(t, "mounts a small tmpfs, and writes as nobody")
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(full, unix.MNT_DETACH)
	readOnly := t.TempDir()
	if err := errors.Join(unix.Mount("tmpfs", readOnly, "tmpfs", 0, "size=256k"), unix.Mount("", readOnly, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(readOnly, unix.MNT_DETACH)
	there := plant(t, t.TempDir(), "dir/s/", "file=1", "pipe|", "null->/dev/null")
	v := view(t, staging.Mount{Path: "/v", Root: volume(t, plant(t, t.TempDir(), "d/f="+strings.Repeat("x", 1<<20), "d/a=1", "s=1"))})
	tests := []struct {
		name, path, url, err string
		kind                 error
	}{
		{"disk full", "/v/d/f", full + "/new/f", "output /v/d/f: cannot write FULL/new/f: the disk is full (no space left on device)", berth.ErrExhausted},
		{"disk full, directory", "/v/d", full + "/new/d", "output /v/d: cannot write FULL/new/d: the disk is full (no space left on device)", berth.ErrExhausted},
		{"read-only file system", "/v/s", readOnly + "/s", "output /v/s: cannot write RO/s: its directory is not writable (read-only file system)", berth.ErrDenied},
		{"a directory is there", "/v/s", there + "/dir", "output /v/s: cannot write THERE/dir/s: it is a directory", berth.ErrConflict},
		{"a pipe is there", "/v/s", there + "/pipe", "output /v/s: cannot write THERE/pipe: it is a named pipe", berth.ErrConflict},
		{"a device is there", "/v/s", "/dev/null", "output /v/s: cannot write /dev/null: it is a device", berth.ErrConflict},
		{"a link to a device is there", "/v/s", there + "/null", "output /v/s: cannot write THERE/null: it is a device", berth.ErrConflict},
		{"below a file", "/v/s", there + "/file/s", "output /v/s: cannot write THERE/file/s: not a directory", berth.ErrConflict},
		{"root", "/v/d", "file:///", "output /v/d: cannot write /: it is the root directory of this host", berth.ErrConflict},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := staging.Collect(t.Context(), v, []berth.Output{{Path: tt.path, URL: tt.url}}, staging.CollectOptions{})
			msg := strings.NewReplacer(full, "FULL", readOnly, "RO", there, "THERE").Replace(fmt.Sprint(err))
			if msg != tt.err || !errors.Is(err, tt.kind) {
				t.Errorf("%s\nwant %s", msg, tt.err)
			}
			if got := show(t, full); got != "" {
				t.Errorf("left %.100s", got)
			}
			if got := show(t, there); got != "dir/s/ file=1 null->/dev/null pipe|" {
				t.Errorf("left %s", got)
			}
		})
	}
	t.Run("permission", func(t *testing.T) {
		denied := t.TempDir()
		if err := os.Chmod(denied, 0o755); err != nil {
			t.Fatal(err)
		}
		err := as(65534, func() error {
			_, err := staging.Collect(t.Context(), v, []berth.Output{{Path: "/v/s", URL: denied + "/new/s"}}, staging.CollectOptions{})
			return err
		})
		want := "output /v/s: cannot write " + denied + "/new/s: its directory is not writable (permission denied)"
		if fmt.Sprint(err) != want || !errors.Is(err, berth.ErrDenied) {
			t.Errorf("%v", err)
		}
	})
}

// as runs fn with the file permissions of another user, on this thread alone.
func as(uid int, fn func() error) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if _, _, errno := syscall.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0); errno != 0 {
			errs <- errno
			return
		}
		errs <- fn()
	}()
	return <-errs
}

// What a killed Collect leaves is exactly what its journal names, and is removed by it.
func TestCollectJournal(t *testing.T) {
	dest := plant(t, t.TempDir(), "keep=1", ".keep.berth-AAAAAAAAAA.tmp.not=1")
	v := view(t, staging.Mount{Path: "/v", Root: volume(t, plant(t, t.TempDir(), "d/f=1", "s=1", "n.1=1", "n.2=2"))})
	var tmp []string
	crash := errors.New("crash")
	opts := staging.CollectOptions{Journal: func(p string) error {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s is there before the journal knows", p)
		}
		tmp = append(tmp, p)
		if len(tmp) == 4 {
			return crash
		}
		return nil
	}}
	long := strings.Repeat("n", 255)
	_, err := staging.Collect(t.Context(), v, []berth.Output{
		{Path: "/v/d", URL: dest + "/d"}, {Path: "/v/s", URL: dest + "/" + long}, {Path: "/v/n.*", URL: dest + "/n"},
	}, opts)
	if !errors.Is(err, crash) || len(tmp) != 4 {
		t.Fatal(tmp, err)
	}
	if got := show(t, dest); got != ".keep.berth-AAAAAAAAAA.tmp.not=1 d/f=1 keep=1 n/n.1=1 "+long+"=1" {
		t.Errorf("wrote %s", got)
	}
	// As if it had been killed in the midst.
	for i, p := range tmp {
		if filepath.Dir(p) == dest && i%2 == 0 {
			plant(t, p, "d/half=1")
		} else if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := staging.RemoveLeftovers(tmp); err != nil {
		t.Error(err)
	}
	if got := show(t, dest); got != ".keep.berth-AAAAAAAAAA.tmp.not=1 d/f=1 keep=1 n/n.1=1 "+long+"=1" {
		t.Errorf("left %s", got)
	}
	for _, name := range []string{"line\nfeed", strings.Repeat("\u2026", 80), "not\xffUTF-8"} {
		tmp = nil
		opts := staging.CollectOptions{Journal: func(p string) error { tmp = append(tmp, p); return nil }}
		if _, err := staging.Collect(t.Context(), v, []berth.Output{{Path: "/v/s", URL: dest + "/" + name}}, opts); err != nil || len(tmp) != 1 || !utf8.ValidString(tmp[0]) {
			t.Errorf("%q: told of %q: %v", name, tmp, err)
		}
		if err := os.WriteFile(tmp[0], nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := staging.RemoveLeftovers(tmp); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(tmp[0]); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%q is left: %v", tmp[0], err)
		}
	}
	for _, p := range []string{dest + "/keep", dest, "relative/.x.berth-AAAAAAAAAA.tmp", dest + "/.keep.berth-AAAAAAAAAA.tmp.not", dest + "/.x.berth-AAAAAAAAAA.tmp/.."} {
		if err := staging.RemoveLeftovers([]string{p}); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%s: %v", p, err)
		}
	}
}

// Who may not give files away keeps them, and says so once.
func TestCollectCannotGiveAway(t *testing.T) {
	needRoot(t, "writes without the right to give files away")
	dest := t.TempDir()
	v := view(t, staging.Mount{Path: "/v", Root: volume(t, plant(t, t.TempDir(), "d/f=1", "d/g=2"))})
	var warns []string
	err := without(unix.CAP_CHOWN, func() error {
		_, err := staging.Collect(t.Context(), v, []berth.Output{{Path: "/v/d", URL: dest + "/d"}}, staging.CollectOptions{
			UID: 4321, GID: 4321, Warn: func(s string) { warns = append(warns, s) },
		})
		return err
	})
	if err != nil || show(t, dest) != "d/f=1 d/g=2" {
		t.Errorf("%s, %v", show(t, dest), err)
	}
	want := "outputs could not be given to user 4321, group 4321, and belong to 0, 0 (operation not permitted)"
	if len(warns) != 1 || warns[0] != want {
		t.Errorf("%q", warns)
	}
}

// without runs fn without a capability, on this thread alone.
func without(capability uint, fn func() error) error {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&head, &data[0])
		data[0].Effective &^= 1 << capability
		if err == nil {
			err = unix.Capset(&head, &data[0])
		}
		if err == nil {
			err = fn()
		}
		errs <- err
	}()
	return <-errs
}

func init() { //nolint:gochecknoinits // this alone runs on the main thread, which stands for the process in /proc: no test is to change it for good
	runtime.LockOSThread()
}
