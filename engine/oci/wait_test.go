package oci_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// Whoever starts a container is told its end on the way by which it was started: also when a first Wait is given up,
// when two wait at once, and when the engine was closed meanwhile. Who never waits leaves no connection.
func TestToldOfTheEnd(t *testing.T) {
	e, img := newEngine(t, "direct")
	sb := openSandbox(t, e, berth.SandboxSpec{ID: "told"})
	c := start(t, sb, berth.StepSpec{ID: "late", Image: img, Command: []string{"sh", "-c", "sleep 1; exit 7"}})
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if x, err := c.Wait(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("%+v, %v; want the deadline", x, err)
	}
	ends := make(chan string, 2)
	for range 2 {
		go func() {
			x, err := c.Wait(t.Context())
			ends <- fmt.Sprint(x.Code, err)
		}()
	}
	for range 2 {
		if end := <-ends; end != "7 <nil>" {
			t.Errorf("a Wait answered %s", end)
		}
	}
	twice := start(t, sb, berth.StepSpec{ID: "twice", Image: img, Command: []string{"sh", "-c", "sleep 0.3; exit 8"}})
	for range 2 {
		go func() {
			x, err := twice.Wait(t.Context())
			ends <- fmt.Sprint(x.Code, err)
		}()
	}
	for range 2 {
		if end := <-ends; end != "8 <nil>" {
			t.Errorf("one of two that wait at once was answered %s", end)
		}
	}
	last := start(t, sb, berth.StepSpec{ID: "closed", Image: img, Command: []string{"sh", "-c", "exit 9"}})
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if x, err := last.Wait(t.Context()); err != nil || x.Code != 9 {
		t.Errorf("after the engine was closed: %+v, %v", x, err)
	}
}

// Nobody waits for these containers; each is removed, or its sandbox is closed.
func TestNobodyWaits(t *testing.T) {
	e, img := newEngine(t, "direct")
	own := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	round := func(name string) {
		sb := openSandbox(t, e, berth.SandboxSpec{ID: name})
		for _, id := range []string{"a", "b"} {
			c := start(t, sb, berth.StepSpec{ID: id, Image: img, Command: []string{"true"}})
			if err := c.Stop(t.Context(), 0); err != nil {
				t.Fatal(err)
			}
			if id == "a" {
				if err := c.Remove(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := sb.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	round("first")
	before := own()
	for i := range 20 {
		round(fmt.Sprint("n", i))
	}
	if after := own(); after > before+5 {
		t.Errorf("%d descriptors, after 40 more containers %d", before, after)
	}
}

// Who starts many containers and waits for none of them has some connections, not one for each; their ends are told all the same.
func TestManyUnheard(t *testing.T) {
	e, img := newEngine(t, "direct")
	sb := openSandbox(t, e, berth.SandboxSpec{ID: "many"})
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	before := count()
	var all []berth.Container
	for i := range 100 {
		all = append(all, start(t, sb, berth.StepSpec{ID: fmt.Sprint("s", i), Image: img, Command: []string{"sh", "-c", fmt.Sprint("exit ", i)}}))
	}
	if after := count(); after > before+80 {
		t.Errorf("%d descriptors, with 100 containers %d", before, after)
	}
	for i, c := range all {
		if x, err := c.Wait(t.Context()); err != nil || x.Code != i {
			t.Errorf("container %d: %+v, %v", i, x, err)
		}
	}
}
