package cli

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
	one("while pulling", out, code, 125, "berth: ", host+"/big:1", "no space left on device")
	var big bytes.Buffer
	w := tar.NewWriter(&big)
	noise := make([]byte, 100<<20)
	_, _ = rand.Read(noise)
	err = w.WriteHeader(&tar.Header{Name: "big", Mode: 0o600, Size: int64(len(noise))})
	_, bad := w.Write(noise)
	if err := errFirst(err, bad, w.Close()); err != nil {
		t.Fatal(err)
	}
	cmd = b.berth("image", "import", "-", "big")
	cmd.Stdin = &big
	told, err := cmd.CombinedOutput()
	if text := string(told); err == nil || strings.Count(text, "make room in "+b.data)+strings.Count(text, "choose another data directory") != 1 {
		t.Errorf("an import that fills the disk: %v, and not one remedy: %s", err, text)
	}
	if out, _ := b.output("image", "ls", "-q"); strings.Count(out, "\n") != 1 {
		t.Errorf("images are left: %s", out)
	}
	if now := free(t, disk); now < before-1<<20 {
		t.Errorf("a pull that failed has left %d bytes", before-now)
	}

	out, code = b.output("run", "bb", "dd", "if=/dev/zero", "of=/big", "bs=1M", "count=100")
	one("while running", out, code, 1, "berth: warning: the disk of the data directory "+b.data+" is full")

	out, code = b.output("run", "--output", filepath.Join(disk, "out")+":/out/x", "bb", "sh", "-c", "head -c 30000000 /dev/zero >/out/x")
	one("while collecting", out, code, 125, "berth: output /out/x: cannot write "+disk+"/out: the disk is full")
	if _, err := os.Lstat(filepath.Join(disk, "out")); err == nil {
		t.Error("half an output is there")
	}
	out, code = b.output("run", "--stdout", filepath.Join(disk, "out"), "bb", "sh", "-c", "head -c 30000000 /dev/zero")
	one("while collecting standard output", out, code, 125, "berth: --stdout: cannot write "+disk+"/out: the disk is full")
	out, code = b.output("run", "--stdout", filepath.Join(t.TempDir(), "out"), "bb", "sh", "-c", "head -c 100000000 /dev/zero")
	if text := strings.ReplaceAll(out, "\x00", ""); code != 125 || !strings.Contains(text, "berth: --stdout: it ends after byte ") || !strings.Contains(text, "no space left on device") {
		t.Errorf("standard output's file on another disk: exit code %d: %.300q", code, text)
	}

	// The log fills the disk, and stays. The task's end is recorded nevertheless, and the log can be removed.
	out, code = b.output("run", "--name", "fills", "bb", "sh", "-c", "head -c 100000000 /dev/zero; echo; echo last; echo last >&2; exit 7")
	text := strings.ReplaceAll(out, "\x00", "") // the two streams may overtake each other
	if code != 7 || len(out)-len(text) != 100000000 || strings.Count(text, "\nlast\n") == 0 || !strings.Contains(text, "berth: warning: log stdout: its first ") {
		t.Errorf("a log that fills the disk: exit code %d, %d bytes, %.200q", code, len(out), text)
	}
	if out, _ := b.output("logs", "--tail", "1", "fills"); out != "last\nlast\n" {
		t.Errorf("logs: %s", out)
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

// TestFullDiskWhileOthersFillIt: somebody takes every byte that becomes free while tasks end. What they wrote is whole,
// the exit code is theirs, one line tells where the disk is full, and their true end is recorded once there is room.
func TestFullDiskWhileOthersFillIt(t *testing.T) {
	b := newBench(t)
	disk := smallDisk(t, 48<<20)
	b.data = filepath.Join(disk, "data")
	t.Cleanup(func() { endMonitor(b.data) })
	archive, err := busybox()
	if err != nil {
		t.Fatal(err)
	}
	cmd := b.berth("image", "import", "-", "bb")
	cmd.Stdin = bytes.NewReader(archive)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	gate := filepath.Join(b.dir, "go")
	script := `echo up; while [ ! -e /go/on ]; do sleep 0.05; done; echo two; echo three >&2; exit 7`
	for _, detached := range []bool{false, true} {
		if err := errors.Join(os.RemoveAll(gate), os.Mkdir(gate, 0o755)); err != nil {
			t.Fatal(err)
		}
		var stderr *bytes.Buffer
		var rest func() string
		if detached {
			if out, code := b.output("run", "--detach", "--name", "job", "--mount", gate+":/go", "bb", "sh", "-c", script, "in-the-task"); code != 0 {
				t.Fatal(out)
			}
			b.await("up", "logs", "job")
			b.await("RUNNING", "ps")
		} else {
			cmd, rest, stderr = b.start("--name", "job", "--mount", gate+":/go", "bb", "sh", "-c", script, "in-the-task")
		}
		stop := fill(t, filepath.Join(disk, "fill"))
		if err := os.WriteFile(filepath.Join(gate, "on"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if !detached {
			if got := rest(); got != "two\n" {
				t.Errorf("it wrote %q", got)
			}
			_ = cmd.Wait()
			// What is removed of the task may make room enough.
			told := "berth: warning: the disk of the data directory is full: how the task ended is kept, and recorded once 256 KiB are free; make room in " + b.data + " (berth rm --all, berth image prune)\n"
			full := "berth: warning: the disk of the data directory " + b.data + " is full\n"
			if code := cmd.ProcessState.ExitCode(); code != 7 || strings.TrimSuffix(strings.TrimSuffix(stderr.String(), told), full) != "three\n" {
				t.Errorf("exit code %d, %s", code, stderr)
			}
		} else {
			for end := time.Now().Add(20 * time.Second); time.Now().Before(end) && len(b.tasks()) > 0; time.Sleep(20 * time.Millisecond) {
			}
			time.Sleep(time.Second) // a worker records it
		}
		const behind = "berth: warning: how some tasks ended is not recorded yet: the disk of the data directory is full: "
		if out, code := b.output("ps"); !detached && code == 0 && strings.Contains(out, "RUNNING") && !strings.Contains(out, behind) ||
			code != 0 && (code != 3 || !strings.HasPrefix(out, "berth: open "+b.data+"/berth.db: exhausted: the disk is full: ") || !strings.Contains(out, "; make room in "+b.data)) {
			t.Errorf("ps: exit code %d, %s", code, out)
		}
		stop()
		if detached {
			b.await(`"state":"EXECUTOR_ERROR"`, "ps", "-a", "--format", "json") // a worker may have waited for room
		}
		if out, _ := b.output("ps", "-a", "--format", "json"); strings.Count(out, "\n") != 1 || !strings.Contains(out, `"state":"EXECUTOR_ERROR","reason":"Exited","exit_code":7`) {
			t.Errorf("ps: %s", out)
		}
		if out, _ := b.output("wait", "job"); out != "7\n" {
			t.Errorf("wait: %s", out)
		}
		if out, _ := b.output("logs", "--stream", "stdout", "job"); out != "up\ntwo\n" {
			t.Errorf("logs: %s", out)
		}
		b.clean()
		if out, code := b.output("rm", "job"); code != 0 {
			t.Errorf("rm: %s", out)
		}
	}
}

// fill takes every byte that there is, and that becomes free, until stop is called, which gives all back.
func fill(t *testing.T, name string) (stop func()) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	var full, end sync.WaitGroup
	var ended atomic.Bool
	full.Add(1)
	first := sync.OnceFunc(full.Done)
	end.Go(func() {
		for b := make([]byte, 4096); !ended.Load(); {
			if _, err := f.Write(b); err != nil {
				first()
				time.Sleep(100 * time.Microsecond)
			}
		}
	})
	full.Wait()
	return func() {
		ended.Store(true)
		end.Wait()
		if err := errors.Join(f.Close(), os.Remove(name)); err != nil {
			t.Error(err)
		}
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
	if code != 125 || strings.Count(out, "\n") != 1 || !strings.Contains(out, overlay+"/m/data/") || !strings.Contains(out, "(overlay) cannot hold containers' writable layers: unsupported: give --data-dir a directory on ext4, xfs, btrfs or tmpfs") {
		t.Errorf("a data directory in which there can be no overlay: exit code %d, %s", code, out)
	}
	endMonitor(overlay + "/m/data")
	mount, _, _ = strings.Cut(mount, " && ")
	out, code = lacking(mount, "--data-dir", overlay+"/m/data", "info")
	if code != 0 || strings.Contains(out, "overlay: yes") || !strings.Contains(out, "overlay file system in the data directory") || !strings.Contains(out, "give --data-dir a directory on ext4, xfs, btrfs or tmpfs") {
		t.Errorf("info of such a directory: exit code %d, %s", code, out)
	}
	if left, err := filepath.Glob(overlay + "/u/data/sandboxes/*"); err != nil || len(left) > 0 {
		t.Errorf("info leaves %v, %v", left, err)
	}
}
