package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
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
)

// What a process is told that drives a task and is killed meanwhile.
const (
	driverEnv  = "RUNNER_TEST_DRIVER" // the name of a scenario
	dirEnv     = "RUNNER_TEST_DIR"
	pointEnv   = "RUNNER_TEST_POINT" // at which it kills itself
	nthEnv     = "RUNNER_TEST_NTH"   // time that it comes there
	monitorEnv = "RUNNER_TEST_MONITOR"
)

// monitorPID is a process that outlives the drivers: the test's own.
func monitorPID() int {
	if n, err := strconv.Atoi(os.Getenv(monitorEnv)); err == nil {
		return n
	}
	return os.Getpid()
}

// scenario is a task whose driver is killed at every point of its life.
type scenario struct {
	name     string
	detached bool
	task     berth.Task
	cancel   string // point at which the end is asked for; "" never
	skip     []string
	want     func(point string, nth int) berth.Result // but for times, digests and IDs
	runs     func(point string, nth int) []string
}

var beforeStep = []string{"submitted", "admit", "admitted", "prepared", "opening", "open", "step starting"}

func scenarios() []scenario {
	content := "in"
	task := berth.Task{
		ID:        "t",
		Steps:     []berth.Step{sh(`cat $R/in > $R/out/a; sleep 0.4`), sh(`echo 2 >> $R/out/a; echo root > $R/result; sleep 0.4; exit 3`)},
		Inputs:    []berth.Input{{Content: &content, Path: "/in"}},
		Outputs:   []berth.Output{{URL: "out/a", Path: "/out/a"}, {URL: "out/result", Path: "/result"}},
		Resources: berth.Resources{Limits: berth.Limits{CPU: 1}},
		Grace:     2 * time.Second,
	}
	failed := berth.Result{
		State: berth.ExecutorError, Reason: berth.Exited, ExitCode: 3, Detail: "step 2 of 2 exited with 3",
		Outputs: []berth.OutputFile{{URL: "a", Path: "/out/a", Size: 4}, {URL: "result", Path: "/result", Size: 5}},
	}
	lent, failedLent := task, failed
	lent.Resources.GPUs = json.RawMessage(`1`)
	failedLent.GPUs = []berth.LentGPU{{Vendor: "fake", UUID: "g0"}}
	all := func(string, int) []string { return []string{"t-1", "t-2"} }
	long := task
	long.Steps = []berth.Step{sh(`echo part > $R/out/a; echo > $R/out/ready; sleep 30`)}
	canceled := berth.Result{
		State: berth.Canceled, Reason: berth.Stopped, ExitCode: 143, Detail: "an end was asked for",
		Outputs: []berth.OutputFile{{URL: "a", Path: "/out/a", Size: 5}},
	}
	return []scenario{
		{
			name: "detached", detached: true, task: lent, skip: []string{"cancel"},
			want: func(string, int) berth.Result { return failedLent },
			runs: all,
		},
		{
			name: "canceled", detached: true, task: long, cancel: "step started",
			skip: append([]string{"parking", "parked", "step removed", "step starting", "step start", "step started"}, beforeStep...),
			want: func(string, int) berth.Result { return canceled },
			runs: func(string, int) []string { return []string{"t-1"} },
		},
		{
			name: "foreground", task: task, skip: []string{"cancel", "parking", "parked"},
			want: func(point string, nth int) berth.Result { return killedResult(failed, point, nth) },
			runs: func(point string, nth int) []string {
				switch {
				case nth == 1 && slices.Contains(beforeStep, point):
					return nil
				case nth == 1 && strings.HasPrefix(point, "step"), point == "step starting":
					return []string{"t-1"}
				}
				return []string{"t-1", "t-2"}
			},
		},
	}
}

// killedResult is how a task ends whose foreground driver is killed at a point: as its records say.
func killedResult(failed berth.Result, point string, nth int) berth.Result {
	killed := berth.Result{State: berth.SystemError, Reason: berth.Lost, ExitCode: -1, Detail: errKilled.Error(), Outputs: []berth.OutputFile{}}
	switch {
	case slices.Contains([]string{"outcome", "closed", "cleaned", "final"}, point):
		return failed
	case slices.Contains([]string{"collecting", "output", "collected"}, point),
		nth == 2 && slices.Contains([]string{"step ended", "step recorded", "step saved", "step removed"}, point):
		failed.Outputs = killed.Outputs // its sandbox went with the driver
		return failed
	case nth == 1 && slices.Contains([]string{"step ended", "step recorded", "step saved", "step removed"}, point):
		killed.ExitCode = 0 // the first step's, which ended well
	case strings.HasPrefix(point, "step"):
		killed.Detail = fmt.Sprintf("step %d of 2 lost: %s", nth, killed.Detail)
	}
	return killed
}

// TestCrash kills the driver of a task with SIGKILL at each point of the task's life, and lets another process
// go on.
func TestCrash(t *testing.T) {
	var mu sync.Mutex
	reached := map[string]bool{}
	// Most of each case is waiting: more of them run at once than t.Parallel lets.
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for _, s := range scenarios() {
		for _, point := range Points() {
			for nth := 1; nth <= 2; nth++ {
				if slices.Contains(s.skip, point) || nth == 2 && !twice(&s, point) {
					continue
				}
				slots <- struct{}{}
				wg.Go(func() {
					defer func() { <-slots }()
					ok := t.Run(fmt.Sprintf("%s/%s/%d", s.name, point, nth), func(t *testing.T) { crash(t, &s, point, nth) })
					mu.Lock()
					defer mu.Unlock()
					reached[point] = reached[point] || ok
				})
			}
		}
	}
	wg.Wait()
	for _, p := range Points() {
		if !reached[p] {
			t.Errorf("no driver was killed at %q", p)
		}
		t.Logf("killed at: %s", p)
	}
}

// twice reports whether a task comes to a point for each of its two steps or outputs.
func twice(s *scenario, point string) bool {
	if point == "step removed" || len(s.task.Steps) < 2 {
		return false // the last one goes with the sandbox
	}
	return strings.HasPrefix(point, "step") || point == "output"
}

func crash(t *testing.T, s *scenario, point string, nth int) {
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "out"), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), driverEnv+"="+s.name, dirEnv+"="+dir, pointEnv+"="+point,
		nthEnv+"="+strconv.Itoa(nth), monitorEnv+"="+strconv.Itoa(os.Getpid()))
	var said strings.Builder
	cmd.Stderr = &said
	err := cmd.Run()
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("the driver was not killed: %v\n%s", err, said.String())
	}

	b := openTestbed(dir)
	t.Cleanup(func() { _ = b.store.Close() })
	ctx := timeout(t)
	waitForSupervisors(t, b, s)
	found, resume, err := b.Reconcile(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if f.Err != nil {
			t.Errorf("%s: %s: %v", f.Task, f.What, f.Err)
		}
	}
	if s.detached && len(resume) == 0 && point != "final" && must(b.running(ctx))["t"] == nil {
		t.Error("the task needs a driver, and Reconcile does not say so")
	}
	if point == "cancel" { // the wish died with the process: it is wished for again
		if err := b.Cancel(ctx, "t", false); err != nil {
			t.Error(err)
		}
	}
	got, err := b.Resume(ctx, "t", Hooks{})
	if err != nil {
		t.Fatal(err)
	}
	want := s.want(point, nth)
	if want.Outputs == nil {
		want.Outputs = []berth.OutputFile{}
	}
	if point == "step started" && !s.detached {
		mustSayStart(t, got)
	}
	res := plain(got)
	if diff := cmp.Diff(want, res); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(s.runs(point, nth), b.runs()); diff != "" {
		t.Errorf("commands that ran: %s", diff)
	}
	b.mustBeDone(t, "t", got)
	if again, resume, err := b.Reconcile(ctx); len(again)+len(resume) > 0 || err != nil {
		t.Errorf("afterwards, reconcile found %v, %v, %v", again, resume, err)
	}
	if res.State == berth.ExecutorError && len(res.Outputs) > 0 {
		if a := string(must(os.ReadFile(filepath.Join(dir, "out/a")))); a != "in2\n" {
			t.Errorf("out/a holds %q", a)
		}
	}
}

// waitForSupervisors waits until bound containers have noticed that their driver is dead.
func waitForSupervisors(t *testing.T, b *testbed, s *scenario) {
	for !s.detached && len(must(b.running(t.Context()))["t"]) > 0 {
		time.Sleep(5 * time.Millisecond)
	}
}

// driverMain is the process that is killed.
func driverMain() {
	dir, point := os.Getenv(dirEnv), os.Getenv(pointEnv)
	nth, err := strconv.Atoi(os.Getenv(nthEnv))
	i := slices.IndexFunc(scenarios(), func(s scenario) bool { return s.name == os.Getenv(driverEnv) })
	if err != nil || i < 0 {
		panic("no such scenario")
	}
	s := scenarios()[i]
	b := openTestbed(dir)
	ctx, cancel := context.WithCancelCause(context.Background())
	canceled := false
	hooks := Hooks{At: func(at string) {
		if at == point {
			if nth--; nth == 0 {
				_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
				select {}
			}
		}
		if at == s.cancel && !canceled {
			canceled = true
			for !written(filepath.Join(b.engine.dir, "sandboxes", "t", "vol", "out", "ready")) {
				time.Sleep(time.Millisecond)
			}
			if point != "cancel" { // there, the wish comes with the context, and is lost with the process
				must(b.store.Append(ctx, b.event("t", KindCancel, berth.Canceling, "", Cancel{})))
			}
			cancel(berth.ErrCanceled)
		}
	}}
	if !s.detached {
		fmt.Fprintln(os.Stderr, must(b.Run(ctx, b.at(s.task), hooks)))
		return
	}
	id := must(b.Submit(ctx, b.at(s.task)))
	hooks.At("submitted")
	for err := ErrParked; errors.Is(err, ErrParked); {
		_, err = b.Drive(ctx, id, hooks)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		for errors.Is(err, ErrParked) && len(must(b.running(ctx))[id]) > 0 {
			time.Sleep(5 * time.Millisecond)
		}
	}
}
