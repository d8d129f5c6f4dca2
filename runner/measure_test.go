package runner

import (
	"context"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
)

// fakeMeter notes what it is to measure.
type fakeMeter struct {
	mu    sync.Mutex
	files []string
}

func (m *fakeMeter) Start(file string, pid int, _ []berth.Grant) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.files = append(m.files, file)
	if pid == 0 {
		panic("no process is to be measured")
	}
	return os.WriteFile(file, nil, 0o600)
}

func (*fakeMeter) Read(_ context.Context, file string, _ time.Duration, grants []berth.Grant) (uses []berth.GPUUse) {
	for _, g := range grants {
		_, err := os.Stat(file)
		uses = append(uses, berth.GPUUse{UUID: g.UUID, Unknown: map[bool]string{true: "measured"}[err == nil]})
	}
	return uses
}

// Each step's devices are measured, in a file that is gone with the task, and what was measured is in its record.
func TestDevicesAreMeasured(t *testing.T) {
	b := newTestbed(t)
	m := &fakeMeter{}
	b.cfg.Meter = m
	task := onGPUs("1", sh("true"))
	task.Steps = append(task.Steps, sh("true"))
	res, err := b.Run(timeout(t), task, Hooks{})
	if err != nil || res.State != berth.Complete {
		t.Fatal(res, err)
	}
	want := []berth.GPUUse{{UUID: "g0", Unknown: "measured"}}
	for _, s := range res.Steps {
		if diff := cmp.Diff(want, s.Exit.Usage.GPUs); diff != "" {
			t.Errorf("step %d: %s", s.Index, diff)
		}
	}
	if diff := cmp.Diff(want, res.Usage.GPUs); diff != "" || len(m.files) != 2 || m.files[0] == m.files[1] || !strings.Contains(m.files[0], "/work/gpus-") {
		t.Error(diff, m.files)
	}
	if left := b.left(); left != nil {
		t.Errorf("left: %q", left)
	}
	if res, err := b.Run(timeout(t), berth.Task{ID: "u", Steps: []berth.Step{sh("true")}}, Hooks{}); err != nil || res.Usage.GPUs != nil || len(m.files) != 2 {
		t.Error(res, err, m.files)
	}
}

func TestTotalGPUs(t *testing.T) {
	step := func(seconds int, uses ...berth.GPUUse) berth.StepResult {
		now := time.Unix(1e9, 0)
		return berth.StepResult{Exit: berth.Exit{Started: now, Ended: now.Add(time.Duration(seconds) * time.Second), Usage: berth.Usage{GPUs: uses}}}
	}
	use := func(uuid string, peak int64, busy, energy float64) berth.GPUUse {
		return berth.GPUUse{UUID: uuid, PeakMemory: &peak, Busy: &busy, Energy: &energy}
	}
	lacking := use("A", 5, 0, 0)
	lacking.Busy, lacking.Energy, lacking.Unknown = nil, nil, "why"
	for name, c := range map[string]struct {
		steps []berth.StepResult
		want  []berth.GPUUse
	}{
		"one":           {[]berth.StepResult{step(1, use("A", 5, 50, 100))}, []berth.GPUUse{use("A", 5, 50, 100)}},
		"two":           {[]berth.StepResult{step(3, use("A", 5, 100, 100)), step(1, use("A", 9, 0, 50))}, []berth.GPUUse{use("A", 9, 75, 150)}},
		"unknown once":  {[]berth.StepResult{step(3, use("A", 9, 100, 100)), step(1, lacking)}, []berth.GPUUse{{UUID: "A", PeakMemory: use("", 9, 0, 0).PeakMemory, Unknown: "why"}}},
		"one never ran": {[]berth.StepResult{step(1, use("A", 5, 50, 100)), {}}, []berth.GPUUse{use("A", 5, 50, 100)}},
		"none":          {[]berth.StepResult{{}}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, totalGPUs(c.steps)); diff != "" {
				t.Error(diff)
			}
		})
	}
}
