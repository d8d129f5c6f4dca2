package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/ledger"
)

// fakeDevices are devices by name, of which tasks ask for a count.
type fakeDevices []string

func (f fakeDevices) Check(_ context.Context, t *berth.Task) error {
	n := 0
	if err := json.Unmarshal(t.Resources.GPUs, &n); err != nil || n > len(f) {
		return fmt.Errorf("%d GPUs: %w: there are %d", n, berth.ErrExhausted, len(f))
	}
	return nil
}

func (f fakeDevices) Choose(_ context.Context, t *berth.Task) (func(map[string]ledger.Taken) ([]ledger.Device, error), error) {
	n := 0
	if err := json.Unmarshal(t.Resources.GPUs, &n); err != nil {
		return nil, err
	}
	return func(taken map[string]ledger.Taken) (lent []ledger.Device, err error) {
		for _, id := range f {
			if len(taken[id].Tasks) == 0 && len(lent) < n {
				lent = append(lent, ledger.Device{ID: id})
			}
		}
		if len(lent) < n {
			return nil, fmt.Errorf("waiting for %d GPUs%.0w", n, berth.ErrUnavailable)
		}
		return lent, nil
	}, nil
}

func (f fakeDevices) Grants(_ context.Context, _ *berth.Task, lent []ledger.Device, envs [][]string) (grants []berth.Grant, notes []string, err error) {
	for _, env := range envs {
		if strings.Contains(strings.Join(env, " "), "REQUIRE") {
			return nil, nil, fmt.Errorf("the image requires more: %w", berth.ErrExhausted)
		}
	}
	for _, d := range lent {
		grants = append(grants, berth.Grant{Vendor: "fake", UUID: d.ID})
	}
	return grants, nil, nil
}

// Preflight is asked for by nobody.
func (fakeDevices) Preflight(*berth.Task, []berth.Grant) (program string, args []string, err error) {
	return "", nil, nil
}

// Faults: g1 fails all the time.
func (f fakeDevices) Faults(_ context.Context, lent []ledger.Device) (texts []string, err error) {
	for _, d := range lent {
		if d.ID == "g1" {
			texts = append(texts, "g1 has failed")
		}
	}
	return texts, nil
}

func onGPUs(n string, step berth.Step) berth.Task {
	return berth.Task{ID: "t", Steps: []berth.Step{step}, Resources: berth.Resources{GPUs: json.RawMessage(n)}}
}

func TestDevicesAreGranted(t *testing.T) {
	b := newTestbed(t)
	other, err := b.ledger.Acquire(t.Context(), ledger.Request{Task: "other", Devices: []ledger.Device{{ID: "g0"}}})
	if err != nil {
		t.Fatal(err)
	}
	var spec string
	hooks := Hooks{At: func(point string) {
		if point == "open" {
			data, _ := os.ReadFile(filepath.Join(b.dir, "engine", "sandboxes", "t", "spec"))
			spec = string(data)
		}
	}}
	res, err := b.Run(timeout(t), onGPUs("1", sh("true")), hooks)
	if err != nil || res.State != berth.Complete {
		t.Fatal(res, err)
	}
	if diff := cmp.Diff([]berth.LentGPU{{Vendor: "fake", UUID: "g1"}}, res.GPUs); diff != "" {
		t.Error(diff)
	}
	if !strings.Contains(spec, `"grants":[{"vendor":"fake","uuid":"g1","index":0}]`) {
		t.Errorf("the sandbox was opened as %s", spec)
	}
	nowait := onGPUs("2", sh("true"))
	nowait.ID, nowait.NoWait = "u", true
	if res, err := b.Run(timeout(t), nowait, Hooks{}); err != nil || !strings.Contains(res.Detail, "the machine has no room now for 2 GPUs") || res.State != berth.SystemError {
		t.Errorf("%+v, %v", res, err)
	}
	other.Release()
	if left := b.left(); left != nil {
		t.Errorf("left: %q", left)
	}
}

// failing are devices of which one is lent until it has failed.
type failing struct {
	fakeDevices
	failed map[string]bool
}

func (f failing) Choose(ctx context.Context, t *berth.Task) (func(map[string]ledger.Taken) ([]ledger.Device, error), error) {
	left := slices.DeleteFunc(slices.Clone(f.fakeDevices), func(id string) bool { return f.failed[id] })
	return left.Choose(ctx, t)
}

func (f failing) Faults(ctx context.Context, lent []ledger.Device) ([]string, error) {
	texts, err := f.fakeDevices.Faults(ctx, lent)
	if len(texts) > 0 {
		f.failed["g1"] = true
	}
	return texts, err
}

func TestRunAgainElsewhere(t *testing.T) {
	b := newTestbed(t)
	b.cfg.Devices = failing{fakeDevices{"g1", "g0"}, map[string]bool{}}
	// The first time, as there is nothing yet, the second step fails.
	mark := filepath.Join(b.dir, "mark")
	task := onGPUs("1", sh("true"))
	task.Steps = append(task.Steps, sh("[ -e "+mark+" ] || { touch "+mark+"; exit 1; }"))
	var warned []string
	hooks := Hooks{Warn: func(text string) { warned = append(warned, text) }}
	once := task
	once.ID = "once"
	res, err := b.Run(timeout(t), once, hooks)
	if err != nil || res.State != berth.ExecutorError || !slices.Equal(warned, []string{"g1 has failed"}) || res.GPUs[0].UUID != "g1" {
		t.Fatalf("%+v, %v, %q", res, err, warned)
	}
	clear(b.cfg.Devices.(failing).failed)
	if err := os.Remove(mark); err != nil {
		t.Fatal(err)
	}
	task.RunAgain, warned = true, nil
	res, err = b.Run(timeout(t), task, hooks)
	if err != nil || res.State != berth.Complete || len(warned) != 2 || res.GPUs[0].UUID != "g0" {
		t.Errorf("%+v, %v, %q", res, err, warned)
	}
	if runs := b.runs(); !slices.Equal(runs, []string{"once-1", "once-2", "t-1", "t-2", "t-1-r1", "t-2-r1"}) {
		t.Errorf("%q ran", runs)
	}
	if left := b.left(); left != nil {
		t.Errorf("left: %q", left)
	}
}

// looking are devices of which one does not open.
type looking struct{ failing }

func (looking) Preflight(_ *berth.Task, grants []berth.Grant) (program string, args []string, err error) {
	if grants[0].UUID == "g1" {
		return "/bin/true", []string{"echo it does not open >&2; exit 1"}, nil
	}
	return "", nil, nil
}

// A task of which nothing has run yet gets another device where the one that it was lent has failed, whether or not it may run
// twice; where it has not failed, none.
func TestPreflightElsewhere(t *testing.T) {
	b := newTestbed(t)
	b.cfg.Devices = looking{failing{fakeDevices{"g1", "g0"}, map[string]bool{}}}
	var warned []string
	res, err := b.Run(timeout(t), onGPUs("1", sh("true")), Hooks{Warn: func(text string) { warned = append(warned, text) }})
	if err != nil || res.State != berth.Complete || len(res.GPUs) != 1 || res.GPUs[0].UUID != "g0" {
		t.Errorf("%+v, %v", res, err)
	}
	if len(warned) != 3 || warned[0] != "g1 has failed" || warned[1] != "GPU preflight: it does not open; the command was not started" || !strings.Contains(warned[2], "with other devices") {
		t.Errorf("%q", warned)
	}
	if left := b.left(); left != nil {
		t.Errorf("left: %q", left)
	}
}

func TestImageRequiresMore(t *testing.T) {
	b := newTestbed(t)
	step := sh("true")
	step.Env = []string{"REQUIRE=1"}
	res, err := b.Run(timeout(t), onGPUs("1", step), Hooks{})
	if err != nil || res.State != berth.SystemError || !strings.Contains(res.Detail, "requires more") {
		t.Errorf("%+v, %v", res, err)
	}
	if runs := b.runs(); runs != nil {
		t.Errorf("%q ran", runs)
	}
}

func TestNoDevices(t *testing.T) {
	b := newTestbed(t)
	b.cfg.Devices = nil
	if _, err := b.Run(timeout(t), onGPUs("1", sh("true")), Hooks{}); !errors.Is(err, berth.ErrUnsupported) {
		t.Error(err)
	}
}
