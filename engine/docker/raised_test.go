package docker_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
)

// buffer is a bytes.Buffer of several goroutines.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestRaisedMemory: of a memory limit below the daemon's minimum a warning says that it is raised, and an end at it says the
// limit that was in force.
func TestRaisedMemory(t *testing.T) {
	t.Parallel()
	var said buffer
	e, img := newEngine(t, docker.Config{Logger: slog.New(slog.NewTextHandler(&said, nil))})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	c, err := s.Start(t.Context(), berth.StepSpec{ID: "s", Image: img, Command: []string{"tail", "/dev/zero"}, Limits: berth.Limits{Memory: 1 << 20}})
	if err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, c); exit.Reason != berth.OutOfMemory || !strings.Contains(exit.Detail, "the memory limit of 6 MiB was reached") {
		t.Errorf("%+v", exit)
	}
	if line := "memory limit raised to the daemon's minimum"; strings.Count(said.String(), line) != 1 || !strings.Contains(said.String(), "asked=1048576 minimum=6291456") {
		t.Errorf("told %s", said.String())
	}
}
