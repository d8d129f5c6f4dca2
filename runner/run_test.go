package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
)

func TestRun(t *testing.T) {
	content := "seven\n"
	out := func(name, path string) berth.Output { return berth.Output{URL: name, Path: path} }
	file := func(name, path string, size int64) berth.OutputFile {
		return berth.OutputFile{URL: name, Path: path, Size: size}
	}
	for _, c := range []struct {
		name    string
		task    berth.Task
		want    berth.Result // but for times, digests and IDs
		code    int
		files   map[string]string
		runs    int
		warning string
	}{
		{
			name: "steps share an implied volume",
			task: berth.Task{
				Steps:   []berth.Step{sh(`echo one > $R/out/a`), sh(`cat $R/out/a > $R/out/b; echo two >> $R/out/b`)},
				Outputs: []berth.Output{out("b", "/out/b")},
			},
			want:  berth.Result{State: berth.Complete, Reason: berth.Exited, Outputs: []berth.OutputFile{file("b", "/out/b", 8)}},
			files: map[string]string{"b": "one\ntwo\n"},
			runs:  2,
		},
		{
			name: "input by content, output by pattern beside it",
			task: berth.Task{
				Steps:   []berth.Step{sh(`cp $R/work/in $R/work/x.txt; echo y > $R/work/y.txt`)},
				Inputs:  []berth.Input{{Content: &content, Path: "/work/in"}},
				Outputs: []berth.Output{out("got", "/work/*.txt")},
			},
			want: berth.Result{State: berth.Complete, Reason: berth.Exited, Outputs: []berth.OutputFile{
				file("x.txt", "/work/x.txt", 6), file("y.txt", "/work/y.txt", 2),
			}},
			files: map[string]string{"got/x.txt": "seven\n", "got/y.txt": "y\n"},
			runs:  1,
		},
		{
			name: "output in the root of the container",
			task: berth.Task{
				Steps:   []berth.Step{sh(`echo r > $R/result`), sh(`exit 0`)},
				Outputs: []berth.Output{out("r", "/result")},
			},
			want:  berth.Result{State: berth.Complete, Reason: berth.Exited, Outputs: []berth.OutputFile{file("r", "/result", 2)}},
			files: map[string]string{"r": "r\n"},
			runs:  2,
		},
		{
			name: "stdout in the root of the container, read by the next step",
			task: berth.Task{
				Steps:   []berth.Step{{Image: "i", Command: []string{"echo said"}, Stdout: "/said"}, sh(`cat $R/said > $R/o/again`)},
				Outputs: []berth.Output{out("said", "/said"), out("again", "/o/again")},
			},
			want: berth.Result{State: berth.Complete, Reason: berth.Exited, Outputs: []berth.OutputFile{
				file("said", "/said", 5), file("again", "/o/again", 5),
			}},
			files: map[string]string{"said": "said\n", "again": "said\n"},
			runs:  2,
		},
		{
			name: "stdout and stderr in a directory of their own",
			task: berth.Task{
				Steps:   []berth.Step{{Image: "i", Command: []string{"echo o; echo e >&2"}, Stdout: "/logs/o", Stderr: "/logs/e"}},
				Outputs: []berth.Output{out("o", "/logs/o"), out("e", "/logs/e")},
			},
			want: berth.Result{State: berth.Complete, Reason: berth.Exited, Outputs: []berth.OutputFile{
				file("o", "/logs/o", 2), file("e", "/logs/e", 2),
			}},
			files: map[string]string{"o": "o\n", "e": "e\n"},
			runs:  1,
		},
		{
			name: "stdout in a mount of this host",
			task: berth.Task{Steps: []berth.Step{{
				Image: "i", Command: []string{"echo said"}, Stdout: "/host/said", Mounts: []berth.Mount{{Target: "/host", Source: "HERE"}},
			}}},
			want:  berth.Result{State: berth.Complete, Reason: berth.Exited},
			files: map[string]string{"said": "said\n"},
			runs:  1,
		},
		{
			name: "a file of a stream that lacks something is no success, and what was to read it does not run",
			task: berth.Task{
				Steps:   []berth.Step{{Image: "i", Command: []string{"echo one"}, Stdout: "/out/full"}, sh(`echo no > $R/out/a`)},
				Outputs: []berth.Output{out("a", "/out/full")},
			},
			want: berth.Result{
				State: berth.SystemError, Reason: berth.Exited,
				Detail:  "step 1 of 2: file /out/full of stdout: it ends after byte 2: no space left on device",
				Outputs: []berth.OutputFile{file("a", "/out/full", 4)},
			},
			code: 125, files: map[string]string{"a": "one\n"}, runs: 1,
		},
		{
			name: "of a step that failed it is said beside",
			task: berth.Task{Steps: []berth.Step{{Image: "i", Command: []string{"echo one; exit 3"}, Stdout: "/out/full"}}, Outputs: []berth.Output{out("a", "/out/full")}},
			want: berth.Result{
				State: berth.ExecutorError, Reason: berth.Exited, ExitCode: 3, Detail: "exited with 3",
				Outputs: []berth.OutputFile{file("a", "/out/full", 4)},
			},
			code: 3, runs: 1, warning: "step 1: file /out/full of stdout: it ends after byte 2: no space left on device",
		},
		{
			name: "the first failure ends the row, outputs are collected, missing ones only warned of",
			task: berth.Task{
				Steps:   []berth.Step{sh(`echo part > $R/out/a; exit 3`), sh(`echo no > $R/out/a`)},
				Outputs: []berth.Output{out("a", "/out/a"), out("b", "/out/b")},
			},
			want: berth.Result{
				State: berth.ExecutorError, Reason: berth.Exited, ExitCode: 3, Detail: "step 1 of 2 exited with 3",
				Outputs: []berth.OutputFile{file("a", "/out/a", 5)},
			},
			code: 3, files: map[string]string{"a": "part\n"}, runs: 1, warning: "output /out/b was not produced",
		},
		{
			name: "ignored failure",
			task: berth.Task{Steps: []berth.Step{{Image: "i", Command: []string{"exit 3"}, IgnoreError: true}, sh(`true`)}},
			want: berth.Result{State: berth.Complete, Reason: berth.Exited},
			runs: 2,
		},
		{
			name: "ignored failure of the last step",
			task: berth.Task{Steps: []berth.Step{sh("true"), {Image: "i", Command: []string{"exit 3"}, IgnoreError: true}}},
			want: berth.Result{State: berth.Complete, Reason: berth.Exited},
			runs: 2,
		},
		{
			name: "output missing after success names the container's path",
			task: berth.Task{Steps: []berth.Step{sh(`true`)}, Outputs: []berth.Output{out("a", "/out/a")}},
			want: berth.Result{State: berth.SystemError, Reason: berth.Exited, Detail: "output /out/a was not produced"},
			code: 125, runs: 1,
		},
		{
			name: "optional output missing",
			task: berth.Task{Steps: []berth.Step{sh(`true`)}, Outputs: []berth.Output{{URL: "a", Path: "/out/a", Optional: true}}},
			want: berth.Result{State: berth.Complete, Reason: berth.Exited},
			runs: 1,
		},
		{
			name: "signal is not an exit with 128 and more",
			task: berth.Task{Steps: []berth.Step{sh(`kill -9 $$`)}},
			want: berth.Result{State: berth.ExecutorError, Reason: berth.Signaled, ExitCode: 137, Signal: 9, Detail: "ended by signal 9"},
			code: 137, runs: 1,
		},
		{
			name: "exit with 137",
			task: berth.Task{Steps: []berth.Step{sh(`exit 137`)}},
			want: berth.Result{State: berth.ExecutorError, Reason: berth.Exited, ExitCode: 137, Detail: "exited with 137"},
			code: 137, runs: 1,
		},
		{
			name: "time limit of all steps together, outputs collected",
			task: berth.Task{
				Timeout: 3 * time.Second,
				Steps:   []berth.Step{sh(`sleep 0.2`), sh(`echo half > $R/out/a; sleep 20`)},
				Outputs: []berth.Output{out("a", "/out/a")},
			},
			want: berth.Result{
				State: berth.ExecutorError, Reason: berth.TimedOut, ExitCode: 137, Signal: 9,
				Detail:  "step 2 of 2 time limit was reached",
				Outputs: []berth.OutputFile{file("a", "/out/a", 5)},
			},
			code: 124, files: map[string]string{"a": "half\n"}, runs: 2,
		},
		{
			name: "input missing",
			task: berth.Task{Steps: []berth.Step{sh(`true`)}, Inputs: []berth.Input{{URL: "/not/there", Path: "/in"}}},
			want: berth.Result{State: berth.SystemError, ExitCode: -1, Detail: "cannot mount input `/not/there` as it does not exist"},
			code: 125,
		},
		{
			name: "image missing",
			task: berth.Task{Steps: []berth.Step{sh(`true`), {Image: "missing"}}},
			want: berth.Result{State: berth.SystemError, ExitCode: -1, Detail: "image missing: not found"},
			code: 125,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newTestbed(t)
			b.engine.pull = func(_ context.Context, ref string) error {
				if ref == "missing" {
					return berth.ErrNotFound
				}
				return nil
			}
			got, err := b.Run(timeout(t), b.at(c.task), Hooks{})
			if err != nil {
				t.Fatal(err)
			}
			if c.want.Outputs == nil {
				c.want.Outputs = []berth.OutputFile{}
			}
			if diff := cmp.Diff(c.want, plain(got)); diff != "" {
				t.Error(diff)
			}
			if code := ExitCode(got); code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			for name, want := range c.files {
				if got := string(must(os.ReadFile(filepath.Join(b.dir, name)))); got != want {
					t.Errorf("%s holds %q, want %q", name, got, want)
				}
			}
			b.mustBeDone(t, "t", got)
			if len(b.runs()) != c.runs {
				t.Errorf("commands ran: %q, want %d", b.runs(), c.runs)
			}
			if c.warning != "" && !slices.Contains(b.warnings(t, "t"), c.warning) {
				t.Errorf("warnings %q, want %q", b.warnings(t, "t"), c.warning)
			}
		})
	}
}

// at gives a task its ID, and its outputs places in the testbed's directory.
func (b *testbed) at(t berth.Task) berth.Task {
	if t.ID == "" {
		t.ID = "t"
	}
	for _, s := range t.Steps {
		for i, m := range s.Mounts {
			if m.Source == "HERE" {
				s.Mounts[i].Source = b.dir
			}
		}
	}
	t.Outputs = slices.Clone(t.Outputs)
	for i := range t.Outputs {
		t.Outputs[i].URL = filepath.Join(b.dir, t.Outputs[i].URL)
	}
	return t
}

// mustBeDone checks that the task has one final record, and that nothing of it is left.
func (b *testbed) mustBeDone(t *testing.T, id string, want berth.Result) {
	t.Helper()
	rec := must(b.Record(context.Background(), id))
	if rec.Result == nil {
		t.Fatalf("task %s is %s", id, rec.State)
	}
	if rec.State != want.State || rec.Result.State != want.State || rec.Result.ExitCode != want.ExitCode {
		t.Errorf("recorded: %s, %+v; want %+v", rec.State, *rec.Result, want)
	}
	finals := 0
	for e, err := range b.store.Events(context.Background(), 0, id) {
		if err != nil {
			t.Fatal(err)
		}
		if e.State.Final() {
			finals++
		}
	}
	if finals != 1 {
		t.Errorf("%d final events", finals)
	}
	if left := b.left(); left != nil {
		t.Errorf("left over: %q", left)
	}
}

func (b *testbed) warnings(t *testing.T, id string) (out []string) {
	t.Helper()
	for _, l := range must(b.Record(context.Background(), id)).Log {
		if l.Warn {
			out = append(out, l.Text)
		}
	}
	return out
}

// plain leaves out of a result what is the same for all, or never the same.
func plain(r berth.Result) berth.Result {
	r.ID, r.Engine, r.Runtime, r.Image, r.ImageDigest, r.DiskEnforcement = "", "", "", "", "", ""
	r.Started, r.Ended, r.Steps = nil, nil, nil
	for i, o := range r.Outputs {
		r.Outputs[i].URL = filepath.Base(o.URL)
	}
	return r
}

func TestRunRefuses(t *testing.T) {
	b := newTestbed(t)
	for _, c := range []struct {
		name string
		task berth.Task
		kind error
		text string
	}{
		{"no step", berth.Task{}, berth.ErrInvalid, "it has no step"},
		{"more CPUs than there are", berth.Task{Steps: []berth.Step{sh("true")}, Resources: berth.Resources{Limits: berth.Limits{CPU: 3}}}, berth.ErrExhausted, "maximum of 2"},
		{"memory below what can start", berth.Task{Steps: []berth.Step{sh("true")}, Resources: berth.Resources{Limits: berth.Limits{Memory: 1000}}}, berth.ErrInvalid, "6MiB"},
		{"more GPUs than there are", berth.Task{Steps: []berth.Step{sh("true")}, Resources: berth.Resources{GPUs: []byte(`3`)}}, berth.ErrExhausted, "there are 2"},
		{"output in a tmpfs", berth.Task{
			Steps:   []berth.Step{{Image: "i", Mounts: []berth.Mount{{Type: berth.MountTmpfs, Target: "/tmp"}}}},
			Outputs: []berth.Output{{URL: "/o", Path: "/tmp/o"}},
		}, berth.ErrInvalid, "tmpfs /tmp"},
		{"pattern in the root", berth.Task{
			Steps: []berth.Step{sh("true")}, Outputs: []berth.Output{{URL: "/o", Path: "/*.txt"}},
		}, berth.ErrUnsupported, "directory of its own"},
		{"mount of nothing", berth.Task{
			Steps: []berth.Step{{Image: "i", Mounts: []berth.Mount{{Source: "/not/there", Target: "/m"}}}},
		}, berth.ErrNotFound, "/not/there"},
		{"relative path", berth.Task{
			Steps: []berth.Step{sh("true")}, Inputs: []berth.Input{{URL: "/a", Path: "a"}},
		}, berth.ErrInvalid, "begins with /"},
		{"two inputs at one path", berth.Task{
			Steps: []berth.Step{sh("true")}, Inputs: []berth.Input{{URL: "/a", Path: "/a"}, {URL: "/b", Path: "/a/"}},
		}, berth.ErrInvalid, "two inputs"},
		{"input of an unknown scheme", berth.Task{
			Steps: []berth.Step{sh("true")}, Inputs: []berth.Input{{URL: "s3://a/b", Path: "/a"}},
		}, berth.ErrUnsupported, "s3"},
		{"environment without =", berth.Task{Steps: []berth.Step{{Image: "i", Env: []string{"A"}}}}, berth.ErrInvalid, "NAME=VALUE"},
		{"stdout in an input", berth.Task{
			Steps: []berth.Step{{Image: "i", Stdout: "/in/o"}}, Inputs: []berth.Input{{URL: "/a", Path: "/in"}},
		}, berth.ErrInvalid, "nothing can be kept in /in"},
		{"id", berth.Task{ID: "A", Steps: []berth.Step{sh("true")}}, berth.ErrInvalid, "id"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := b.Run(timeout(t), c.task, Hooks{})
			if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.text) {
				t.Errorf("error %v, want %v with %q", err, c.kind, c.text)
			}
			for r, err := range b.store.Stale(t.Context()) {
				t.Errorf("recorded: %v, %v", r, err)
			}
			if left := b.left(); left != nil {
				t.Errorf("left over: %q", left)
			}
		})
	}
}

func TestRunTwice(t *testing.T) {
	b := newTestbed(t)
	task := berth.Task{ID: "t", Steps: []berth.Step{sh("true")}}
	if _, err := b.Run(timeout(t), task, Hooks{}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Run(timeout(t), task, Hooks{}); !errors.Is(err, berth.ErrConflict) {
		t.Errorf("error %v, want %v", err, berth.ErrConflict)
	}
	if len(b.runs()) != 1 {
		t.Errorf("ran: %q", b.runs())
	}
	if err := b.Remove(timeout(t), "t"); err != nil {
		t.Fatal(err)
	}
	if exists(filepath.Join(b.dir, "tasks", "t")) {
		t.Error("its directory is there after Remove")
	}
	if _, err := b.Run(timeout(t), task, Hooks{}); err != nil {
		t.Fatal(err)
	}
}

func TestKeep(t *testing.T) {
	b := newTestbed(t)
	res, err := b.Run(timeout(t), berth.Task{ID: "t", Keep: true, Steps: []berth.Step{sh("true"), sh("true")}}, Hooks{})
	if err != nil || res.State != berth.Complete {
		t.Fatal(res, err)
	}
	list := must(b.engine.List(t.Context()))
	if len(list) != 3 {
		t.Errorf("the engine has %v, want a sandbox and two containers", list)
	}
	if found, resume, err := b.Reconcile(timeout(t)); len(found)+len(resume) > 0 || err != nil {
		t.Errorf("reconcile found %v, %v, %v", found, resume, err)
	}
	if err := b.Remove(timeout(t), "t"); err != nil {
		t.Fatal(err)
	}
	if left := b.left(); left != nil {
		t.Errorf("left over: %q", left)
	}
}

// TestHooks follows one task through its hooks.
func TestHooks(t *testing.T) {
	b := newTestbed(t)
	var mu sync.Mutex
	var got []string
	add := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, fmt.Sprintf(format, args...))
	}
	_, err := b.Run(timeout(t), berth.Task{ID: "t", Steps: []berth.Step{sh("true"), sh("exit 1")}}, Hooks{
		Progress: func(image string, p berth.Progress) { add("%s %s", image, p.Phase) },
		Note:     func(s string) { add("%s", s[:22]) },
		Started:  func(i int, c berth.Container) { add("started %d %s", i, c.ID()) },
		Ended:    func(i int, e berth.Exit) { add("ended %d %s %d", i, e.Reason, e.Code) },
		State:    func(s berth.State) { add("%s", s) },
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"INITIALIZING", "busybox resolve", "image busybox is sha25", "RUNNING", "started 0 t-1", "ended 0 Exited 0",
		"started 1 t-2", "ended 1 Exited 1", "EXECUTOR_ERROR",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
