package device

import (
	"bytes"
	"errors"
	"log/slog"
	"os/exec"
	"slices"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
)

func has(programs ...string) func(string) (string, error) {
	return func(name string) (string, error) {
		if slices.Contains(programs, name) {
			return "/usr/bin/" + name, nil
		}
		return "", exec.ErrNotFound
	}
}

// A driver that fails before another succeeds leaves nothing, and is told of.
func TestFirstDriverFails(t *testing.T) {
	var log bytes.Buffer
	r := NewRegistry(RegistryConfig{
		CDI: cdi.NewCache(cdi.Host{}, t.TempDir()), LookPath: has(nvidiaCDIHook, nvidiaHook), Env: []string{"HOME=/"},
		Log: slog.New(slog.NewTextHandler(&log, nil)),
	})
	env := make([]string, 1, 8)
	env[0] = "A=b"
	before := &oci.Spec{Process: &oci.Process{Env: env}}
	spec := *before
	if err := r.Apply(&spec, DockerRequest{Count: 2, Capabilities: [][]string{{"utility", "gpu"}}}); err != nil {
		t.Fatal(err)
	}
	want := []string{"A=b", "NVIDIA_VISIBLE_DEVICES=0,1", "NVIDIA_DRIVER_CAPABILITIES=utility"}
	if !slices.Equal(spec.Process.Env, want) || len(before.Process.Env) != 1 || env[:2][1] != "" {
		t.Errorf("%q; before: %q", spec.Process.Env, env[:2])
	}
	hooks := spec.Hooks.Prestart //nolint:staticcheck // deprecated, and what dockerd uses
	if len(hooks) != 1 || hooks[0].Path != "/usr/bin/"+nvidiaHook || !slices.Equal(hooks[0].Env, []string{"HOME=/"}) {
		t.Errorf("%+v", hooks)
	}
	if !strings.Contains(log.String(), "nvidia.com/gpu=0") {
		t.Errorf("log: %s", log.String())
	}
}

func TestAllDriversFail(t *testing.T) {
	r := NewRegistry(RegistryConfig{CDI: cdi.NewCache(cdi.Host{}, t.TempDir()), LookPath: has(amdRuntime)})
	spec := &oci.Spec{}
	err := r.Apply(spec, DockerRequest{Count: 1, DeviceIDs: []string{"0"}, Capabilities: [][]string{{"gpu"}}})
	if !errors.Is(err, berth.ErrInvalid) || strings.Contains(err.Error(), "\n") || spec.Process != nil {
		t.Errorf("%v, %+v", err, spec)
	}
}

func TestNoDriver(t *testing.T) {
	r := NewRegistry(RegistryConfig{LookPath: has(nvidiaHook)})
	err := r.Apply(&oci.Spec{}, DockerRequest{Driver: "nope", Capabilities: [][]string{{"gpu"}}})
	if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "nvidia, nvidia.runtime-hook") {
		t.Error(err)
	}
}

func TestHugeCount(t *testing.T) {
	if ids, err := (DockerRequest{Count: 1 << 40}).IDs(); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("%d ids, %v", len(ids), err)
	}
}
