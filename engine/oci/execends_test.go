package oci_test

import (
	"context"
	"math/rand/v2"
	"strconv"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// TestEndDuringExec: a container that is ended at whatever moment of a further command's start ends, and so does that.
func TestEndDuringExec(t *testing.T) {
	for _, rt := range []string{"direct", "runc"} {
		t.Run(rt, func(t *testing.T) {
			e, img := newEngine(t, rt)
			sb := openSandbox(t, e, berth.SandboxSpec{ID: "t1"})
			most, span := 200, 3*time.Millisecond
			if rt != "direct" {
				most, span = 30, 100*time.Millisecond
			}
			for i := range most {
				c := start(t, sb, berth.StepSpec{ID: strconv.Itoa(i), Image: img, Command: []string{"sleep", "1000"}})
				done := make(chan error, 4)
				for range cap(done) {
					go func() {
						_, err := c.(berth.Execer).Exec(t.Context(), berth.ExecSpec{Command: []string{"sleep", "1000"}}, berth.Stdio{})
						done <- err
					}()
				}
				time.Sleep(rand.N(span))
				ctx, cancel := context.WithTimeout(t.Context(), ample)
				if err := c.Stop(ctx, 0); err != nil {
					t.Fatalf("container %d does not end: %v", i, err)
				}
				for range cap(done) {
					select {
					case <-done:
					case <-ctx.Done():
						t.Fatalf("a command in container %d does not end", i)
					}
				}
				if err := c.Remove(ctx); err != nil {
					t.Error(err)
				}
				cancel()
			}
		})
	}
}
