package docker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
)

// exampleEngine is an engine on the tests' daemon, and their image.
func exampleEngine() (e *docker.Engine, img berth.Image, done func()) {
	dir, err := os.MkdirTemp("", "berth-example-")
	if err != nil {
		log.Fatal(err)
	}
	d, err := sharedDaemon()
	if err != nil {
		log.Fatal(err)
	}
	if e, err = docker.New(docker.Config{Host: d.Host(), Dir: dir}); err != nil {
		log.Fatal(err)
	}
	if img, err = e.Image(context.Background(), berth.ImageRequest{Ref: testRef}); err != nil {
		log.Fatal(err)
	}
	return e, img, func() { _, _ = e.Close(), os.RemoveAll(dir) }
}

// Run starts a command and waits for its end. What it wrote is read afterwards.
func Example_run() {
	e, img, done := exampleEngine()
	defer done()
	ctx := context.Background()

	s, err := e.Open(ctx, berth.SandboxSpec{ID: "run"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() { _ = s.Close(ctx) }()
	c, err := s.Start(ctx, berth.StepSpec{ID: "one", Image: img, Command: []string{"sh", "-c", "echo hello; exit 3"}})
	if err != nil {
		log.Fatal(err)
	}
	exit, err := c.Wait(ctx)
	fmt.Println(exit.Reason, exit.Code, err)
	logs, _ := c.(berth.LogReader).Logs(ctx, berth.LogOptions{})
	out, _ := io.ReadAll(logs)
	fmt.Printf("%s", out)
	// Output:
	// Exited 3 <nil>
	// hello
}

// Start of an ID that runs or has ended is the same container again: the command does not run twice. With another spec
// it is a conflict.
func Example_startAgain() {
	e, img, done := exampleEngine()
	defer done()
	ctx := context.Background()

	s, _ := e.Open(ctx, berth.SandboxSpec{ID: "again"})
	defer func() { _ = s.Close(ctx) }()
	spec := berth.StepSpec{ID: "one", Image: img, Command: []string{"sh", "-c", "exit 4"}}
	first, err := s.Start(ctx, spec)
	if err != nil {
		log.Fatal(err)
	}
	before, _ := first.Wait(ctx)
	second, err := s.Start(ctx, spec)
	if err != nil {
		log.Fatal(err)
	}
	after, _ := second.Wait(ctx)
	fmt.Println(before.Code, after.Code, before.Started.Equal(after.Started))
	spec.Command = []string{"true"}
	_, err = s.Start(ctx, spec)
	fmt.Println(errors.Is(err, berth.ErrConflict))
	// Output:
	// 4 4 true
	// true
}

// Start of one that runs is that very container: who has started it twice waits for one end, and one Stop ends it for both.
func Example_startRunning() {
	e, img, done := exampleEngine()
	defer done()
	ctx := context.Background()

	s, _ := e.Open(ctx, berth.SandboxSpec{ID: "running"})
	defer func() { _ = s.Close(ctx) }()
	spec := berth.StepSpec{ID: "one", Image: img, Command: []string{"sleep", "1000"}}
	first, err := s.Start(ctx, spec)
	if err != nil {
		log.Fatal(err)
	}
	second, err := s.Start(ctx, spec)
	fmt.Println(second.ID() == first.ID(), err)
	_ = second.Stop(ctx, 0)
	before, _ := first.Wait(ctx)
	after, _ := second.Wait(ctx)
	fmt.Println(before.Reason, after.Started.Equal(before.Started))
	// Output:
	// true <nil>
	// Canceled true
}

// Wait ends with its context, and the container runs on. Of one that has ended it answers at once, and always the same.
func Example_wait() {
	e, img, done := exampleEngine()
	defer done()
	ctx := context.Background()

	s, _ := e.Open(ctx, berth.SandboxSpec{ID: "wait"})
	defer func() { _ = s.Close(ctx) }()
	c, err := s.Start(ctx, berth.StepSpec{ID: "one", Image: img, Command: []string{"sh", "-c", "sleep 5; exit 5"}})
	if err != nil {
		log.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	_, err = c.Wait(short)
	fmt.Println(err)
	exit, err := c.Wait(ctx)
	again, _ := c.Wait(ctx)
	fmt.Println(exit.Reason, exit.Code, err, again.Ended.Equal(exit.Ended))
	// Output:
	// context deadline exceeded
	// Exited 5 <nil> true
}

// Waiting on an unknown ID is not found, and never blocks.
func Example_unknown() {
	e, _, done := exampleEngine()
	defer done()
	ctx := context.Background()

	_, err := e.Attach(ctx, "nobody")
	fmt.Println(errors.Is(err, berth.ErrNotFound))
	s, _ := e.Open(ctx, berth.SandboxSpec{ID: "known"})
	defer func() { _ = s.Close(ctx) }()
	_, err = s.Container(ctx, "nothing")
	fmt.Println(errors.Is(err, berth.ErrNotFound))
	// Output:
	// true
	// true
}

// Cancel is Stop: its stop signal, the grace, and then KILL. A second one is no error, and how the container ended is a
// result, not an error.
func Example_cancel() {
	e, img, done := exampleEngine()
	defer done()
	ctx := context.Background()

	s, _ := e.Open(ctx, berth.SandboxSpec{ID: "cancel"})
	defer func() { _ = s.Close(ctx) }()
	c, err := s.Start(ctx, berth.StepSpec{ID: "one", Image: img, Command: []string{"sleep", "1000"}})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(c.Stop(ctx, 0), c.Stop(ctx, 0))
	exit, err := c.Wait(ctx)
	fmt.Println(exit.Reason, err)
	// Output:
	// <nil> <nil>
	// Canceled <nil>
}

// Following the logs of a container that has ended gives what it wrote, and ends.
func Example_logs() {
	e, img, done := exampleEngine()
	defer done()
	ctx := context.Background()

	s, _ := e.Open(ctx, berth.SandboxSpec{ID: "logs"})
	defer func() { _ = s.Close(ctx) }()
	c, err := s.Start(ctx, berth.StepSpec{ID: "one", Image: img, Command: []string{"sh", "-c", "echo some job output; echo and more"}})
	if err != nil {
		log.Fatal(err)
	}
	_, _ = c.Wait(ctx)
	logs, err := c.(berth.LogReader).Logs(ctx, berth.LogOptions{Follow: true, Tail: 1})
	if err != nil {
		log.Fatal(err)
	}
	var out bytes.Buffer
	_, err = out.ReadFrom(logs)
	fmt.Printf("%s%v\n", &out, err)
	// Output:
	// and more
	// <nil>
}

// Cleanup closes all that this owner has on the daemon, and nothing of anybody else.
func Example_cleanup() {
	e, img, done := exampleEngine()
	defer done()
	ctx := context.Background()

	s, _ := e.Open(ctx, berth.SandboxSpec{ID: "cleanup"})
	if _, err := s.Start(ctx, berth.StepSpec{ID: "one", Image: img, Command: []string{"sleep", "1000"}}); err != nil {
		log.Fatal(err)
	}
	all, _ := e.List(ctx)
	for _, st := range all {
		if s, err := e.Attach(ctx, st.Sandbox); err == nil {
			fmt.Println(st.Sandbox, s.Close(ctx))
		}
	}
	left, _ := e.Orphans(ctx) // what has its label, and no record here
	for _, id := range left {
		fmt.Println(e.Purge(ctx, id))
	}
	all, err := e.List(ctx)
	fmt.Println(len(all), err)
	// Output:
	// cleanup <nil>
	// 0 <nil>
}
