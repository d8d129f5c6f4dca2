package docker_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
)

// TestMany has 500 tasks run at once, and docker run in a loop beside it, as many at once as serves it best: the best two
// are looked at longer. It takes two minutes of the whole machine, and so runs only where BERTH_TEST_MANY is set.
func TestMany(t *testing.T) {
	if os.Getenv("BERTH_TEST_MANY") == "" {
		t.Skip("it needs the machine for itself; set BERTH_TEST_MANY")
	}
	const many, some = 500, 24
	e, img := newEngine(t, docker.Config{})
	rates := map[int]float64{}
	for _, at := range []int{1, 2, 4, 8, 16} {
		rates[at] = peerRate(t, some, at)
	}
	peer := 0.0
	best := slices.SortedFunc(maps.Keys(rates), func(a, b int) int { return cmp.Compare(rates[b], rates[a]) })
	for _, at := range best[:2] {
		peer = max(peer, rates[at], peerRate(t, 2*some, at))
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

// peerRate is at what rate docker run is done in a loop, so many at once.
func peerRate(t *testing.T, n, at int) float64 {
	began := time.Now()
	turns := make(chan struct{}, at)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			turns <- struct{}{}
			defer func() { <-turns }()
			cmd := exec.CommandContext(t.Context(), "docker", "--host", daemon(t).Host(), "run", "--rm", "--init", "--network", "none", testRef, "echo", "hello")
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("docker run: %v: %s", err, out)
			}
		})
	}
	wg.Wait()
	rate := float64(n) / time.Since(began).Seconds()
	t.Logf("docker run, %d at once: %.1f a second", at, rate)
	return rate
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
	exit, err := c.Wait(ctx)
	if err != nil {
		return err
	}
	said, err := c.(berth.LogReader).Logs(ctx, berth.LogOptions{})
	if err != nil {
		return err
	}
	text, err := io.ReadAll(said)
	if err != nil {
		return err
	}
	if !exit.OK() || string(text) != "hello\n" {
		return fmt.Errorf("exit %+v, stdout %q", exit, text)
	}
	return s.Close(ctx)
}
