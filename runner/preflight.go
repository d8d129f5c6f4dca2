package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-project/berth"
)

const (
	// preflightAt is where a container has the program of the preflight. The image needs nothing for it.
	preflightAt = "/.berth-preflight"
	// preflightTime is how long devices may take to open: some wake up first.
	preflightTime = time.Minute
)

// preflight looks, in a container like the step's, whether the task's devices open. It is of the same sandbox, image and
// user, with the same devices; the step's command has not begun.
func (d *drive) preflight(sandbox berth.Sandbox, i int) error {
	if d.r.cfg.Devices == nil || len(d.rec.granted()) == 0 {
		return nil
	}
	program, args, err := d.r.cfg.Devices.Preflight(&d.rec.Task, d.rec.granted())
	if err != nil || program == "" {
		return err
	}
	spec := d.preflightSpec(i, program, args)
	if _, err := sandbox.Container(d.stop, spec.ID); errors.Is(err, berth.ErrNotFound) {
		// Logs of a look that a berth before has removed; a container makes its own anew.
		if err := os.RemoveAll(spec.LogDir); err != nil {
			return fmt.Errorf("GPU preflight: %w", kind(err))
		}
	}
	if err := os.MkdirAll(spec.LogDir, 0o700); err != nil {
		return fmt.Errorf("GPU preflight: %w", kind(err))
	}
	var c berth.Container
	err = d.retry(d.stop, func() (err error) {
		c, err = sandbox.Start(d.stop, spec)
		return err
	})
	if err != nil {
		return d.failed(fmt.Errorf("GPU preflight: %w", err))
	}
	defer func() { // else the end of the sandbox removes it
		ctx, cancel := context.WithTimeout(context.WithoutCancel(d.alive), cleanupTime)
		defer cancel()
		_ = c.Remove(ctx)
	}()
	exit, err := c.Wait(d.stop)
	switch {
	case err != nil:
		return d.failed(fmt.Errorf("GPU preflight: %w", err))
	case exit.OK():
		return nil
	}
	d.tellFaults()
	why := lastLines(filepath.Join(spec.LogDir, "stderr"))
	if exit.Reason != berth.Exited || why == "" {
		why = describe(exit)
	}
	return fmt.Errorf("GPU preflight: %s; the command was not started%.0w", why, errPreflight)
}

// errPreflight: a device that was lent to the task does not open.
var errPreflight = errors.New("preflight")

// mayElsewhere reports whether a task whose preflight before step i failed may be tried with other devices: nothing of it has
// run yet, or it may run again.
func (d *drive) mayElsewhere(i int, err error) bool {
	if !d.faulty || !errors.Is(err, errPreflight) {
		return false
	}
	return d.mayAgain() || i == 0 && d.rec.Attempts < againMax && d.rec.Cancel == nil && d.ended() == nil
}

// preflightSpec is a step like another that runs a program of the host. Its ID is that of a step that the task has not.
func (d *drive) preflightSpec(i int, program string, args []string) berth.StepSpec {
	t := &d.rec.Task
	spec := stepOf(t, i)
	spec.ID = stepID(t.ID, len(t.Steps)+i, d.rec.Attempts)
	spec.Image, _ = d.rec.Image(&t.Steps[i])
	spec.Entrypoint, spec.Command = []string{preflightAt}, args
	spec.Mounts = []berth.Mount{{Source: program, Target: preflightAt, ReadOnly: true}}
	spec.WorkingDir, spec.Stdin, spec.Stdout, spec.Stderr = "/", "", "", ""
	spec.TTY, spec.OpenStdin, spec.Ephemeral, spec.Hold = false, false, false, false
	spec.LogDir = filepath.Join(d.dir.work(), "preflight-"+spec.ID)
	spec.Timeout, spec.Grace = preflightTime, 0
	return spec
}

// lastLines are what a program wrote, in one line; "" if it cannot be read.
func lastLines(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(strings.TrimSpace(string(data)), "\n", "; ")
}
