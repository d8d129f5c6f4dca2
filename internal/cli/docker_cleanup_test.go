package cli

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"

	"github.com/berth-project/berth/engine/docker"
)

// TestDockerCleanupByLabel: a cleanup removes what has this data directory's label and is of no task, though nothing but the
// daemon knows of it, and says so; what has another's label stays.
func TestDockerCleanupByLabel(t *testing.T) {
	d := startDockerd(t)
	b := newBench(t, "DOCKER_HOST="+d.Host(), "BERTH_ENGINE=docker")
	instance, err := os.ReadFile(filepath.Join(b.data, "instance"))
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(client.WithHost(d.Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	run := func(owner string) string {
		t.Helper()
		made, err := api.ContainerCreate(t.Context(), client.ContainerCreateOptions{
			Config: &container.Config{Image: "bb", Cmd: []string{"sleep", "300"}, Labels: map[string]string{
				docker.LabelOwner: owner, docker.LabelSandbox: "ghost", docker.LabelStep: "ghost-1",
			}},
			HostConfig: &container.HostConfig{NetworkMode: "none"},
		})
		if err == nil {
			_, err = api.ContainerStart(t.Context(), made.ID, client.ContainerStartOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		return made.ID
	}
	mine, theirs := run(strings.TrimSpace(string(instance))), run("another-owner")
	defer func() {
		for _, id := range []string{mine, theirs} {
			_, _ = api.ContainerRemove(t.Context(), id, client.ContainerRemoveOptions{Force: true})
		}
	}()
	if out, code := b.output("system", "cleanup"); out != "ghost\twhat was left of a sandbox\n" || code != 0 {
		t.Errorf("exit code %d: %q", code, out)
	}
	if _, err := api.ContainerInspect(t.Context(), mine, client.ContainerInspectOptions{}); err == nil {
		t.Error("it runs on")
	}
	if _, err := api.ContainerInspect(t.Context(), theirs, client.ContainerInspectOptions{}); err != nil {
		t.Error("another's:", err)
	}
	if out, code := b.output("system", "cleanup"); out != "" || code != 0 {
		t.Errorf("again: exit code %d: %q", code, out)
	}
}
