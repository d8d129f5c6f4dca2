package scratch_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/scratch"
)

const mib = 1 << 20

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loop devices and mounts")
	}
}

func open(t *testing.T, cfg scratch.Config) *scratch.Area {
	t.Helper()
	a, err := scratch.Open(t.Context(), filepath.Join(t.TempDir(), "area"), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := a.Close(); err != nil {
			t.Error(err)
		}
	})
	return a
}

func volume(t *testing.T, a *scratch.Area, name string) string {
	t.Helper()
	dir, err := a.Volume(name)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// write writes size bytes that are not zero to a new file.
func write(path string, size int) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	buf := make([]byte, mib/4)
	for i := range buf {
		buf[i] = byte(i) | 1
	}
	for size > 0 && err == nil {
		var n int
		n, err = f.Write(buf[:min(size, len(buf))])
		size -= n
	}
	return errors.Join(err, f.Close())
}

func full(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
}

func mounts(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

var byLoop = []berth.DiskEnforcement{berth.DiskLoop}

func TestUnlimited(t *testing.T) {
	a := open(t, scratch.Config{Volumes: []scratch.Volume{{Name: "v0"}}})
	if got := a.Enforcement(); got != berth.DiskNone {
		t.Errorf("enforcement %q", got)
	}
	if err := write(filepath.Join(volume(t, a, "v0"), "f"), mib); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(a.Dir(), "upper-0"), 0o755); err != nil {
		t.Fatal(err)
	}
	used, err := a.Usage()
	if err != nil || used < mib || used > mib+64<<10 {
		t.Errorf("usage %d, %v", used, err)
	}
	entries, err := os.ReadDir(a.Dir())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	if got := strings.Join(names, " "); got != "upper-0 volume-v0" {
		t.Errorf("the area holds %s", got)
	}
	if _, _, _, full := a.Full(); full {
		t.Error("space without a limit is full")
	}
}

// A file system of its own gives what was asked for, no less and hardly more.
func TestLoopLimit(t *testing.T) {
	needRoot(t)
	for _, size := range []int{1 * mib, 16 * mib, 64 * mib, 200 * mib} {
		a := open(t, scratch.Config{Limit: int64(size), Prefer: byLoop})
		if got := a.Enforcement(); got != berth.DiskLoop {
			t.Fatalf("enforcement %q", got)
		}
		if err := write(filepath.Join(a.Dir(), "f"), size*95/100); err != nil {
			t.Errorf("of %d: 95%%: %v", size, err)
		}
		if which, _, _, full := a.Full(); full {
			t.Errorf("of %d: %s is full", size, which)
		}
		used, err := a.Usage()
		if err != nil || used < int64(size*95/100) || used > int64(size) {
			t.Errorf("of %d: usage %d, %v", size, used, err)
		}
		if err := os.Remove(filepath.Join(a.Dir(), "f")); err != nil {
			t.Fatal(err)
		}
		if err := write(filepath.Join(a.Dir(), "g"), size*105/100); !full(err) {
			t.Errorf("of %d: 105%%: %v", size, err)
		}
		info, err := os.Stat(filepath.Join(a.Dir(), "g"))
		if err != nil || info.Size() < int64(size*98/100) {
			t.Errorf("of %d: only %d fitted, %v", size, info.Size(), err)
		}
		which, limit, used, full := a.Full()
		if which != "disk limit" || limit != int64(size) || used < int64(size)*95/100 || !full {
			t.Errorf("full: %q %d %d %v", which, limit, used, full)
		}
	}
}

func TestLoopClose(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "area")
	a, err := scratch.Open(t.Context(), dir, scratch.Config{
		Limit:   256 * mib,
		Volumes: []scratch.Volume{{Name: "sized", Size: 64 * mib}, {Name: "free"}},
		Prefer:  byLoop,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := write(filepath.Join(volume(t, a, "sized"), "f"), 80*mib); !full(err) {
		t.Errorf("a volume took more than its size: %v", err)
	}
	if which, limit, _, full := a.Full(); which != "volume sized" || limit != 64*mib || !full {
		t.Errorf("full: %q %d %v", which, limit, full)
	}
	if err := write(filepath.Join(volume(t, a, "free"), "f"), 180*mib); err != nil {
		t.Error(err)
	}
	if err := write(filepath.Join(a.Dir(), "f"), 16*mib); !full(err) {
		t.Errorf("the sum is more than the limit: %v", err)
	}
	if n := strings.Count(mounts(t), dir); n != 2 {
		t.Errorf("%d mounts", n)
	}
	for range 2 {
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(mounts(t), dir) {
		t.Error("a mount is left")
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the area is left: %v", err)
	}
	if dev := scratch.DeviceOf(filepath.Join(dir, "main.img")); dev != "" {
		t.Errorf("%s is left", dev)
	}
}

// What the parts hold works as the writable part of an overlay, for trusted attributes too.
func TestLoopOverlay(t *testing.T) {
	needRoot(t)
	a := open(t, scratch.Config{Limit: 32 * mib, Prefer: byLoop})
	lower, root := t.TempDir(), t.TempDir()
	for _, d := range []string{filepath.Join(lower, "d"), filepath.Join(a.Dir(), "upper-0"), filepath.Join(a.Dir(), "work-0")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(lower, "d", "f"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	opts := "lowerdir=" + lower + ",upperdir=" + a.Dir() + "/upper-0,workdir=" + a.Dir() + "/work-0"
	if err := unix.Mount("overlay", root, "overlay", 0, opts); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(root, unix.MNT_DETACH)
	if err := os.RemoveAll(filepath.Join(root, "d")); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	var opaque [8]byte
	if n, err := unix.Getxattr(filepath.Join(a.Dir(), "upper-0", "d"), "trusted.overlay.opaque", opaque[:]); err != nil || string(opaque[:n]) != "y" {
		t.Errorf("a directory made anew is not opaque: %q, %v", opaque[:n], err)
	}
	if entries, err := os.ReadDir(filepath.Join(root, "d")); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := write(filepath.Join(root, "f"), 40*mib); !full(err) {
		t.Errorf("the overlay took more than the limit: %v", err)
	}
}

// The mounts of a process that died vanish with its mount namespace: here, they are unmounted by hand.
func TestReopen(t *testing.T) {
	needRoot(t)
	a := open(t, scratch.Config{Limit: 64 * mib, Volumes: []scratch.Volume{{Name: "v", Size: 16 * mib}}, Prefer: byLoop})
	if err := os.WriteFile(filepath.Join(volume(t, a, "v"), "f"), []byte("kept"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{a.Dir(), volume(t, a, "v")} {
		if err := unix.Unmount(d, 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := a.Volume("v"); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("a volume that is no longer mounted: %v", err)
	}
	b, err := scratch.Reopen(t.Context(), filepath.Dir(a.Dir()), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(volume(t, b, "v"), "f")); err != nil || string(got) != "kept" {
		t.Errorf("%q, %v", got, err)
	}
	if got := b.Enforcement(); got != berth.DiskLoop {
		t.Errorf("enforcement %q", got)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := scratch.Reopen(t.Context(), filepath.Dir(a.Dir()), nil); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("reopened what is gone: %v", err)
	}
}

// A directory that was made before becomes the area's where there is no limit, and is removed where the area is there.
func TestSpare(t *testing.T) {
	dir := t.TempDir()
	spare := func() string {
		if err := os.MkdirAll(filepath.Join(dir, "spare", "upper"), 0o700); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, "spare")
	}
	a, err := scratch.Open(t.Context(), filepath.Join(dir, "area"), scratch.Config{Spare: spare})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(a.Dir(), "upper")); err != nil {
		t.Error(err)
	}
	if _, err := scratch.Open(t.Context(), filepath.Join(dir, "area"), scratch.Config{Spare: spare}); !errors.Is(err, berth.ErrConflict) {
		t.Errorf("where an area is: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "spare")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory that was of no use: %v", err)
	}
	none := func() string { return "" }
	if a, err = scratch.Open(t.Context(), filepath.Join(dir, "none"), scratch.Config{Spare: none}); err != nil {
		t.Fatal(err)
	}
	limited := func() string { t.Error("asked for where there is a limit"); return "" }
	l, err := scratch.Open(t.Context(), filepath.Join(dir, "limited"), scratch.Config{Spare: limited, Limit: 32 * mib, Prefer: []berth.DiskEnforcement{berth.DiskSampled}})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(a.Close(), l.Close()); err != nil {
		t.Error(err)
	}
}
