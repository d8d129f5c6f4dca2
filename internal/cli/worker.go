package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/runner"
	"github.com/berth-project/berth/store"
)

// self is this program, even after its file was replaced.
const self = "/proc/self/exe"

// workerCommand is the hidden command that brings a detached task forward: to the point where nothing but
// waiting is left, or to its end. Without a task it puts right what killed processes left.
func (a *app) workerCommand() *cobra.Command {
	return &cobra.Command{
		Use:         "worker [TASK]",
		Hidden:      true,
		Args:        argCount(0, 1),
		Annotations: map[string]string{asRoot: "yes"},
		RunE:        func(cmd *cobra.Command, args []string) error { return a.work(cmd.Context(), args) },
	}
}

// roomPoll is how often a worker looks whether a full disk has room again.
const roomPoll = 500 * time.Millisecond

// openForWork opens all of the data directory, waiting for room on its disk: nobody else may come to bring the task
// forward.
func (a *app) openForWork(ctx context.Context) (*host, error) {
	for {
		h, err := a.open(ctx)
		if !errors.Is(err, berth.ErrExhausted) {
			return h, err
		}
		if err := sleep(ctx, roomPoll); err != nil {
			return nil, err
		}
	}
}

func (a *app) work(ctx context.Context, args []string) error {
	h, err := a.openForWork(ctx)
	if err != nil {
		return err
	}
	defer h.close()
	if len(args) == 0 {
		found, err := a.reconcile(ctx, h)
		for _, f := range found {
			err = errors.Join(err, f.Err)
		}
		return err
	}
	_, err = h.runner.Drive(ctx, args[0], runner.Hooks{})
	if errors.Is(err, runner.ErrParked) {
		return nil
	}
	if err != nil {
		return err
	}
	return h.runner.CloseLeft(ctx, args[0]) // who started this worker starts another where that fails
}

// workerArgs is the command line of a worker, but for the task's ID.
func (a *app) workerArgs(dir string) []string {
	args := []string{self, "--data-dir", dir, "--engine", a.global.engine}
	if a.global.daemon != "" {
		args = append(args, "--docker-host", a.global.daemon)
	}
	for flag, d := range map[string]time.Duration{"--docker-watchdog": a.global.watchdog, "--docker-output-wait": a.global.outputWait} {
		if d > 0 {
			args = append(args, flag, d.String())
		}
	}
	if a.global.gpuRoot != "/" {
		args = append(args, "--gpu-root", a.global.gpuRoot)
	}
	if a.global.brokenHook != "" {
		args = append(args, "--broken-hook", a.global.brokenHook)
	}
	if a.global.hideFigures {
		args = append(args, "--hide-figures")
	}
	if a.global.debug {
		args = append(args, "--debug")
	}
	return append(args, "worker")
}

// startWorker starts a worker that outlives this process.
func (a *app) startWorker(dir string, task ...string) error {
	log, err := os.OpenFile(filepath.Join(dir, "run", "worker.log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	defer func() { _ = log.Close() }()
	args := append(a.workerArgs(dir), task...)
	cmd := exec.Command(args[0], args[1:]...) //nolint:noctx // our own program, which outlives us on purpose
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = a.env, "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start worker: %w", err)
	}
	go func() { _ = cmd.Wait() }() // only reaps: the worker outlives us
	return nil
}

// revive has a worker look after tasks that have lost their driver: it was killed, or the machine went down.
// Whatever goes wrong is not what the user asked about. It returns those of them that end by that: they
// ran in the foreground, or their monitor was killed.
func (a *app) revive(ctx context.Context, h *host) (ends []string) {
	if h.tasks == nil {
		return nil
	}
	started := map[place]bool{}
	for r, err := range h.tasks.Stale(ctx) {
		at := placeOf(r.Task)
		if err == nil && !h.adrift(r) {
			continue
		}
		if err == nil && !started[at] {
			started[at] = true
			err = a.at(at).startWorker(h.dir)
		}
		if err != nil && ctx.Err() != nil {
			return ends
		}
		if err != nil {
			a.logger().Warn("look after tasks without a driver", "task", r.ID, "err", err)
			return ends
		}
		if !r.Detached || r.State == berth.Running {
			ends = append(ends, r.ID)
		}
	}
	return ends
}

// settle is revive for who tells of all tasks: it gives the worker a moment to record how they ended.
func (a *app) settle(ctx context.Context, h *host) {
	ends := a.revive(ctx, h)
	for end := time.Now().Add(silence); len(ends) > 0 && time.Now().Before(end); {
		if r, err := h.tasks.Get(ctx, ends[0]); err != nil || r.State.Final() {
			ends = ends[1:]
			continue
		}
		if sleep(ctx, startPoll) != nil {
			return
		}
	}
}

// lookAfter is revive now and, while something waits for tasks, now and then, until stop is called.
func (a *app) lookAfter(ctx context.Context, h *host) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		for pause := time.Second; ; pause = min(2*pause, 30*time.Second) {
			a.revive(ctx, h)
			if sleep(ctx, pause) != nil {
				return
			}
		}
	})
	return func() {
		cancel()
		done.Wait()
	}
}

// adrift reports whether nobody brings an open task forward: neither a process, nor, while a detached task's
// step runs, the monitor. What was kept on purpose is left alone.
func (h *host) adrift(r store.Record) bool {
	switch {
	case r.State.Final() && r.Task.Keep, h.runner.Driven(r.ID):
		return false
	case r.Detached && r.State == berth.Running:
		return !watched(placeOf(r.Task), h.dir)
	}
	return true
}
