package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/ledger"
	"github.com/berth-project/berth/runner"
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
	if err := a.fitDisk(ctx, h, o, t); err != nil {
		return err
	}
	if l.CPU == 0 && l.Memory == 0 || a.global.engine == engineOCI && o.overCapacity == overDeny {
		return nil // the ledger refuses
	}
	total, err := a.total(ctx, h)
	if err != nil {
		return err
	}
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

// fitDisk takes disk that a task asks for, and that this machine does not have, down to most of what is free, where that runs
// it: where a limit is hard its room is taken at once, beside a little for its file system, and berth writes there, too. More is
// refused by the ledger otherwise.
func (a *app) fitDisk(ctx context.Context, h *host, o *runOptions, t *berth.Task) error {
	asked := t.Resources.Disk
	for _, v := range t.Volumes {
		asked = max(asked, v.Size)
	}
	if asked == 0 || o.overCapacity != overTry || !h.isHere(ctx) {
		return nil
	}
	most, err := ledger.Host(h.dir)
	if err != nil || most.Disk == 0 || asked <= most.Disk {
		return err
	}
	if err := a.over(o, fmt.Sprintf("task requires at least %s GiB of disk", number(gib(asked))), number(gib(most.Disk))+" GiB"); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(h.dir, &fs); err != nil {
		return fmt.Errorf("data directory: %w: %w", fileKind(err), err)
	}
	free := int64(fs.Bavail) * fs.Bsize / 10 * 9
	whole := min(t.Resources.Disk, free)
	t.Resources.Disk = whole
	var own []*int64
	for i := range t.Volumes {
		size := &t.Volumes[i].Size
		*size = min(*size, free)
		if *size > 0 && (whole == 0 || *size < whole) { // a larger one has no limit but that of the whole
			own = append(own, size)
		}
	}
	shareOut(free, own)
	return nil
}

// shareOut takes sizes down that are more than there is together: to equal parts of what those leave that are smaller.
func shareOut(free int64, sizes []*int64) {
	slices.SortFunc(sizes, func(a, b *int64) int { return cmp.Compare(*a, *b) })
	for i, size := range sizes {
		*size = min(*size, free/int64(len(sizes)-i))
		free -= *size
	}
}

// isHere reports whether tasks are known to run on this machine.
func (h *host) isHere(ctx context.Context) bool {
	if h.elsewhere == nil {
		return true
	}
	away, err := h.elsewhere(ctx)
	return err == nil && away == ""
}

// unfigured is an error that does not tell how much this machine has, where that is not to be told.
func (a *app) unfigured(err error) error {
	if c, ok := errors.AsType[*ledger.CapacityError](err); ok && a.global.hideFigures {
		return &quietError{c.Asked, err}
	}
	return err
}

// total is what there is for tasks. Of a daemon that cannot be reached, where tasks wait until it is, it is what is known of
// it: once it answers, the task is held to that.
func (a *app) total(ctx context.Context, h *host) (berth.Limits, error) {
	info, err := h.engine.Info(ctx)
	if d, ok := h.engine.(runner.Diagnoser); err != nil && ok && a.global.brokenHook != "" {
		if broken, _ := d.Broken(err); broken {
			return a.remembered(ctx, h)
		}
	}
	return info.Total, err
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
