package monitor

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// sparseFile makes a file of size bytes that are a hole but for a word at its begin, in its middle and at its end.
func sparseFile(t *testing.T, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, size / 2, size - 4} {
		if _, err := f.WriteAt([]byte("word"), at); err != nil {
			t.Fatal(err)
		}
	}
}

// copied copies the directory src of a tree into dst.
func copied(ctx context.Context, t *testing.T, tree, dst string) error {
	t.Helper()
	root, err := os.Open(tree)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return copyDir(ctx, root, "/src", dst, func(err error) error { return err })
}

// A file of some bytes whose size is a terabyte takes some bytes in a volume too, and files with several names are
// copied once.
func TestCopyKeepsHolesAndLinks(t *testing.T) {
	const size = 1 << 40
	tree, dst := t.TempDir(), t.TempDir()
	src := filepath.Join(tree, "src")
	if err := os.MkdirAll(filepath.Join(src, "d"), 0o755); err != nil {
		t.Fatal(err)
	}
	sparseFile(t, filepath.Join(src, "sparse"), size)
	for _, name := range []string{"d/second", "third"} {
		if err := os.Link(filepath.Join(src, "sparse"), filepath.Join(src, name)); err != nil {
			t.Fatal(err)
		}
	}
	if f, err := os.Create(filepath.Join(src, "all-hole")); err != nil || f.Truncate(size) != nil || f.Close() != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := copied(ctx, t, tree, dst); err != nil {
		t.Fatal(err)
	}
	var first unix.Stat_t
	for i, name := range []string{"sparse", "d/second", "third", "all-hole"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(dst, name), &st); err != nil || st.Size != size || st.Blocks*512 > 1<<20 {
			t.Errorf("%s: %d bytes, %d blocks, %v", name, st.Size, st.Blocks, err)
		}
		if i == 0 {
			first = st
		} else if (st.Ino == first.Ino) != (name != "all-hole") {
			t.Errorf("%s: inode %d, and the first %d", name, st.Ino, first.Ino)
		}
	}
	f, err := os.Open(filepath.Join(dst, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, at := range []int64{0, size / 2, size - 4} {
		var word [4]byte
		if _, err := f.ReadAt(word[:], at); err != nil || string(word[:]) != "word" {
			t.Errorf("at %d: %q, %v", at, word, err)
		}
	}
}

// What could not be copied whole is not there; what was there before is.
func TestCopyEnds(t *testing.T) {
	tree := t.TempDir()
	if err := os.MkdirAll(filepath.Join(tree, "src/d"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "d/b", "z"} {
		if err := os.WriteFile(filepath.Join(tree, "src", name), make([]byte, 1<<20), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	canceled, cancel := context.WithCancelCause(t.Context())
	cancel(berth.ErrCanceled)
	for _, tt := range []struct {
		name string
		ctx  context.Context
		size string
		want error
	}{
		{"canceled", canceled, "8m", berth.ErrCanceled},
		{"full", t.Context(), "2m", unix.ENOSPC},
		{"room", t.Context(), "8m", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dst := t.TempDir()
			mountTmpfs(t, dst, tt.size)
			if err := os.WriteFile(filepath.Join(dst, "mine"), []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := copied(tt.ctx, t, tree, dst); !errors.Is(err, tt.want) {
				t.Errorf("%v, want %v", err, tt.want)
			}
			want := "mine"
			if tt.want == nil {
				want = "a d mine z"
			}
			if got := names(t, dst); got != want {
				t.Errorf("there is %s, want %s", got, want)
			}
		})
	}
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return strings.Join(out, " ")
}

func mountTmpfs(t *testing.T, dir, size string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "mode=755,size="+size); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// Whoever ends a container that starts does not wait for what is copied for it, nor does anybody else.
func TestEndWhileCopying(t *testing.T) {
	m := testMonitor(t)
	sb := &sandbox{m: m, id: "s", dir: t.TempDir(), containers: map[string]*container{}, gone: make(chan struct{})}
	c := sb.newContainer("c", berth.StepSpec{})
	ctx, abort := context.WithCancel(t.Context())
	c.abort = abort
	sb.containers["c"] = c
	sb.copying.Lock()
	go func() { // as start does
		defer sb.copying.Unlock()
		<-ctx.Done()
		if e, ok := c.whyUnfilled(ctx.Err()); !ok || e.Reason != berth.Stopped || e.Detail != "why" {
			t.Errorf("%+v, %t", e, ok)
		}
		close(c.ended)
		close(c.started)
	}()
	done := make(chan struct{})
	go func() {
		defer close(done)
		sb.all()
		c.end(berth.Stopped, "why", 0)
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		t.Fatal("the end waits for the copying")
	}
}

// Capabilities, access lists and attributes of users are carried over, by files and directories.
func TestCopyAttributes(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: owners and capabilities")
	}
	src, dst := t.TempDir(), t.TempDir()
	if err := errors.Join(os.MkdirAll(src+"/v/d/e", 0o755), os.WriteFile(src+"/v/d/f", []byte("x"), 0o644), os.Chown(src+"/v/d/f", 12, 34),
		os.WriteFile(src+"/v/d/g", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	entry := func(tag, perm uint16, id uint32) []byte {
		return binary.LittleEndian.AppendUint32(binary.LittleEndian.AppendUint16(binary.LittleEndian.AppendUint16(nil, tag), perm), id)
	}
	acl := slices.Concat([]byte{2, 0, 0, 0}, entry(1, 6, ^uint32(0)), entry(2, 4, 1234), entry(4, 4, ^uint32(0)), entry(16, 4, ^uint32(0)), entry(32, 4, ^uint32(0)))
	capability := slices.Concat([]byte{1, 0, 0, 2, 0, 4, 0, 0}, make([]byte, 12)) // v2, effective, CAP_NET_BIND_SERVICE
	want := []struct{ at, name, value string }{
		{"/d/f", "security.capability", string(capability)},
		{"/d/f", "system.posix_acl_access", string(acl)},
		{"/d", "system.posix_acl_default", string(acl)},
	}
	for _, w := range want {
		if err := unix.Setxattr(src+"/v"+w.at, w.name, []byte(w.value), 0); err != nil {
			t.Fatal(w, err)
		}
	}
	root, err := os.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if err := copyDir(t.Context(), root, "/v", dst, func(err error) error { return err }); err != nil {
		t.Fatal(err)
	}
	for _, w := range want {
		got := make([]byte, 256)
		if n, err := unix.Getxattr(dst+w.at, w.name, got); err != nil || string(got[:max(n, 0)]) != w.value {
			t.Errorf("%s %s: %q, %v; want %q", w.at, w.name, got[:max(n, 0)], err, w.value)
		}
	}
	// What was there before a directory's list for what is made in it does not have that.
	for at, name := range map[string]string{"/d/g": "system.posix_acl_access", "/d/e": "system.posix_acl_default"} {
		if n, err := unix.Getxattr(dst+at, name, nil); !errors.Is(err, unix.ENODATA) {
			t.Errorf("%s has %s, of %d bytes, %v", at, name, n, err)
		}
	}
}
