package runner

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
)

func TestLayout(t *testing.T) {
	up := func(paths ...string) (out []berth.Volume) {
		for _, p := range paths {
			out = append(out, berth.Volume{Path: p, CopyUp: true})
		}
		return out
	}
	outputs := func(paths ...string) (out []berth.Output) {
		for _, p := range paths {
			o := berth.Output{Path: strings.TrimSuffix(p, "/")}
			if strings.HasSuffix(p, "/") {
				o.Type = berth.Directory
			}
			out = append(out, o)
		}
		return out
	}
	for _, c := range []struct {
		name    string
		task    berth.Task
		volumes []berth.Volume
		rooted  []int
		streams []stream
	}{
		{"a file's directory", berth.Task{Outputs: outputs("/out/a")}, up("/out"), nil, nil},
		{"a directory itself", berth.Task{Outputs: outputs("/out/")}, up("/out"), nil, nil},
		{"the longest prefix holds all below", berth.Task{Outputs: outputs("/w/a/b/c", "/w/x", "/w/a/d")}, up("/w"), nil, nil},
		{"names that only begin alike", berth.Task{Outputs: outputs("/data/a", "/database/b", "/data-2/c")}, up("/data", "/data-2", "/database"), nil, nil},
		{"the directory before a pattern", berth.Task{Outputs: outputs("/w/a*/b/*.txt", "/v/**/x", "/u/[ab]")}, up("/u", "/v", "/w"), nil, nil},
		{
			"below a declared volume",
			berth.Task{Volumes: []berth.Volume{{Path: "/w", Size: 5}}, Outputs: outputs("/w/a/b", "/w/c/")},
			[]berth.Volume{{Path: "/w", Size: 5}},
			nil, nil,
		},
		{
			"above a declared volume",
			berth.Task{Volumes: []berth.Volume{{Path: "/w/s"}}, Outputs: outputs("/w/")},
			[]berth.Volume{{Path: "/w", CopyUp: true}, {Path: "/w/s"}},
			nil, nil,
		},
		{
			"below a mount of this host",
			berth.Task{Steps: []berth.Step{{Mounts: []berth.Mount{{Source: "/h", Target: "/m"}}}}, Outputs: outputs("/m/a")},
			nil, nil, nil,
		},
		{"an input itself", berth.Task{Inputs: []berth.Input{{Path: "/in"}}, Outputs: outputs("/in")}, nil, nil, nil},
		{"beside an input", berth.Task{Inputs: []berth.Input{{Path: "/w/in"}}, Outputs: outputs("/w/out")}, up("/w"), nil, nil},
		{
			"where nothing may be mounted",
			berth.Task{Outputs: outputs("/result", "/etc/passwd", "/usr/lib/x/", "/usr/local/x", "/usr/local/r/x", "/root/x")},
			up("/root", "/usr/local/r"),
			[]int{0, 1, 2, 3},
			nil,
		},
		{
			"streams",
			berth.Task{Steps: []berth.Step{
				{Stdout: "/logs/o", Stderr: "/logs/e"},
				{Stdout: "/o", Stderr: "/m/e", Mounts: []berth.Mount{{Source: "/h", Target: "/m"}}},
			}},
			up("/logs"), nil,
			[]stream{
				{step: 1, path: "/o"},
				{step: 1, path: "/m/e", stderr: true, mount: place{path: "/m", kind: placeMount, host: "/h"}},
			},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, err := newLayout(&c.task)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.volumes, l.volumes); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(c.rooted, l.rooted); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(c.streams, l.streams, cmp.AllowUnexported(stream{}, place{})); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestStepID(t *testing.T) {
	long := strings.Repeat("x", 40)
	seen := map[string]bool{}
	for _, c := range []struct {
		task          string
		step, attempt int
		want          string
	}{
		{"t", 0, 0, "t-1"},
		{"t", 1, 2, "t-2-r2"},
		{long, 0, 0, ""},
		{long[:39] + "y", 0, 0, ""},
		{long, 11, 3, ""},
	} {
		got := stepID(c.task, c.step, c.attempt)
		if c.want != "" && got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
		if err := berth.CheckID(got); err != nil {
			t.Error(err)
		}
		if seen[got] {
			t.Errorf("%q names two steps", got)
		}
		seen[got] = true
	}
}

func TestExitCode(t *testing.T) {
	for _, c := range []struct {
		res  berth.Result
		want int
	}{
		{berth.Result{State: berth.Complete}, 0},
		{berth.Result{State: berth.Complete, Reason: berth.Exited, ExitCode: 3}, 0},
		{berth.Result{State: berth.ExecutorError, Reason: berth.Exited, ExitCode: 3}, 3},
		{berth.Result{State: berth.ExecutorError, Reason: berth.Exited, ExitCode: 125}, 125},
		{berth.Result{State: berth.ExecutorError, Reason: berth.Signaled, ExitCode: 137, Signal: 9}, 137},
		{berth.Result{State: berth.ExecutorError, Reason: berth.OutOfMemory, ExitCode: 1}, 137},
		{berth.Result{State: berth.ExecutorError, Reason: berth.OutOfDisk, ExitCode: 1}, 125},
		{berth.Result{State: berth.ExecutorError, Reason: berth.TimedOut, ExitCode: 143}, 124},
		{berth.Result{State: berth.ExecutorError, Reason: berth.NeverStarted, ExitCode: 126}, 126},
		{berth.Result{State: berth.ExecutorError, Reason: berth.NeverStarted, ExitCode: 127}, 127},
		{berth.Result{State: berth.ExecutorError, Reason: berth.Exited, ExitCode: -1}, 125},
		{berth.Result{State: berth.Canceled, Reason: berth.Stopped, ExitCode: 143}, 130},
		{berth.Result{State: berth.SystemError, Reason: berth.Lost, ExitCode: -1}, 125},
		{berth.Result{State: berth.SystemError, Reason: berth.Preempted}, 125},
		{berth.Result{State: berth.SystemError, Reason: berth.Exited, ExitCode: 0}, 125},
		{berth.Result{State: berth.Running}, 125},
	} {
		if got := ExitCode(c.res); got != c.want {
			t.Errorf("%s, %s, %d: exit code %d, want %d", c.res.State, c.res.Reason, c.res.ExitCode, got, c.want)
		}
	}
}

func TestTotal(t *testing.T) {
	now := time.Now()
	f, n := func(v float64) *float64 { return &v }, func(v int64) *int64 { return &v }
	step := func(u berth.Usage) berth.StepResult {
		return berth.StepResult{Exit: berth.Exit{Started: now, Usage: u}}
	}
	got := total([]berth.StepResult{
		step(berth.Usage{CPUSeconds: f(1), PeakMemory: n(10), BytesRead: n(5), PeakPIDs: n(3), Memory: n(1)}),
		{Exit: berth.Exit{Reason: berth.NeverStarted}},
		step(berth.Usage{CPUSeconds: f(2), PeakMemory: n(7), PeakPIDs: n(4)}),
	})
	want := berth.Usage{CPUSeconds: f(3), PeakMemory: n(10), PeakPIDs: n(4)}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if got := total(nil); !reflect.ValueOf(got).IsZero() {
		t.Errorf("of no step: %+v", got)
	}
}
