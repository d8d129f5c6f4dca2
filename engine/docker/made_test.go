package docker_test

import (
	"context"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
)

// TestPodmanForgets: an engine that makes container after container on Podman remembers those alone that are there.
func TestPodmanForgets(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{Host: podman(t).Host()})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	removed := step(t, s, img, "true")
	wait(t, removed)
	step(t, s, img, "sleep 1000")
	if n := docker.Made(e); n != 2 {
		t.Errorf("%d containers are remembered, of two", n)
	}
	if err := removed.Remove(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := docker.Made(e); n != 1 {
		t.Errorf("%d containers are remembered, of one", n)
	}
	if _, err := s.Start(t.Context(), berth.StepSpec{ID: "bad", Image: img, Command: []string{"true"}, Stdin: "/none"}); err == nil {
		t.Error("a start without its input")
	}
	if n := docker.Made(e); n != 1 {
		t.Errorf("%d containers are remembered, of one, after a start that failed", n)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if n := docker.Made(e); n != 0 {
		t.Errorf("%d containers are remembered, of none", n)
	}
}
