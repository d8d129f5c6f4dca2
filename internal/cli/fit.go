package cli

import (
	"context"
	"fmt"
	"strconv"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/engine/docker"
)

// The values of --over-capacity.
const (
	overDeny = "deny"
	overTry  = "try_with_max"
)

// fit holds what a task asks for to what its engine has: more is refused, or with --over-capacity try_with_max taken
// down to that, with a warning; less than a container can be started in is raised, with a warning.
func (a *app) fit(ctx context.Context, h *host, o *runOptions, t *berth.Task) error {
	if err := a.runnable(t); err != nil {
		return err
	}
	if h.elsewhere != nil && len(t.Resources.GPUs) > 0 && string(t.Resources.GPUs) != "null" {
		if away, err := h.elsewhere(ctx); err == nil && away != "" { // of one that cannot be asked, the start says
			return unsupported("run: --gpus: the daemon at %s is on another machine, and berth lends GPUs of this one: run berth there", away)
		}
	}
	l := &t.Resources.Limits
	if a.global.engine == engineDocker && l.Memory > 0 && l.Memory < docker.MinMemory {
		a.warnRun(o, fmt.Sprintf("the memory limit of %s is raised to the daemon's minimum of %s", berth.SizeInWords(l.Memory), berth.SizeInWords(docker.MinMemory)))
		l.Memory = docker.MinMemory
	}
	if l.CPU == 0 && l.Memory == 0 || a.global.engine == engineOCI && o.overCapacity == overDeny {
		return nil // the ledger refuses
	}
	info, err := h.engine.Info(ctx)
	if err != nil {
		return err
	}
	total := info.Total
	if total.CPU > 0 && l.CPU > total.CPU {
		text := fmt.Sprintf("task requires at least %s CPU(s)", number(l.CPU))
		if err := a.over(o, text, number(total.CPU)); err != nil {
			return err
		}
		l.CPU = total.CPU
	}
	if total.Memory > 0 && l.Memory > total.Memory {
		text := fmt.Sprintf("task requires at least %s GiB of memory", number(gib(l.Memory)))
		if err := a.over(o, text, number(gib(total.Memory))+" GiB"); err != nil {
			return err
		}
		l.Memory = total.Memory
	}
	return nil
}

// runnable refuses GPUs of a recorded host: what would be brought into the container is not on this machine.
func (a *app) runnable(t *berth.Task) error {
	if a.global.gpuRoot == "/" || len(t.Resources.GPUs) == 0 || string(t.Resources.GPUs) == "null" {
		return nil
	}
	h, err := device.OpenHost(a.abs(a.global.gpuRoot))
	if err != nil || !h.Recorded() {
		return err
	}
	return unsupported("run: --gpu-root: the host at %s is a recording: berth gpu ls, gpu explain and cdi generate read it, but nothing can run on it", a.global.gpuRoot)
}

// over refuses, or warns.
func (a *app) over(o *runOptions, text, most string) error {
	if !a.global.hideFigures {
		text += ", but the execution backend has a maximum of " + most
	}
	if o.overCapacity == overTry {
		a.warnRun(o, text+"; it gets what there is")
		return nil
	}
	return &quietError{text, berth.ErrExhausted}
}

func (a *app) warnRun(o *runOptions, text string) {
	if !o.quiet {
		a.say("warning: %s", text)
	}
}

func gib(n int64) float64 { return float64(n) / (1 << 30) }

// number writes a number with two decimals at most.
func number(f float64) string {
	f, _ = strconv.ParseFloat(strconv.FormatFloat(f, 'f', 2, 64), 64)
	return strconv.FormatFloat(f, 'f', -1, 64)
}
