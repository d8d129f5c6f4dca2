package docker_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"golang.org/x/sys/unix"
)

// TestNotAsked: usage comes from the files of the container's cgroup, and its address is asked for once: neither needs
// the daemon.
func TestNotAsked(t *testing.T) {
	t.Parallel()
	h := newHanger(t, daemon(t).Host())
	e, img := newEngine(t, docker.Config{Host: h.host})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Network: berth.Network{Mode: berth.NetworkBridge}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	c := step(t, s, img, "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; sleep 1000")
	first, err := c.(berth.Addresser).Address(t.Context())
	if err != nil || first == "" {
		t.Fatalf("address %q, %v", first, err)
	}
	h.calls.Store("/containers/")
	defer h.calls.Store("")
	if again, err := c.(berth.Addresser).Address(t.Context()); again != first || err != nil {
		t.Errorf("address %q, and then %q, %v", first, again, err)
	}
	until(t, "it has used a processor", func() bool {
		u, err := c.(berth.Statser).Stats(t.Context())
		if err != nil || u.PIDs == nil || *u.PIDs < 1 || u.Memory == nil || *u.Memory < 1<<16 {
			t.Fatalf("usage %+v, %v", u, err)
		}
		return u.CPUSeconds != nil && *u.CPUSeconds > 0.01
	})
}

// TestDaemonsDiskFull: what a daemon has no room for fails with one clear reason.
func TestDaemonsDiskFull(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/var/tmp", "berth-dockerd-")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	if err := os.Mkdir(root, 0o711); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=24m,mode=711"); err != nil {
		t.Fatal("needs root:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH); _ = os.RemoveAll(dir) })
	d := ownDaemon(t, "--data-root", root)
	e, img := newEngine(t, docker.Config{Host: d.Host()})
	s, c := begin(t, e, img, "dd if=/dev/zero of=/fill bs=1M; exit 5")
	if exit := wait(t, c); exit.Code != 5 || exit.Reason != berth.OutOfDisk || !strings.Contains(exit.Detail, "the daemon's disk is full") {
		t.Errorf("a container that fills the daemon's disk: %+v", exit)
	}
	_, err = s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"true"}})
	if err == nil || !strings.Contains(err.Error(), "no space left on device") || strings.Contains(err.Error(), "\n") {
		t.Errorf("another: %v", err)
	}
	if broken, _ := e.Broken(err); !broken {
		t.Errorf("the host is not told to be broken: %v", err)
	}
}
