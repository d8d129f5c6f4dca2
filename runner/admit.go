package runner

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/ledger"
)

// fits refuses what this machine could never lend.
func (r *Runner) fits(ctx context.Context, t *berth.Task) error {
	if asksDevices(t) {
		if r.cfg.Devices == nil {
			return fmt.Errorf("resources.gpus: %w: no devices are lent here", berth.ErrUnsupported)
		}
		if err := r.cfg.Devices.Check(ctx, t); err != nil {
			return err
		}
	}
	req := request(t)
	for _, v := range t.Volumes {
		req.Disk = max(req.Disk, v.Size)
	}
	return plainly(r.cfg.Ledger.Check(ctx, req), t.ID)
}

func asksDevices(t *berth.Task) bool {
	return len(t.Resources.GPUs) > 0 && string(t.Resources.GPUs) != "null"
}

func request(t *berth.Task) ledger.Request {
	return ledger.Request{
		Task:   t.ID,
		CPU:    t.Resources.CPU,
		Memory: t.Resources.Memory,
		Disk:   t.Resources.Disk,
		NoWait: t.NoWait,
	}
}

// adopt takes over what was lent to the task while another process drove it, if anything still is.
func (d *drive) adopt(sandbox berth.Sandbox) error {
	a := d.rec.Admitted
	if d.lease != nil || a == nil || a.Lease == "" {
		return nil
	}
	lease, err := d.r.cfg.Ledger.Adopt(d.alive, a.Lease)
	if errors.Is(err, berth.ErrNotFound) {
		return nil // nothing runs that kept it
	} else if err != nil {
		return d.leaving(fmt.Errorf("lease: %w", err))
	}
	d.lease = lease
	if sandbox == nil {
		return nil
	}
	return d.takeOver(sandbox)
}

// admit waits until what the task asks for is lent to it. Where its sandbox is there, which has the devices that were
// lent before, it is lent the same.
func (d *drive) admit(same bool) error {
	if err := d.adopt(nil); d.lease != nil || err != nil {
		return err
	}
	if err := d.awaitMended(); err != nil {
		return d.failed(err)
	}
	if a := d.rec.Admitted; a != nil && a.Lease == "" { // it asks for nothing
		if d.rec.State == berth.Queued {
			return d.record(KindAdmitted, berth.Initializing, "", a)
		}
		return nil
	}
	d.at("admit")
	req := request(&d.rec.Task)
	if d.rec.Admitted != nil {
		req.NoWait = false // it has begun
	}
	if err := d.askDevices(&req, same); err != nil {
		return d.failed(err)
	}
	waits := false
	req.Waiting = func(why string) {
		waits = waits || why != ""
		d.waiting(why)
	}
	err := d.retry(d.stop, func() (err error) {
		d.lease, err = d.r.cfg.Ledger.Acquire(d.stop, req)
		if req.NoWait && errors.Is(err, berth.ErrUnavailable) {
			_, why, _ := strings.Cut(err.Error(), berth.ErrUnavailable.Error()+": ")
			err = errors.New(noRoom(why)) // of no kind: it is not tried again
		}
		return err
	})
	if err != nil {
		return d.failed(err)
	}
	if waits {
		d.waiting("")
	}
	state := berth.State("")
	if d.rec.State == berth.Queued {
		state = berth.Initializing
	}
	if err := d.record(KindAdmitted, state, "", Admitted{Lease: d.lease.ID(), Devices: d.lease.Devices()}); err != nil {
		return err
	}
	d.at("admitted")
	return nil
}

// noRoom says of a task that does not wait for what it would.
func noRoom(why string) string {
	const now = "the machine has no room now"
	if what, ok := strings.CutPrefix(why, "waiting for "); ok && !strings.HasPrefix(what, "its turn") {
		return now + " for " + strings.ReplaceAll(what, "; waiting for ", "; for ")
	}
	return now + ": " + why
}

// askDevices adds the devices to a request.
func (d *drive) askDevices(req *ledger.Request, same bool) (err error) {
	if !asksDevices(&d.rec.Task) {
		return nil
	}
	if a := d.rec.Admitted; same && a != nil && len(a.Devices) > 0 {
		req.Devices = a.Devices
		return nil
	}
	if d.r.cfg.Devices == nil {
		return fmt.Errorf("resources.gpus: %w: no devices are lent here", berth.ErrUnsupported)
	}
	return d.retry(d.stop, func() error {
		req.Choose, err = d.r.cfg.Devices.Choose(d.stop, &d.rec.Task)
		return err
	})
}

// grants says what the lent devices bring into the task's containers.
func (d *drive) grants(images []Imaged) ([]berth.Grant, error) {
	a := d.rec.Admitted
	if a == nil || len(a.Devices) == 0 {
		return nil, nil
	}
	var envs [][]string
	for _, s := range d.rec.Task.Steps {
		var env []string
		for _, im := range images {
			if im.is(&s) {
				env = append(env, im.Image.Config.Env...)
			}
		}
		envs = append(envs, append(env, s.Env...))
	}
	grants, notes, err := d.r.cfg.Devices.Grants(d.stop, &d.rec.Task, a.Devices, envs)
	if err != nil {
		return nil, d.failed(err)
	}
	for _, note := range notes {
		d.warn(note)
	}
	return grants, nil
}

// tellFaults tells which of the task's devices have failed, after a step has.
func (d *drive) tellFaults() {
	a := d.rec.Admitted
	if a == nil || len(a.Devices) == 0 || d.r.cfg.Devices == nil {
		return
	}
	faults, err := d.r.cfg.Devices.Faults(d.alive, a.Devices)
	if err != nil {
		d.r.cfg.Logger.Warn("whether devices have failed is not known", "task", d.rec.Task.ID, "err", err)
	}
	for _, text := range faults {
		d.faulty = true
		d.warn(text)
	}
}

func (d *drive) lent() bool { return d.lease != nil && d.lease.ID() != "" }

func (d *drive) waiting(why string) {
	if why != "" {
		if err := d.record(KindWaiting, "", why, nil); err != nil {
			d.r.cfg.Logger.Error("event not recorded", "task", d.rec.Task.ID, "text", why, "err", err)
		}
	}
	if d.hooks.Waiting != nil {
		d.hooks.Waiting(why)
	}
}

// keep makes a container a holder of the lease, so that a berth that is killed does not free what its
// container still uses.
func (d *drive) keep(c berth.Container) error {
	p, ok := c.(Process)
	if !ok || !d.lent() || p.Pid() == 0 {
		return nil
	}
	h, err := ledger.Process(p.Pid())
	if errors.Is(err, berth.ErrNotFound) {
		return nil // it has ended
	}
	if err == nil {
		err = d.lease.AddHolder(d.alive, h)
	}
	if err != nil {
		return d.leaving(err)
	}
	d.holder = h
	return nil
}

// bridge has the process that keeps the sandbox's containers hold the lease of a detached task until its container does: should this
// one be killed as it starts that, the container runs on, and what it has must not be lent to others. Where that fails it is as it is
// without.
func (d *drive) bridge(sandbox berth.Sandbox) {
	if !d.rec.Detached || !d.lent() {
		return
	}
	h, ok, err := monitorOf(d.alive, sandbox)
	if err == nil && ok {
		err = d.lease.AddHolder(d.alive, h)
	}
	if err != nil {
		d.r.cfg.Logger.Warn("nobody else holds the lease while the step starts", "task", d.rec.Task.ID, "err", err)
	} else if ok {
		d.bridged = h
	}
}

// unbridge undoes bridge.
func (d *drive) unbridge() {
	h := d.bridged
	if h == (ledger.Holder{}) || !d.lent() {
		return
	}
	d.bridged = ledger.Holder{}
	if err := d.lease.RemoveHolder(context.WithoutCancel(d.alive), h); err != nil {
		d.r.cfg.Logger.Warn("the lease is held still by who keeps the containers", "task", d.rec.Task.ID, "err", err)
	}
}

// unkeep undoes keep, once the container has ended.
func (d *drive) unkeep() error {
	if d.holder == (ledger.Holder{}) || !d.lent() {
		return nil
	}
	h := d.holder
	d.holder = ledger.Holder{}
	return d.leaving(d.lease.RemoveHolder(d.alive, h))
}

// handOver leaves the lease to the process that keeps the sandbox's containers. It answers false where
// there is none.
func (d *drive) handOver(ctx context.Context, sandbox berth.Sandbox) (bool, error) {
	if !d.lent() {
		return true, nil
	}
	h, ok, err := monitorOf(ctx, sandbox)
	if !ok || err != nil {
		return false, err
	}
	return true, d.lease.Handover(ctx, h)
}

// takeOver undoes handOver: from here on the lease ends with this process and with what runs.
func (d *drive) takeOver(sandbox berth.Sandbox) error {
	if !d.lent() {
		return nil
	}
	h, ok, err := monitorOf(d.alive, sandbox)
	if !ok || err != nil {
		return d.leaving(err)
	}
	return d.leaving(d.lease.RemoveHolder(d.alive, h))
}

func monitorOf(ctx context.Context, sandbox berth.Sandbox) (h ledger.Holder, ok bool, err error) {
	k, ok := sandbox.(Keeper)
	if !ok {
		return h, false, nil
	}
	pid, err := k.Monitor(ctx)
	if err == nil {
		h, err = ledger.Process(pid)
	}
	if err != nil {
		return h, false, fmt.Errorf("monitor of sandbox: %w", err)
	}
	return h, true, nil
}
