package docker_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/moby/moby/client"
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

// TestLayerLimit: a daemon that may be able to limit writable layers is asked to, in bytes. One that cannot after all, as on
// a file system without quotas, costs nothing but the question: the limit is kept by berth.
func TestLayerLimit(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/var/tmp", "berth-dockerd-")
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "root")
	script := fmt.Sprintf("truncate -s 512M %[1]s.img && mkdir %[1]s && mkfs.xfs -q %[1]s.img && (mount -o loop,pquota %[1]s.img %[1]s || mount -o loop %[1]s.img %[1]s)", root)
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() { _ = unix.Unmount(root, unix.MNT_DETACH); _ = os.RemoveAll(dir) })
	d := ownDaemon(t, "--data-root", root)
	var sizes []string
	h := newHanger(t, d.Host())
	h.saw = func(path string, body []byte) {
		var create struct {
			Image      string
			HostConfig struct{ StorageOpt map[string]string }
		}
		// What no image is of only asks whether the daemon is on this machine.
		if strings.HasSuffix(path, "/containers/create") && json.Unmarshal(body, &create) == nil && !strings.HasPrefix(create.Image, "berth.invalid/") {
			sizes = append(sizes, create.HostConfig.StorageOpt["size"])
		}
	}
	e, img := newEngine(t, docker.Config{Host: h.host})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Limits: berth.Limits{Disk: 8 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	for range 2 {
		c := step(t, s, img, "dd if=/dev/zero of=/fill bs=1M count=64; exit 3")
		if exit := wait(t, c); exit.Reason != berth.OutOfDisk {
			t.Errorf("exit %+v", exit)
		}
		if err := c.Remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
	const bytes = "8388608"
	want := []string{bytes + ",,", bytes + "," + bytes}
	api, err := client.New(client.WithHost(d.Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	info, err := api.Info(t.Context(), client.InfoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(info.Info.DriverStatus, func(s [2]string) bool { return s[0] == "driver-type" }) {
		want = []string{","} // layers are containerd's, which limits none
	}
	if got := strings.Join(sizes, ","); !slices.Contains(want, got) {
		t.Errorf("sizes asked for: %s", got)
	}
}

// TestDiskPassedAtOnce: what was written above a limit of disk between two looks is found at the end, however well the
// command ended.
func TestDiskPassedAtOnce(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Limits: berth.Limits{Disk: 8 << 20}, Volumes: []berth.Volume{{Path: "/vol"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	below := step(t, s, img, "dd if=/dev/zero of=/vol/x bs=1M count=4")
	if exit := wait(t, below); exit.Code != 0 || exit.Reason != berth.Exited {
		t.Errorf("below its limit it ended with %+v", exit)
	}
	for try := 1; ; try++ {
		above := step(t, s, img, "dd if=/dev/zero of=/fill bs=1M count=12")
		exit := wait(t, above)
		if exit.Reason == berth.OutOfDisk && exit.Code != 0 && try < 5 { // a look came before its end
			if err := above.Remove(t.Context()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if exit.Code != 0 || exit.Reason != berth.OutOfDisk || !strings.HasPrefix(exit.Detail, "the disk limit of 8 MiB was passed: 16") {
			t.Errorf("above its limit it ended with %+v", exit)
		}
		break
	}
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
