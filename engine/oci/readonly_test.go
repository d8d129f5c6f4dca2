package oci_test

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// What is mounted read-only is so with every file system that is mounted in it: an input directory may hold others.
func TestReadOnlyBelow(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a tmpfs")
	}
	dir := t.TempDir()
	below := filepath.Join(dir, "below")
	if err := errors.Join(os.Mkdir(below, 0o755), unix.Mount("tmpfs", below, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(below, unix.MNT_DETACH) })
	for _, rt := range []string{"direct", "runc"} {
		t.Run(rt, func(t *testing.T) {
			for _, f := range []string{filepath.Join(dir, "f"), filepath.Join(below, "f")} {
				if err := os.WriteFile(f, []byte("source\n"), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			e, img := newEngine(t, rt)
			sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
			if err != nil {
				t.Fatal(err)
			}
			c := start(t, sb, berth.StepSpec{
				ID: "s1", Image: img, Mounts: []berth.Mount{{Source: dir, Target: "/in", ReadOnly: true}},
				Command: []string{"sh", "-c", "echo x >/in/f; echo x >/in/below/f; touch /in/below/new; cat /in/f /in/below/f; ls /in/below"},
			})
			if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.Exited {
				t.Fatalf("Wait = %+v, %v", exit, err)
			}
			if got, want := logs(t, c, false), "source\nsource\nf\n"; got != want {
				t.Errorf("stdout %q, want %q; stderr %s", got, want, logs(t, c, true))
			}
			if err := sb.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
		})
	}
}
