package scratch_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/scratch"
)

// dig makes directories in each other and returns how deep it came.
func dig(t *testing.T, dir string, depth int) {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
}

func TestRemove(t *testing.T) {
	base := t.TempDir()
	keep := filepath.Join(base, "keep")
	if err := errors.Join(os.MkdirAll(keep+"/d", 0o755), os.WriteFile(keep+"/f", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	tree := filepath.Join(base, "tree")
	if err := errors.Join(os.MkdirAll(tree+"/locked/in", 0o755), os.WriteFile(tree+"/locked/in/f", nil, 0o400), os.Symlink(keep, tree+"/link"),
		os.Symlink(keep, tree+"/locked/link"), unix.Mkfifo(tree+"/p", 0o600)); err != nil {
		t.Fatal(err)
	}
	for i := range 2000 {
		if err := os.WriteFile(fmt.Sprintf("%s/f%d", tree, i), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	dig(t, tree, 3000)
	if err := errors.Join(os.Chmod(tree+"/locked/in", 0), os.Chmod(tree+"/locked", 0)); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := scratch.Remove(tree); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(tree); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
	if err := os.Symlink(keep, tree); err != nil {
		t.Fatal(err)
	}
	if err := scratch.Remove(tree); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(keep)
	if err != nil || len(entries) != 2 {
		t.Errorf("a link was followed: %v, %v", entries, err)
	}
}

// Without root, directories that their owner locked are opened first.
func TestRemoveAsUser(t *testing.T) {
	if tree := os.Getenv("BERTH_TEST_TREE"); tree != "" {
		if err := scratch.Remove(tree); err != nil {
			t.Fatal(err)
		}
		return
	}
	dir := asNobody(t, nil, func(dir string) error {
		tree := dir + "/tree"
		return errors.Join(os.MkdirAll(tree+"/a/b", 0o755), os.WriteFile(tree+"/a/b/f", nil, 0),
			os.Chmod(tree+"/a/b", 0), os.Chmod(tree+"/a", 0), os.Chmod(tree, 0))
	})
	if _, err := os.Lstat(dir + "/tree"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v", err)
	}
}

// Root of a user namespace has neither quotas nor loop devices.
func TestSampledInUserNamespace(t *testing.T) {
	if tree := os.Getenv("BERTH_TEST_TREE"); tree != "" {
		a, err := scratch.Open(t.Context(), tree, scratch.Config{Limit: mib, Volumes: []scratch.Volume{{Name: "v", Size: 4096}}})
		if err != nil || a.Enforcement() != berth.DiskSampled {
			t.Fatalf("%+v, %v", a, err)
		}
		if err := a.Close(); err != nil {
			t.Error(err)
		}
		return
	}
	dir := asNobody(t, []string{"unshare", "--user", "--map-root-user", "--mount"}, func(string) error { return nil })
	if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
		t.Errorf("left %v, %v", left, err)
	}
}

// asNobody runs the test again as another user, with the path of a tree in a directory of his.
func asNobody(t *testing.T, prefix []string, prepare func(dir string) error) string {
	t.Helper()
	needRoot(t)
	base, err := os.MkdirTemp("/tmp", "scratch") // t.TempDir is closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	bin, dir := filepath.Join(base, "test"), filepath.Join(base, "own")
	data, err := os.ReadFile("/proc/self/exe")
	if err := errors.Join(err, os.WriteFile(bin, data, 0o755), os.Chmod(base, 0o755), os.Mkdir(dir, 0o755), prepare(dir)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "chown", "-R", "65534:65534", dir).CombinedOutput(); err != nil {
		t.Fatalf("%s, %v", out, err)
	}
	args := append([]string{"--reuid=65534", "--regid=65534", "--clear-groups"}, prefix...)
	cmd := exec.CommandContext(t.Context(), "setpriv", append(args, bin, "-test.run=^"+t.Name()+"$")...)
	cmd.Env = []string{"BERTH_TEST_TREE=" + dir + "/tree", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR=/tmp"}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%s, %v", out, err)
	}
	return dir
}

func TestDiscard(t *testing.T) {
	base := t.TempDir()
	trash := filepath.Join(base, "trash")
	a, err := scratch.Open(t.Context(), filepath.Join(base, "a"), scratch.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(a.Dir()+"/x/y", 0o755); err != nil {
		t.Fatal(err)
	}
	remove, err := a.Discard(trash)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(a.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
	if entries, err := os.ReadDir(trash); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := remove(); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(trash); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	if again, err := a.Discard(trash); err != nil || again() != nil {
		t.Errorf("discarded again: %v", err)
	}
	// What nobody came to remove is swept.
	if err := os.MkdirAll(base+"/b/c", 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := scratch.Discard(base+"/b", trash); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := scratch.Sweep(t.Context(), trash); err != nil {
			t.Error(err)
		}
	}
	if entries, err := os.ReadDir(trash); err != nil || len(entries) != 0 {
		t.Errorf("%v, %v", entries, err)
	}
	if err := scratch.Sweep(t.Context(), base+"/none"); err != nil {
		t.Error(err)
	}
}

// What is mounted in a tree is not removed with it.
func TestRemoveStopsAtMounts(t *testing.T) {
	needRoot(t)
	base := t.TempDir()
	tree, keep := filepath.Join(base, "tree"), t.TempDir()
	if err := errors.Join(os.MkdirAll(tree+"/m", 0o755), unix.Mount("tmpfs", keep, "tmpfs", 0, "size=1m"), os.WriteFile(keep+"/f", nil, 0o644), unix.Mount(keep, tree+"/m", "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(keep, unix.MNT_DETACH)
	defer unix.Unmount(tree+"/m", unix.MNT_DETACH)
	if err := scratch.Remove(tree); err == nil || !strings.Contains(err.Error(), "busy") {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(keep + "/f"); err != nil {
		t.Error(err)
	}
}

func BenchmarkOpenClose(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		a, err := scratch.Open(b.Context(), dir+"/a", scratch.Config{Volumes: []scratch.Volume{{Name: "v"}}})
		if err == nil {
			err = a.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenCloseLoop(b *testing.B) {
	dir := b.TempDir()
	for b.Loop() {
		a, err := scratch.Open(b.Context(), dir+"/a", scratch.Config{Limit: 1 << 30, Prefer: byLoop})
		if err == nil {
			err = a.Close()
		}
		if err != nil {
			b.Fatal(err)
		}
	}
}
