package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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
	if res, err := b.Run(timeout(t), nowait, Hooks{}); err != nil || !strings.Contains(res.Detail, "waiting for 2 GPUs") || res.State != berth.SystemError {
		t.Errorf("%+v, %v", res, err)
	}
	other.Release()
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
