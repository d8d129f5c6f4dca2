package runner

import (
	"cmp"
	"context"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/berth-project/berth"
)

// gauged is the file in which a Meter keeps what it measures of a container's devices.
func (d taskDir) gauged(container string) string { return filepath.Join(d.work(), "gpus-"+container) }

// measure has the task's devices measured while the step's container runs. Where they cannot be, the step runs all the
// same.
func (d *drive) measure(i int, c berth.Container) {
	p, ok := c.(Process)
	if d.r.cfg.Meter == nil || len(d.rec.granted()) == 0 || !ok {
		return
	}
	pid := p.Pid()
	if pid == 0 {
		return
	}
	err := os.MkdirAll(d.dir.work(), 0o700)
	if err == nil {
		err = d.r.cfg.Meter.Start(d.dir.gauged(d.rec.Steps[i].Spec.ID), pid, d.rec.granted())
	}
	if err != nil {
		d.r.cfg.Logger.Warn("devices are not measured", "task", d.rec.Task.ID, "step", i, "err", err)
	}
}

// measured is what the task's devices did in a step that has ended.
func (d *drive) measured(i int, exit berth.Exit) []berth.GPUUse {
	if exit.Started.IsZero() {
		return nil // it never ran
	}
	// The last reading is waited for, but the end of a short step not for longer than the step took.
	return d.r.read(d.alive, d.rec, i, min(time.Second, exit.Ended.Sub(exit.Started)))
}

// Measured is what the devices of a task have done so far in a step that runs.
func (r *Runner) Measured(ctx context.Context, rec *Record, step int) []berth.GPUUse {
	return r.read(ctx, rec, step, 0)
}

func (r *Runner) read(ctx context.Context, rec *Record, step int, patience time.Duration) []berth.GPUUse {
	grants := rec.granted()
	if len(grants) == 0 || r.cfg.Meter == nil || step >= len(rec.Steps) {
		return nil
	}
	return r.cfg.Meter.Read(ctx, r.dir(rec.Task.ID).gauged(rec.Steps[step].Spec.ID), patience, grants)
}

// granted are the devices that the task's sandbox has.
func (rec *Record) granted() []berth.Grant {
	if rec.Opening == nil {
		return nil
	}
	return rec.Opening.Spec.Grants
}

// totalGPUs adds up what the steps did with each device: the highest peak, the mean by the steps' time, the sum of energy.
// What is unknown of one step that ran is unknown of the whole.
func totalGPUs(steps []berth.StepResult) (all []berth.GPUUse) {
	ran := slices.DeleteFunc(slices.Clone(steps), func(s berth.StepResult) bool { return s.Exit.Started.IsZero() || s.Exit.Usage.GPUs == nil })
	busy := map[string]float64{} // percent times seconds
	var seconds float64
	for n, s := range ran {
		took := max(s.Exit.Ended.Sub(s.Exit.Started).Seconds(), 1e-3)
		seconds += took
		for _, u := range s.Exit.Usage.GPUs {
			i := slices.IndexFunc(all, func(o berth.GPUUse) bool { return o.UUID == u.UUID })
			switch {
			case i < 0 && n == 0:
				all = append(all, u)
			case i < 0: // it came with another attempt: of the whole, no part is known
				all = append(all, berth.GPUUse{UUID: u.UUID, Unknown: cmp.Or(u.Unknown, "other steps had other devices")})
			default:
				all[i].PeakMemory = both(all[i].PeakMemory, u.PeakMemory, higher)
				all[i].Energy = both(all[i].Energy, u.Energy, add)
				all[i].Busy = both(all[i].Busy, u.Busy, add)
				all[i].Unknown = cmp.Or(all[i].Unknown, u.Unknown)
			}
			if u.Busy != nil {
				busy[u.UUID] += *u.Busy * took
			}
		}
	}
	for i := range all {
		if all[i].Busy != nil {
			mean := math.Round(10*busy[all[i].UUID]/seconds) / 10
			all[i].Busy = &mean
		}
	}
	return all
}
