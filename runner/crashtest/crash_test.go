// Package crashtest kills the drivers of real containers on the embedded engine at every point of a task's
// life. Package runner's own crash test does the same over processes; this one proves that engine, monitor,
// ledger, store and runner hold together.
package crashtest

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/image"
	"github.com/berth-project/berth/ledger"
	"github.com/berth-project/berth/runner"
	"github.com/berth-project/berth/store"
)

// What a process is told that drives a task and is killed meanwhile.
const (
	taskEnv  = "CRASHTEST_TASK" // its ID
	dirEnv   = "CRASHTEST_DIR"
	modeEnv  = "CRASHTEST_MODE"  // "detached" or "foreground"
	pointEnv = "CRASHTEST_POINT" // at which it kills itself
	nthEnv   = "CRASHTEST_NTH"   // time that it comes there
)

func TestMain(m *testing.M) {
	oci.MonitorMain()
	if os.Getenv(taskEnv) != "" {
		drive()
		return
	}
	os.Exit(m.Run())
}

// bed is all of a berth, in one directory.
type bed struct {
	*runner.Runner
	dir    string
	engine *oci.Engine
	store  *store.Store
	ledger *ledger.Ledger
}

func open(ctx context.Context, dir string) (*bed, error) {
	e, err := oci.New(oci.Config{Dir: dir, Idle: time.Second})
	if err != nil {
		return nil, err
	}
	s, err := store.Open(ctx, filepath.Join(dir, "berth.db"), store.Options{})
	if err != nil {
		return nil, err
	}
	l, err := ledger.New(ledger.Config{
		Dirs: ledger.Dirs{Shared: filepath.Join(dir, "ledger")}, Capacity: ledger.Capacity{CPU: 1000, Memory: 1 << 40},
	})
	if err != nil {
		return nil, err
	}
	r := runner.New(runner.Config{Engine: e, Store: s, Ledger: l, DataDir: dir})
	return &bed{Runner: r, dir: dir, engine: e, store: s, ledger: l}, nil
}

func (b *bed) close() { _ = errors.Join(b.engine.Close(), b.store.Close()) }

// taskOf is a task of two steps, whose commands say in DIR/ran that they ran, and the second of which fails.
func taskOf(dir, id string) berth.Task {
	ran := []berth.Mount{{Source: filepath.Join(dir, "ran"), Target: "/ran"}}
	sh := func(script string) berth.Step {
		return berth.Step{Image: "crash", Command: []string{"/bin/busybox", "sh", "-c", script}, Mounts: ran}
	}
	content := "in"
	return berth.Task{
		ID: id,
		Steps: []berth.Step{
			sh("echo 1 >> /ran/" + id + "; echo said; cat /in > /out/a; /bin/busybox sleep 0.3"),
			sh("echo 2 >> /ran/" + id + "; echo 2 >> /out/a; echo root > /result; echo end >&2; exit 3"),
		},
		Inputs:    []berth.Input{{Content: &content, Path: "/in"}},
		Outputs:   []berth.Output{{URL: filepath.Join(dir, "out", id, "a"), Path: "/out/a"}, {URL: filepath.Join(dir, "out", id, "result"), Path: "/result"}},
		Resources: berth.Resources{Limits: berth.Limits{CPU: 1, Memory: 64 << 20}},
		Grace:     2 * time.Second,
	}
}

// drive is the process that is killed.
func drive() {
	ctx := context.Background()
	dir, id := os.Getenv(dirEnv), os.Getenv(taskEnv)
	nth, err := strconv.Atoi(os.Getenv(nthEnv))
	if err != nil {
		panic(err)
	}
	b, err := open(ctx, dir)
	if err != nil {
		panic(err)
	}
	hooks := runner.Hooks{At: func(point string) {
		if point != os.Getenv(pointEnv) {
			return
		}
		if nth--; nth == 0 {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}}
	if os.Getenv(modeEnv) == "foreground" {
		fmt.Fprintln(os.Stderr, fmt.Sprint(b.Run(ctx, taskOf(dir, id), hooks)))
		return
	}
	if _, err := b.Submit(ctx, taskOf(dir, id)); err != nil {
		panic(err)
	}
	hooks.At("submitted")
	for {
		_, err := b.Drive(ctx, id, hooks)
		if !errors.Is(err, runner.ErrParked) {
			fmt.Fprintln(os.Stderr, err)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestCrash(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: limits on cgroup v1")
	}
	dir := t.TempDir()
	b, err := open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := importBusybox(t.Context(), b.engine.Images()); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"ran", "out"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// Most of each case is waiting: more of them run at once than t.Parallel lets.
	var wg sync.WaitGroup
	slots := make(chan struct{}, 6)
	for _, mode := range []string{"detached", "foreground"} {
		for i, point := range runner.Points() {
			if point == "cancel" || mode == "foreground" && strings.HasPrefix(point, "park") {
				continue // runner's own test comes there
			}
			slots <- struct{}{}
			wg.Go(func() {
				defer func() { <-slots }()
				t.Run(mode+"/"+point, func(t *testing.T) { crash(t, b, fmt.Sprintf("%s%d", mode[:1], i), mode, point) })
			})
		}
	}
	wg.Wait()
	for what, pattern := range map[string]string{
		"sandboxes": "sandboxes/*", "working directories": "tasks/*/work", "journals": "tasks/*/temporary", "temporary outputs": "out/*/.*",
	} {
		if found, _ := filepath.Glob(filepath.Join(dir, pattern)); len(found) > 0 {
			t.Errorf("%s are left: %q", what, found)
		}
	}
	if list, err := b.engine.List(t.Context()); len(list) > 0 || err != nil {
		t.Errorf("the engine still has %v, %v", list, err)
	}
	if s, err := b.ledger.Snapshot(t.Context()); err != nil || len(s.Leases)+len(s.Waiting) > 0 {
		t.Errorf("leases are left: %+v, %v", s, err)
	}
	// The monitor keeps some cgroups for the next container; with it they go.
	b.close()
	found := cgroups(t, dir)
	for end := time.Now().Add(10 * time.Second); len(found) > 0 && time.Now().Before(end); found = cgroups(t, dir) {
		time.Sleep(50 * time.Millisecond)
	}
	if len(found) > 0 {
		t.Errorf("cgroups are left: %q", found)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || bytes.Contains(mounts, []byte(dir)) {
		t.Errorf("mounts are left: %v\n%s", err, mounts)
	}
}

func crash(t *testing.T, b *bed, id, mode, point string) {
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), taskEnv+"="+id, dirEnv+"="+b.dir, modeEnv+"="+mode, pointEnv+"="+point, nthEnv+"=1")
	var said strings.Builder
	cmd.Stderr = &said
	err := cmd.Run()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("the driver was not killed: %v\n%s", err, said.String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	got, err := b.Resume(ctx, id, runner.Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	decided := slices.Contains([]string{"outcome", "closed", "cleaned", "final"}, point)
	ran, err := os.ReadFile(filepath.Join(b.dir, "ran", id))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if mode == "detached" || decided {
		checkWhole(t, b, id, got, string(ran))
		return
	}
	if !strings.HasPrefix("1\n2\n", string(ran)) {
		t.Errorf("commands that ran: %q", ran)
	}
	want := berth.SystemError
	if slices.Contains([]string{"collecting", "output", "collected"}, point) {
		want = berth.ExecutorError
	}
	if got.State != want {
		t.Errorf("it ended %s: %s", got.State, got.Detail)
	}
}

// checkWhole checks a task that went on after its driver was killed, as if nothing had been.
func checkWhole(t *testing.T, b *bed, id string, got berth.Result, ran string) {
	if got.State != berth.ExecutorError || got.Reason != berth.Exited || got.ExitCode != 3 || len(got.Outputs) != 2 || len(got.Steps) != 2 {
		t.Errorf("it ended %+v", got)
	}
	if ran != "1\n2\n" {
		t.Errorf("commands that ran: %q", ran)
	}
	for name, want := range map[string]string{
		filepath.Join(b.dir, "out", id, "a"):      "in2\n",
		filepath.Join(b.dir, "out", id, "result"): "root\n",
		filepath.Join(b.LogDir(id, 0), "stdout"):  "said\n",
		filepath.Join(b.LogDir(id, 1), "stderr"):  "end\n",
	} {
		data, err := os.ReadFile(name)
		if diff := cmp.Diff(want, string(data)); diff != "" || err != nil {
			t.Errorf("%s: %v %s", name, err, diff)
		}
	}
}

// importBusybox makes an image of this host's static busybox.
func importBusybox(ctx context.Context, images *image.Store) error {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("install busybox-static: %w", err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err = errors.Join(
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "bin/", Mode: 0o755}),
		w.WriteHeader(&tar.Header{Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox))}))
	if err != nil {
		return err
	}
	if _, err := w.Write(busybox); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	_, err = images.Import(ctx, &buf, "crash", image.ImportOptions{})
	return err
}

// cgroups lists the cgroups of the data directory's containers.
func cgroups(t *testing.T, dir string) (out []string) {
	instance, err := oci.Instance(dir)
	if err != nil {
		t.Fatal(err)
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && strings.Contains(p, instance) {
			out = append(out, p)
		}
		return nil
	})
	return out
}
