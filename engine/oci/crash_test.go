package oci_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/image"
)

// monitorPid finds the monitor of a data directory.
func monitorPid(t testing.TB, dir string) int {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range procs {
		raw, err := os.ReadFile(p)
		if err != nil || !strings.HasPrefix(string(raw), oci.MonitorName+"\x00") || !strings.Contains(string(raw), "\x00"+dir+"\x00") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(p)))
		if err == nil {
			return pid
		}
	}
	return 0
}

func start(t testing.TB, sb berth.Sandbox, spec berth.StepSpec) berth.Container {
	t.Helper()
	c, err := sb.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// waitFor polls for what only a process outside this one can make true.
func waitFor(t testing.TB, what string, within time.Duration, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(within); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %s", what, within)
		}
	}
}

// marked reports how many processes of the host have mark in their command line.
func marked(mark string) int {
	out, _ := exec.Command("pgrep", "-fc", mark).Output()
	n, _ := strconv.Atoi(strings.TrimSpace(string(out)))
	return n
}

func TestMonitorKilled(t *testing.T) {
	for _, rt := range []string{"direct", "runc"} {
		t.Run(rt, func(t *testing.T) {
			e, img := newEngine(t, rt)
			sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1", Bound: true})
			if err != nil {
				t.Fatal(err)
			}
			mark := fmt.Sprint(3_000_000 + os.Getpid() + len(rt))
			spec := berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "echo before; sleep " + mark}}
			c := start(t, sb, spec)
			waitFor(t, "the container's command", ample, func() bool { return marked("sleep "+mark) > 0 && logs(t, c, false) != "" })
			dir := e.Dir()
			pid := monitorPid(t, dir)
			if pid == 0 {
				t.Fatal("no monitor found")
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			exit, err := c.Wait(t.Context())
			if err != nil || exit.Reason != berth.Lost {
				t.Fatalf("Wait = %+v, %v; want Lost", exit, err)
			}
			waitFor(t, "the end of the container's processes", ample, func() bool { return marked("sleep "+mark) == 0 })
			again, err := sb.Start(t.Context(), spec)
			if err != nil {
				t.Fatal("the same step again:", err)
			}
			if x, err := again.Wait(t.Context()); err != nil || x.Reason != berth.Lost {
				t.Errorf("the lost step was run again: %+v, %v", x, err)
			}
			if got := logs(t, again, false); got != "before\n" {
				t.Errorf("log of the lost step = %q", got)
			}
			if err := sb.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, e, dir)
		})
	}
}

// TestMonitorTold: a monitor that is told to end ends its containers, and says so, to who waits already as to who asks later.
func TestMonitorTold(t *testing.T) {
	for _, bound := range []bool{true, false} {
		t.Run(fmt.Sprint("bound ", bound), func(t *testing.T) {
			e, img := newEngine(t, "direct")
			sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1", Bound: bound})
			if err != nil {
				t.Fatal(err)
			}
			c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "echo before; sleep 1000"}})
			waitFor(t, "the container's command", ample, func() bool { return logs(t, c, false) != "" })
			later, err := sb.Container(t.Context(), "s1")
			if err != nil {
				t.Fatal(err)
			}
			type end struct {
				exit berth.Exit
				err  error
			}
			waited := make(chan end, 1)
			go func() {
				x, err := c.Wait(t.Context())
				waited <- end{x, err}
			}()
			if err := syscall.Kill(monitorPid(t, e.Dir()), syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			for _, w := range []func() end{
				func() end { return <-waited },
				func() end { x, err := later.Wait(t.Context()); return end{x, err} },
			} {
				if got := w(); got.err != nil || got.exit.Reason != berth.Preempted || got.exit.Started.IsZero() || !strings.Contains(got.exit.Detail, "SIGTERM") {
					t.Errorf("Wait = %+v, %v; want Preempted", got.exit, got.err)
				}
			}
			if got := logs(t, c, false); got != "before\n" {
				t.Errorf("its log is %q", got)
			}
			if err := sb.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, e, e.Dir())
		})
	}
}

// nothingLeft checks that neither sandboxes nor cgroups of the data directory are there.
func nothingLeft(t testing.TB, e *oci.Engine, dir string) {
	t.Helper()
	waitFor(t, "an empty list", ample, func() bool {
		l, err := e.List(context.Background())
		return err == nil && len(l) == 0
	})
	if left, _ := filepath.Glob(filepath.Join(dir, "sandboxes", "*")); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
	id, err := oci.Instance(dir)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the cgroups", ample, func() bool {
		left, _ := filepath.Glob("/sys/fs/cgroup/*/berth/" + id + "/t1.s1")
		return len(left) == 0
	})
}

// TestHelperClient is no test: it is the process that TestClientKilled kills.
func TestHelperClient(t *testing.T) {
	dir, mark := os.Getenv("BERTH_TEST_DIR"), os.Getenv("BERTH_TEST_MARK")
	if dir == "" {
		return
	}
	e, err := oci.New(oci.Config{Dir: dir, Runtime: os.Getenv("BERTH_TEST_RUNTIME"), Idle: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	img, err := e.Images().Import(t.Context(), busybox(t), "busybox", image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	bound := os.Getenv("BERTH_TEST_BOUND") == "1"
	sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1", Bound: bound})
	if err != nil {
		t.Fatal(err)
	}
	start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "echo begun; sleep 1; : " + mark + "; echo done; exit 5"}})
	fmt.Println("started")
	select {}
}

func TestClientKilled(t *testing.T) {
	for _, bound := range []bool{true, false} {
		t.Run(fmt.Sprint("bound ", bound), func(t *testing.T) {
			dir, mark := t.TempDir(), fmt.Sprint("mark", os.Getpid(), bound)
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestHelperClient$")
			cmd.Env = append(os.Environ(), "BERTH_TEST_DIR="+dir, "BERTH_TEST_MARK="+mark, "BERTH_TEST_RUNTIME=runc")
			if bound {
				cmd.Env = append(cmd.Env, "BERTH_TEST_BOUND=1")
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			r := bufio.NewReader(out)
			if line, err := r.ReadString('\n'); err != nil || line != "started\n" {
				rest, _ := io.ReadAll(r)
				t.Fatalf("the client said %q, %v, %s", line, err, rest)
			}
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			e, err := oci.New(oci.Config{Dir: dir, Idle: 300 * time.Millisecond})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = e.Close() }()
			if bound {
				waitFor(t, "the end of the bound sandbox", ample, func() bool {
					_, err := e.Attach(t.Context(), "t1")
					return errors.Is(err, berth.ErrNotFound)
				})
				nothingLeft(t, e, dir)
				return
			}
			sb, err := e.Attach(t.Context(), "t1")
			if err != nil {
				t.Fatal(err)
			}
			c, err := sb.Container(t.Context(), "s1")
			if err != nil {
				t.Fatal(err)
			}
			if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.Exited || exit.Code != 5 {
				t.Errorf("Wait = %+v, %v; want the true exit, 5", exit, err)
			}
			if got := logs(t, c, false); got != "begun\ndone\n" {
				t.Errorf("log = %q", got)
			}
			if err := sb.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			nothingLeft(t, e, dir)
		})
	}
}

func TestMonitorIdles(t *testing.T) {
	e, img := newEngine(t, "runc")
	dir := e.Dir()
	sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"true"}})
	if _, err := c.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	_ = e.Close()
	waitFor(t, "the end of the idle monitor", 9*time.Second, func() bool { return monitorPid(t, dir) == 0 })
	// The sandbox is there all the same, and its container's end.
	e2, err := oci.New(oci.Config{Dir: dir, Idle: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e2.Close() }()
	sb2, err := e2.Attach(t.Context(), "t1")
	if err != nil {
		t.Fatal(err)
	}
	c2, err := sb2.Container(t.Context(), "s1")
	if err != nil {
		t.Fatal(err)
	}
	if x, err := c2.Wait(t.Context()); err != nil || !x.OK() {
		t.Errorf("Wait = %+v, %v", x, err)
	}
	if err := sb2.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestDataDirectoryRemoved(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	e, err := oci.New(oci.Config{Dir: dir, Idle: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	img, err := e.Images().Import(t.Context(), busybox(t), "busybox", image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
	if err != nil {
		t.Fatal(err)
	}
	mark := fmt.Sprint(5_000_000 + os.Getpid())
	start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sleep", mark}})
	waitFor(t, "the container's command", ample, func() bool { return marked("sleep "+mark) > 0 })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the end of the container", ample, func() bool { return marked("sleep "+mark) == 0 })
	waitFor(t, "the end of the monitor", ample, func() bool { return monitorPid(t, dir) == 0 })
}

func TestNoRecordsStay(t *testing.T) {
	e, img := newEngine(t, "direct")
	id, err := oci.Instance(e.Dir())
	if err != nil {
		t.Fatal(err)
	}
	sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t1"})
	if err != nil {
		t.Fatal(err)
	}
	c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"true"}})
	if _, err := c.Wait(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := sb.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if holds, err := os.ReadDir(filepath.Join(e.Dir(), "images", "holds")); err != nil || len(holds) > 0 {
		t.Errorf("the image is held by %v (%v)", holds, err)
	}
	_ = e.Close()
	waitFor(t, "the end of the idle monitor", 9*time.Second, func() bool { return monitorPid(t, e.Dir()) == 0 })
	for _, pattern := range []string{"/run/berth/state/", "/dev/shm/berth-state/"} {
		if _, err := os.Lstat(pattern + id); err == nil {
			t.Errorf("%s%s stays", pattern, id)
		}
	}
}

// A monitor that is killed as it closes a sandbox has taken its files away and not yet its record.
func TestCutOffClose(t *testing.T) {
	e, img := newEngine(t, "direct")
	spec := berth.SandboxSpec{ID: "t1"}
	if _, err := e.Open(t.Context(), spec); err != nil {
		t.Fatal(err)
	}
	dir := e.Dir()
	if err := syscall.Kill(monitorPid(t, dir), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	trash := filepath.Join(dir, "run", "trash")
	if err := os.MkdirAll(trash, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(dir, "sandboxes", "t1"), filepath.Join(trash, "x")); err != nil {
		t.Fatal(err)
	}
	sb, err := e.Open(t.Context(), spec)
	if err != nil {
		t.Fatal("the same sandbox again:", err)
	}
	if left, err := os.ReadDir(trash); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
	c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"true"}})
	if x, err := c.Wait(t.Context()); err != nil || !x.OK() {
		t.Errorf("Wait = %+v, %v", x, err)
	}
	if err := sb.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "empty trash", ample, func() bool {
		left, err := os.ReadDir(trash)
		return err == nil && len(left) == 0
	})
	nothingLeft(t, e, dir)
}
