package docker_test

import (
	"context"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
)

// TestMany has 500 tasks run at once, and docker run in a loop beside it, as many at once as serves it best. It takes two
// minutes of the whole machine, and so runs only where BERTH_TEST_MANY is set.
func TestMany(t *testing.T) {
	if os.Getenv("BERTH_TEST_MANY") == "" {
		t.Skip("it needs the machine for itself; set BERTH_TEST_MANY")
	}
	const many, some = 500, 24
	e, img := newEngine(t, docker.Config{})
	peer := 0.0
	for _, at := range []int{1, 2, 4, 8, 16} {
		began := time.Now()
		at1 := make(chan struct{}, at)
		var wg sync.WaitGroup
		for range some {
			wg.Go(func() {
				at1 <- struct{}{}
				defer func() { <-at1 }()
				cmd := exec.CommandContext(t.Context(), "docker", "--host", daemon(t).Host(), "run", "--rm", "--init", "--network", "none", testRef, "echo", "hello")
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Errorf("docker run: %v: %s", err, out)
				}
			})
		}
		wg.Wait()
		rate := some / time.Since(began).Seconds()
		t.Logf("docker run, %d at once: %.1f a second", at, rate)
		peer = max(peer, rate)
	}
	began := time.Now()
	var wg sync.WaitGroup
	for range many {
		wg.Go(func() {
			if err := oneOfMany(t.Context(), e, img); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	rate := many / time.Since(began).Seconds()
	t.Logf("berth, %d at once: %.1f a second", many, rate)
	if rate < peer {
		t.Errorf("%d tasks at once are done at %.1f a second, docker run in a loop at %.1f", many, rate, peer)
	}
}

func oneOfMany(ctx context.Context, e *docker.Engine, img berth.Image) error {
	s, err := e.Open(ctx, berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		return err
	}
	c, err := s.Start(ctx, berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"echo", "hello"}})
	if err != nil {
		return err
	}
	if _, err := c.Wait(ctx); err != nil {
		return err
	}
	return s.Close(ctx)
}
