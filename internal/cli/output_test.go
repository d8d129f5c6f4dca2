package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOutputNotWritable: where outputs cannot be written is told before anything runs and, if it becomes so later,
// when they are collected. Nothing is left in either case.
func TestOutputNotWritable(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(b.dir, "results")
	if err := errFirst(os.Mkdir(dir, 0o755), unix.Mount("tmpfs", dir, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	gate := filepath.Join(b.dir, "gate")
	if err := os.Mkdir(gate, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd, rest, stderr := b.start("--mount", gate+":/gate", "--output", dir+"/x:/out/x", "bb", "sh", "-c", "echo up; echo a >/out/x; while [ ! -e /gate/go ]; do sleep 0.05; done", "in-the-task")
	if err := errFirst(unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""), os.WriteFile(filepath.Join(gate, "go"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	rest()
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 125 || strings.Count(stderr.String(), "\n") != 1 || !strings.HasPrefix(stderr.String(), "berth: output /out/x: cannot write "+dir+"/x: ") || !strings.Contains(stderr.String(), "read-only file system") {
		t.Errorf("that becomes read-only: exit code %d, %s", code, stderr)
	}
	b.clean()
	out, code := b.output("run", "--output", dir+"/x:/out/x", "bb", "sh", "-c", "echo ran")
	if code != 125 || !strings.HasPrefix(out, "berth: output /out/x: cannot write "+dir+"/x: ") || strings.Count(out, "\n") != 1 || strings.Contains(out, "ran\n") {
		t.Errorf("that is read-only: exit code %d, %s", code, out)
	}
	t.Log(stderr, out)
	if left, err := os.ReadDir(dir); len(left) > 0 || err != nil {
		t.Errorf("left: %v, %v", left, err)
	}
	b.clean()
}
