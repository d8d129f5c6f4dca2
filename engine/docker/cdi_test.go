package docker_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/moby/moby/client"
)

// TestCDI: Podman injects CDI devices, hooks too, where the spec on disk has what was lent, and so does dockerd of today.
func TestCDI(t *testing.T) {
	t.Run("podman", func(t *testing.T) {
		t.Parallel()
		injectsCDI(t, podman(t).Host(), true)
		injectsCDI(t, podman(t).Host(), false)
	})
	t.Run("docker", func(t *testing.T) {
		t.Parallel()
		if !injectsDevices(t) {
			t.Skip("dockerd 20.10 injects no CDI devices; TestLend has what it gets: see BERTH_TEST_DOCKERD in CONTRIBUTING.md")
		}
		injectsCDI(t, daemon(t).Host(), true)
		injectsCDI(t, daemon(t).Host(), false)
	})
}

// injectsDevices reports whether the tests' daemon injects CDI devices.
func injectsDevices(t *testing.T) bool {
	t.Helper()
	api, err := client.New(client.WithHost(daemon(t).Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	info, err := api.Info(t.Context(), client.InfoOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return len(info.Info.CDISpecDirs) > 0
}

// injectsCDI lends a device with a hook, which is in a spec on disk or in none: berth writes one then, and takes it away.
func injectsCDI(t *testing.T, host string, onDisk bool) {
	n := fakeGPUs(t)[0]
	n.Container = "/dev/nvidia0"
	out := filepath.Join(t.TempDir(), "hooked")
	vendor := "berth-test-" + berth.NewID() + ".example"
	edits := fmt.Sprintf(`{"env":["FROM_CDI=1"],"deviceNodes":[{"path":"/dev/nvidia0","hostPath":%q}],
		"hooks":[{"hookName":"createContainer","path":"/bin/sh","args":["sh","-c","echo hooked >%s"],"env":["A=1"]}]}`, n.Host, out)
	file, name := filepath.Join("/etc/cdi", vendor+".json"), vendor+"/gpu=0"
	if !onDisk {
		vendor, name = "none-"+vendor, ""
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(`{"cdiVersion":"0.5.0","kind":"`+vendor+`/gpu","devices":[{"name":"0","containerEdits":`+edits+`}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = os.Remove(file)
		_ = os.Remove(filepath.Dir(file)) // if nobody else has anything there
	})
	e, img := newEngine(t, docker.Config{Host: host})
	id := berth.NewID()
	sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: id, Grants: []berth.Grant{{
		Vendor: "nvidia", UUID: "GPU-0", CDI: name, Nodes: []berth.Node{n}, Edits: json.RawMessage(edits),
	}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sb.Close(context.Background()) }()
	c, err := sb.Start(t.Context(), berth.StepSpec{ID: "s", Image: img, Command: []string{"sh", "-c", "(exec 9</dev/nvidia0) && echo opened $FROM_CDI $NVIDIA_VISIBLE_DEVICES; sleep 5"}})
	if err != nil {
		t.Fatal(err)
	}
	exit := wait(t, c)
	if got, want := logs(t, c, false), "opened 1 void\n"; got != want || exit.Code != 0 || exit.Unverified != "" {
		t.Errorf("wrote %q, ended with %+v; want %q", got, exit, want)
	}
	if text, err := os.ReadFile(out); err != nil || string(text) != "hooked\n" {
		t.Errorf("the hook wrote %q, %v", text, err)
	}
	own := filepath.Join("/var/run/cdi", "berth."+e.Owner()+"."+id+".nvidia.yaml")
	if _, err := os.Stat(own); (err == nil) == onDisk {
		t.Errorf("on disk %v, and of the sandbox's own spec: %v", onDisk, err)
	}
	// As after a crash: another closes it.
	again, err := e.Attach(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(own); !os.IsNotExist(err) {
		t.Errorf("after the close: %v", err)
	}
}
