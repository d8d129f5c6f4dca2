package docker_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/engine/docker"
)

// TestSpecsLeft: a sandbox's own CDI spec does not outlive it, though a start writes it while the sandbox is closed, or the
// sandbox's directory is lost; and nobody else's goes.
func TestSpecsLeft(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root: to make device nodes")
	}
	grant := docker.LentNVIDIA(fakeGPUs(t)[0])
	e, _ := newEngine(t, docker.Config{})
	open := func(t *testing.T) berth.Sandbox {
		t.Helper()
		s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Grants: []berth.Grant{grant}})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	t.Run("a start races a close", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "cdi")
		for range 30 {
			s := open(t)
			if err := docker.Lend(s, dir); err != nil {
				t.Fatal(err)
			}
			if have := list(t, dir); len(have) != 1 {
				t.Fatalf("specs %q, want one", have)
			}
			refused := make(chan error)
			go func() {
				var err error
				for err == nil {
					err = docker.Lend(s, dir)
				}
				refused <- err
			}()
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if err := <-refused; !errors.Is(err, berth.ErrNotFound) || errors.Is(err, berth.ErrUnsupported) {
				t.Errorf("after the close: %v", err)
			}
			if left := list(t, dir); len(left) > 0 {
				t.Fatalf("left: %q", left)
			}
		}
	})
	t.Run("a start after the close", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "cdi")
		s := open(t)
		if err := s.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := docker.Lend(s, dir); !errors.Is(err, berth.ErrNotFound) || errors.Is(err, berth.ErrUnsupported) {
			t.Errorf("lent after the close: %v", err)
		}
		if left := list(t, dir); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
	})
	t.Run("the directory is lost", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "cdi")
		if err := docker.HaveSpecs(t.Context(), e, filepath.Join(t.TempDir(), "none"), dir); err != nil {
			t.Fatal(err)
		}
		lost, other, live := open(t), open(t), open(t)
		for _, s := range []berth.Sandbox{lost, other, live} {
			if err := docker.Lend(s, dir); err != nil {
				t.Fatal(err)
			}
		}
		t.Cleanup(func() { _ = live.Close(context.Background()) })
		for _, s := range []berth.Sandbox{lost, other} {
			if err := os.RemoveAll(s.(*docker.Sandbox).Dir()); err != nil {
				t.Fatal(err)
			}
		}
		mine := cdi.LentName(e.Owner(), lost.ID(), "nvidia") + ".yaml"
		gone := []string{mine, cdi.LentName(e.Owner(), lost.ID(), "amd") + ".yaml"}
		for _, name := range []string{
			gone[1],
			cdi.LentName("other", lost.ID(), "nvidia") + ".yaml", mine + ".old", "." + mine, "nvidia.yaml", "berth.yaml",
			cdi.LentName(e.Owner(), "No-ID", "nvidia") + ".yaml", cdi.LentName(e.Owner(), "", "nvidia") + ".yaml", cdi.LentName(e.Owner(), "*", "nvidia") + ".yaml",
			cdi.LentName(e.Owner(), "a.b", "nvidia") + ".yaml", "xberth." + strings.TrimPrefix(mine, "berth."),
		} {
			if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("nvidia.yaml", filepath.Join(dir, cdi.LentName(e.Owner(), lost.ID(), "link")+".yaml")); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(dir, cdi.LentName(e.Owner(), lost.ID(), "dir")+".yaml"), 0o755); err != nil {
			t.Fatal(err)
		}
		want := slices.DeleteFunc(list(t, dir), func(name string) bool { return slices.Contains(gone, name) })
		ids := []string{lost.ID(), other.ID()}
		slices.Sort(ids)
		if got, err := e.Orphans(t.Context()); err != nil || !slices.Equal(got, ids) {
			t.Errorf("orphans %q, %v; want %q", got, err, ids)
		}
		if was, err := e.Purge(t.Context(), live.ID()); was || err != nil {
			t.Errorf("purge of one that is open: %v, %v", was, err)
		}
		if was, err := e.Purge(t.Context(), lost.ID()); !was || err != nil {
			t.Errorf("purge: %v, %v", was, err)
		}
		if was, err := e.Purge(t.Context(), lost.ID()); was || err != nil {
			t.Errorf("again: %v, %v", was, err)
		}
		if got := list(t, dir); !slices.Equal(got, want) {
			t.Errorf("there is\n%q, want\n%q", got, want)
		}
	})
}

// list names what is in a directory, if that is there.
func list(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	for _, d := range entries {
		names = append(names, d.Name())
	}
	return names
}
