package cli

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"golang.org/x/sys/unix"
)

// smallDisk mounts a file system of its own.
func smallDisk(t *testing.T, size int64) string {
	t.Helper()
	dir, img := t.TempDir(), filepath.Join(t.TempDir(), "disk")
	if err := errFirst(os.WriteFile(img, nil, 0o600), os.Truncate(img, size)); err != nil {
		t.Fatal(err)
	}
	for _, argv := range [][]string{{"mkfs.ext4", "-q", "-m", "0", img}, {"mount", "-o", "loop", img, dir}} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func errFirst(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func free(t *testing.T, dir string) int64 {
	t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	return int64(fs.Bavail) * fs.Bsize
}

// TestFullDisk fills the disk of the data directory, and that of the outputs, in every phase of a task.
func TestFullDisk(t *testing.T) {
	b := newBench(t)
	disk := smallDisk(t, 48<<20)
	b.data = filepath.Join(disk, "data")
	t.Cleanup(func() { endMonitor(b.data) }) // before the disk is unmounted
	archive, err := busybox()
	if err != nil {
		t.Fatal(err)
	}
	cmd := b.berth("image", "import", "-", "bb")
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, code := b.output("run", "bb", "true"); code != 0 {
		t.Fatal(out)
	}
	before := free(t, disk)
	one := func(what string, out string, code, wantCode int, says ...string) {
		t.Helper()
		last := lastLine(out)
		for _, s := range says {
			if code != wantCode || !strings.Contains(last, s) {
				t.Errorf("%s: exit code %d, want %d; %q lacks %q", what, code, wantCode, last, s)
			}
		}
		b.clean()
	}

	host := newRegistry(t)
	layer, err := random.Layer(60<<20, "application/vnd.docker.image.rootfs.diff.tar.gzip")
	if err != nil {
		t.Fatal(err)
	}
	push(t, host+"/big:1", layer, v1.ConfigFile{OS: "linux", Architecture: "amd64"})
	out, code := b.output("run", host+"/big:1", "true")
	one("while pulling", out, code, 125, "berth: SYSTEM_ERROR: ", host+"/big:1", "no space left on device")
	if out, _ := b.output("image", "ls", "-q"); strings.Count(out, "\n") != 1 {
		t.Errorf("images are left: %s", out)
	}
	if now := free(t, disk); now < before-1<<20 {
		t.Errorf("a pull that failed has left %d bytes", before-now)
	}

	out, code = b.output("run", "bb", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=100")
	one("while running", out, code, 1, "records out")

	out, code = b.output("run", "--output", filepath.Join(disk, "out")+":/out/x", "bb", "sh", "-c", "head -c 30000000 /dev/zero >/out/x")
	one("while collecting", out, code, 125, "berth: SYSTEM_ERROR: output /out/x: cannot write "+disk+"/out: the disk is full")
	if _, err := os.Lstat(filepath.Join(disk, "out")); err == nil {
		t.Error("half an output is there")
	}
	out, code = b.output("run", "--stdout", filepath.Join(disk, "out"), "bb", "sh", "-c", "head -c 30000000 /dev/zero")
	one("while collecting standard output", out, code, 125, "berth: SYSTEM_ERROR: --stdout: cannot write "+disk+"/out: the disk is full")

	// The log fills the disk, and stays. The task's end is recorded nevertheless, and the log can be removed.
	out, code = b.output("run", "bb", "sh", "-c", "head -c 100000000 /dev/zero; exit 7")
	if code != 7 {
		t.Errorf("a log that fills the disk: exit code %d, %.200q", code, strings.TrimLeft(out, "\x00"))
	}
	out, code = b.output("run", "bb", "true")
	if code != 0 { // then it must have been for the disk
		one("on a full disk", out, code, 125, "berth: ", "; make room in "+b.data+" (berth rm --all, berth image prune), or give another --data-dir")
	}
	if out, _ := b.output("ps", "-q"); out != "" {
		t.Errorf("a task never ended: %s", out)
	}
	if out, code := b.output("rm", "--all"); code != 0 {
		t.Errorf("rm: exit code %d, %s", code, out)
	}
	if now := free(t, disk); now < before-2<<20 {
		t.Errorf("%d bytes are left of removed tasks", before-now)
	}
	if out, code := b.output("run", "bb", "echo", "again"); code != 0 || out != "again\n" {
		t.Errorf("afterwards: exit code %d, %s", code, out)
	}
}

// TestHostLacks runs where the host lacks what a task needs.
func TestHostLacks(t *testing.T) {
	b := newBench(t)
	lacking := func(prepare string, args ...string) (string, int) {
		t.Helper()
		endMonitor(b.data)
		cmd := exec.CommandContext(t.Context(), "/bin/sh", append([]string{"-c", prepare + ` && exec "$@"`, "sh", b.executable()}, args...)...)
		cmd.Env, cmd.Dir = b.berth().Env, b.dir
		cmd.SysProcAttr = privateMounts()
		out, _ := cmd.CombinedOutput()
		return string(out), cmd.ProcessState.ExitCode()
	}
	const noCgroups = `for m in $(awk '$5 ~ "^/sys/fs/cgroup" {print $5}' /proc/self/mountinfo | sort -r); do mount -o remount,bind,ro "$m" || exit 99; done`
	out, code := lacking(noCgroups, "run", "--memory", "64MiB", "bb", "true")
	if code != 125 || strings.Count(out, "\n") != 1 || !strings.Contains(out, "berth: memory limit: unsupported: ") || !strings.Contains(out, "mount ") {
		t.Errorf("cgroups that cannot be written: exit code %d, %s", code, out)
	}
	endMonitor(b.data)
	b.clean()

	overlay := t.TempDir()
	for _, d := range []string{"l", "u", "w", "m"} {
		if err := os.Mkdir(filepath.Join(overlay, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mount := "mount -t overlay -o lowerdir=" + overlay + "/l,upperdir=" + overlay + "/u,workdir=" + overlay + "/w x " + overlay + "/m && cp -a " + b.data + " " + overlay + "/m/data"
	out, code = lacking(mount, "--data-dir", overlay+"/m/data", "run", "bb", "true")
	if code != 125 || strings.Count(out, "\n") != 1 || !strings.Contains(out, "overlay") {
		t.Errorf("a data directory in which there can be no overlay: exit code %d, %s", code, out)
	}
	endMonitor(overlay + "/m/data")
}
