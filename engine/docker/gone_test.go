package docker_test

import (
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/moby/moby/client"
)

// TestRemovedByOthers: a container that somebody else removes while it runs is Lost, or was killed where the daemon could still
// say so: never a success, nor the command's own end. What it wrote is there, and its sandbox closes.
func TestRemovedByOthers(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name string
		host func(testing.TB) *dockertest.Daemon
	}{{"docker", daemon}, {"podman", podman}} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			host := row.host(t).Host()
			e, img := newEngine(t, docker.Config{Host: host})
			api, err := client.New(client.WithHost(host))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = api.Close() }()
			_, c := begin(t, e, img, "echo up; sleep 1000")
			until(t, "it runs", func() bool { return logs(t, c, false) == "up\n" })
			id := ids(t, e, c)
			if _, err := api.ContainerRemove(t.Context(), "berth-"+e.Owner()+"-"+id[0]+"-"+id[1], client.ContainerRemoveOptions{Force: true}); err != nil {
				t.Fatal(err)
			}
			exit := wait(t, c)
			if exit.Reason != berth.Lost && (exit.Reason != berth.Signaled || exit.Signal != 9) {
				t.Errorf("exit %+v", exit)
			}
			if got := logs(t, c, false); got != "up\n" {
				t.Errorf("stdout %q", got)
			}
			if err := c.Remove(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
