package ledger

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/berth-project/berth"
)

// verdict is whether a request can be lent now.
type verdict struct {
	ok      bool
	why     string // what it waits for, where not ok
	devices []Device
	before  int // tickets that are before it
}

// judge says whether t could be lent what it asks for, as v stands. An error ends the request.
func (t *ticket) judge(v *view, now time.Time) (verdict, error) {
	var d verdict
	var first, passed *Entry
	var kept Amount // for those that are passed
	lent := v.lent(&t.ledger.cfg.Capacity)
	for i := range v.entries {
		e := &v.entries[i]
		if e.Lent || t.published() && (e.ID == t.entry.ID || e.Seq > t.entry.Seq) || !t.rival(e) {
			continue
		}
		if e.stalled(now, t.ledger.cfg.StallAfter) || d.before == 0 && t.idle(e, lent, now) {
			continue
		}
		if e.wantsDevices() && !t.wantsDevices() {
			// It mostly waits for a device, for which t does not: t may pass it by as long as it takes nothing away.
			kept = kept.plus(t.ledger.cfg.Capacity.of(e))
			if passed == nil {
				passed = e
			}
			continue
		}
		if d.before++; first == nil {
			first = e
		}
	}
	why := t.lacking(v, lent)
	if passed != nil && len(why) == 0 && len(t.lacking(v, lent.plus(kept))) > 0 {
		if d.before++; first == nil || passed.Seq < first.Seq {
			first = passed
		}
	}
	devices, err := t.choose(v)
	if err != nil && !errors.Is(err, berth.ErrUnavailable) {
		return d, err
	}
	if err != nil {
		why = append(why, err.Error())
	}
	if len(why) == 0 && d.before == 0 {
		d.ok, d.devices = true, devices
		return d, nil
	}
	if len(why) == 0 {
		why = append(why, "waiting for its turn")
	}
	d.why = strings.Join(why, "; ")
	if d.before > 0 {
		d.why += fmt.Sprintf("; %s before this one: %s", tasksAre(d.before), first.who())
	}
	return d, nil
}

func (e *Entry) wantsDevices() bool { return e.Chooses || len(e.Devices) > 0 }

func (t *ticket) wantsDevices() bool { return t.req.Choose != nil || len(t.req.Devices) > 0 }

func (a Amount) plus(b Amount) Amount {
	return Amount{CPU: a.CPU + b.CPU, Memory: a.Memory + b.Memory, Disk: a.Disk + b.Disk}
}

// rival reports whether e stands in the same line as t.
func (t *ticket) rival(e *Entry) bool {
	c := &t.ledger.cfg.Capacity
	return c.counts(e) || e.Disk > 0 && e.DiskOf == c.DiskOf || e.Chooses || len(e.Devices) > 0
}

// idle reports whether e, the first in line, could have had for long what it asks for, and has not claimed
// it: its process lives and does nothing, or asks of others what it does not do itself.
func (t *ticket) idle(e *Entry, lent Amount, now time.Time) bool {
	cpu, memory, disk := t.ledger.cfg.Capacity.fits(lent, Amount{CPU: e.CPU, Memory: e.Memory, Disk: e.Disk})
	if !cpu || !memory || !disk || e.Chooses || len(e.Devices) > 0 {
		delete(t.fitting, e.ID)
		return false
	}
	since, ok := t.fitting[e.ID]
	if !ok {
		t.fitting[e.ID] = now
		return false
	}
	return now.Sub(since) > t.ledger.cfg.StallAfter
}

// lacking says what of CPU, memory and disk is not free.
func (t *ticket) lacking(v *view, lent Amount) []string {
	c, r := &t.ledger.cfg.Capacity, t.req
	cpu, memory, disk := c.fits(lent, Amount{CPU: r.CPU, Memory: r.Memory, Disk: r.Disk})
	var why []string
	waits := func(asked, figures, none, by string) {
		if t.ledger.cfg.HideFigures {
			figures = none
		}
		why = append(why, "waiting for "+asked+": "+figures+" lent to "+by)
	}
	if !cpu {
		by := v.lenders(func(e *Entry) bool { return e.CPU > 0 && c.counts(e) })
		waits(cpus(r.CPU), number(lent.CPU)+" of "+verb(number(c.CPU), lent.CPU == 1), "too many are", by)
	}
	if !memory {
		by := v.lenders(func(e *Entry) bool { return e.Memory > 0 && c.counts(e) })
		waits(size(r.Memory)+" of memory", size(lent.Memory)+" of "+size(c.Memory)+" is", "too much is", by)
	}
	if !disk {
		by := v.lenders(func(e *Entry) bool { return e.Disk > 0 && e.DiskOf == c.DiskOf })
		waits(size(r.Disk)+" of disk", size(lent.Disk)+" of "+size(c.Disk)+" is", "too much is", by)
	}
	return why
}

func (v *view) lenders(has func(*Entry) bool) string {
	var es []*Entry
	for i := range v.entries {
		if e := &v.entries[i]; e.Lent && has(e) {
			es = append(es, e)
		}
	}
	return who(es)
}

// choose finds the devices for t, and checks that they are free.
func (t *ticket) choose(v *view) ([]Device, error) {
	r := t.req
	if r.Choose == nil && len(r.Devices) == 0 {
		return nil, nil
	}
	taken := v.taken()
	devices := r.Devices
	if r.Choose != nil {
		for _, d := range devices { // so that it does not choose them again
			taken[d.ID] = taken[d.ID].with(d, r.Task)
		}
		chosen, err := r.Choose(taken)
		if err != nil {
			return nil, err
		}
		devices = append(slices.Clip(devices), chosen...)
		if err := checkDevices(r.Task, devices); err != nil {
			return nil, err
		}
		taken = v.taken()
	}
	for _, d := range devices {
		has := taken[d.ID]
		if len(has.Tasks) == 0 || d.Bytes > 0 && !has.Exclusive && has.Bytes+d.Bytes <= d.Total {
			continue
		}
		return nil, fmt.Errorf("waiting for device %s: lent to %s%.0w", d.ID, strings.Join(has.Tasks, ", "), berth.ErrUnavailable)
	}
	return devices, nil
}

func (t Taken) with(d Device, task string) Taken {
	t.Exclusive = t.Exclusive || d.Bytes == 0
	t.Bytes += d.Bytes
	t.Tasks = append(slices.Clip(t.Tasks), task)
	return t
}
