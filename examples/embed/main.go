// Embed runs one task by berth as a library, on the embedded engine, and prints what became of it:
//
//	embed DIR IMAGE COMMAND [ARG...]
//
// DIR is the data directory, which a berth of the same user may share. See docs/library.md.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/ledger"
	"github.com/berth-project/berth/runner"
	"github.com/berth-project/berth/store"
)

func main() {
	// The engine starts this program again as the monitor that watches its containers. In tests, call it in TestMain.
	oci.MonitorMain()
	if len(os.Args) < 4 {
		fmt.Fprintln(os.Stderr, "usage: embed DIR IMAGE COMMAND [ARG...]")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	result, err := run(ctx, os.Args[1], os.Args[2], os.Args[3:], os.Stdout, os.Stderr)
	if err != nil { // the task was refused, or could not be recorded
		fmt.Fprintln(os.Stderr, "embed:", err)
		os.Exit(1)
	}
	fmt.Fprintf(os.Stderr, "%s %s, exit code %d %s\n", result.State, result.Reason, result.ExitCode, result.Detail)
}

// run runs a command of an image as a task of half a CPU and 128 MiB, and copies what it writes to out and errs.
func run(ctx context.Context, dir, image string, command []string, out, errs io.Writer) (berth.Result, error) {
	engine, err := oci.New(oci.Config{Dir: dir})
	if err != nil {
		return berth.Result{}, err
	}
	defer func() { _ = engine.Close() }()
	tasks, err := store.Open(ctx, filepath.Join(dir, "berth.db"), store.Options{})
	if err != nil {
		return berth.Result{}, err
	}
	defer func() { _ = tasks.Close() }()
	room, err := hostLedger(dir)
	if err != nil {
		return berth.Result{}, err
	}
	r := runner.New(runner.Config{Engine: engine, Store: tasks, Ledger: room, DataDir: dir, UID: os.Getuid(), GID: os.Getgid()})

	// With Holds nothing of the output is dropped before it is read: what is not read holds the task up.
	var reading sync.WaitGroup
	hooks := runner.Hooks{Holds: true, Started: func(_ int, c berth.Container) {
		for i, w := range []io.Writer{out, errs} {
			logs, err := c.(berth.LogReader).Logs(context.Background(), berth.LogOptions{Stderr: i == 1, Follow: true, Hold: true})
			if err != nil {
				fmt.Fprintln(os.Stderr, "embed:", err)
				continue
			}
			reading.Go(func() {
				defer func() { _ = logs.Close() }()
				if _, err := io.Copy(w, logs); err != nil {
					fmt.Fprintln(os.Stderr, "embed:", err)
				}
			})
		}
	}, Ended: func(int, berth.Exit) { reading.Wait() }}

	// Whoever ends ctx with the cause berth.ErrCanceled has the task end with its grace; here the default of 10 s.
	task := berth.Task{
		Steps:     []berth.Step{{Image: image, Command: command}},
		Resources: berth.Resources{Limits: berth.Limits{CPU: 0.5, Memory: 128 << 20}},
		Grace:     -1,
	}
	ctx, cancel := withCause(ctx)
	defer cancel()
	return r.Run(ctx, task, hooks)
}

// hostLedger is the ledger by which all berths of a host share its CPUs, memory and devices.
func hostLedger(dir string) (*ledger.Ledger, error) {
	capacity, err := ledger.Host(dir)
	if err != nil {
		return nil, err
	}
	instance, err := oci.Instance(dir)
	if err != nil {
		return nil, err
	}
	return ledger.New(ledger.Config{Dirs: ledger.DefaultDirs(), Capacity: capacity, Instance: instance})
}

// withCause is a context that ends with the cause berth.ErrCanceled when ctx ends.
func withCause(ctx context.Context) (context.Context, context.CancelFunc) {
	c, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() { cancel(berth.ErrCanceled) })
	return c, func() { stop(); cancel(nil) }
}
