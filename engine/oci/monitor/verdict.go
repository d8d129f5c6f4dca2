package monitor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/logfile"
	"golang.org/x/sys/unix"
)

// unfilled tells of files that lack something of the streams.
func (c *container) unfilled() string {
	var all []string
	for stream, file := range map[string]string{"stdout": c.step.Stdout, "stderr": c.step.Stderr} {
		if w := c.logs[stream]; w != nil && file != "" {
			if err := w.CopyErr(); err != nil {
				all = append(all, fmt.Sprintf("file %s of %s: %v", file, stream, err))
			}
		}
	}
	slices.Sort(all)
	return strings.Join(all, "; ")
}

// judge says why the container ended, from what is known and nothing else.
func (c *container) judge(st bundle.Status, waitErr error, cause berth.Reason, detail string) berth.Exit {
	e := berth.Exit{Reason: berth.Exited, Code: st.Code, Started: c.begun, Ended: time.Now(), Runtime: c.runtime, Detail: detail}
	if st.Signal != 0 {
		e.Reason, e.Signal, e.Code = berth.Signaled, int(st.Signal), 128+int(st.Signal)
		e.Detail = strings.TrimPrefix(detail+"; signal "+strconv.Itoa(e.Signal)+" ("+unix.SignalName(st.Signal)+")", "; ")
	}
	e.Usage = c.usage(false)
	if e.Usage.CPUSeconds == nil && st.CPU > 0 {
		s := st.CPU.Seconds()
		e.Usage.CPUSeconds = &s
	}
	kills, kerr := c.group.OOMKills()
	switch {
	case waitErr != nil:
		e.Reason, e.Code, e.Detail = berth.Lost, -1, waitErr.Error()
	case cause != "":
		e.Reason = cause
	case kerr == nil && kills > 0 && e.Code != 0:
		e.Reason, e.Detail = berth.OutOfMemory, c.group.OOMDetail()
	case e.Code != 0 || c.sb.area.Enforcement() == berth.DiskSampled:
		// A sampler may have looked too early: what lies above its limit at the end was written all the same.
		if what, limit, used, full := c.sb.area.Full(); full && (e.Code != 0 || used > limit) {
			e.Reason = berth.OutOfDisk
			e.Detail = fmt.Sprintf("the %s of %s is full: %s are used", c.sb.limitName(what), berth.SizeInWords(limit), berth.SizeInWords(used))
		} else if e.Code != 0 {
			e.Detail = strings.TrimPrefix(strings.TrimSuffix(e.Detail+"; "+c.fullDisk(), "; "), "; ")
		}
	}
	if kerr == nil && waitErr == nil {
		e.Detail = strings.TrimPrefix(strings.TrimSuffix(e.Detail+"; "+c.breaches(e.Reason, kills), "; "), "; ")
	}
	return e
}

// breaches says which limits the command met that are not why it ended: what it was refused may be missing from what it
// has done all the same.
func (c *container) breaches(ended berth.Reason, kills int64) string {
	if ended != berth.Exited && ended != berth.Signaled {
		return ""
	}
	var met []string
	if kills > 0 {
		met = append(met, c.group.OOMDetail())
	}
	if forks := c.group.PIDsDetail(); forks != "" {
		met = append(met, forks)
	}
	for _, o := range c.sb.area.Met(c.begun) {
		if slices.Contains(c.fullThen, o.What) {
			met = append(met, fmt.Sprintf("the %s of %s was full when it began", c.sb.limitName(o.What), berth.SizeInWords(o.Limit)))
			continue
		}
		met = append(met, fmt.Sprintf("the %s of %s was full, or all but full", c.sb.limitName(o.What), berth.SizeInWords(o.Limit)))
	}
	return strings.Join(met, "; ")
}

func (c *container) usage(live bool) berth.Usage {
	read := c.group.Usage
	if !live {
		read = c.group.Final
	}
	u, err := read()
	if err != nil {
		c.sb.m.log.Warn("usage", "container", c.id, "err", err)
	}
	if c.sb.rec.Spec.Limits.Disk > 0 {
		if used, err := c.sb.area.Usage(); err == nil {
			u.DiskUsed = &used
		}
	}
	return u
}

// neverStarted records that the command is to blame.
func (c *container) neverStarted(e *bundle.StartError) {
	code := 126
	if errors.Is(e.Errno, unix.ENOENT) {
		code = 127
	}
	for _, stream := range []string{"stdout", "stderr"} {
		if w := c.logs[stream]; w != nil && c.step.TTY {
			w.Abandon()
		}
	}
	_ = c.drain()
	c.finish(berth.Exit{
		Reason: berth.NeverStarted, Code: code, Detail: e.Error(), Runtime: c.runtime,
		Started: c.begun, Ended: time.Now(),
	})
}

// whyUnfilled says why a container ended before it ran, where what went wrong is no fault: its volumes could not
// be filled with what the image holds for lack of space that the task has, or somebody ended it meanwhile.
func (c *container) whyUnfilled(err error) (berth.Exit, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e := berth.Exit{Reason: c.cause, Code: -1, Detail: c.detail}
	if errors.Is(err, context.Canceled) && c.cause != "" {
		return e, true
	}
	full, ok := errors.AsType[*fullError](err)
	if !ok {
		return e, false
	}
	e.Reason, e.Detail = berth.OutOfDisk, full.Error()
	return e, true
}

// fullError says that what an image holds does not fit into the space that the task has.
type fullError struct {
	what  string
	limit int64 // bytes
	found bool  // it was full before
}

func (e *fullError) Error() string {
	if e.found {
		return fmt.Sprintf("there is no room to start: the %s of %s is full", e.what, berth.SizeInWords(e.limit))
	}
	return fmt.Sprintf("what the image holds in its volumes does not fit into the %s of %s", e.what, berth.SizeInWords(e.limit))
}

// noRoom is an error of a start, and says of one for want of disk whether the task's own limits are why.
func (sb *sandbox) noRoom(err error) error {
	if _, told := errors.AsType[*fullError](err); told {
		return err
	}
	err = sb.whyFull(err)
	if full, ok := errors.AsType[*fullError](err); ok {
		full.found = true
	}
	return err
}

// whyFull tells the task's own limits from a disk that is full for all.
func (sb *sandbox) whyFull(err error) error {
	if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
		return err
	}
	if what, limit, _, full := sb.area.Full(); full {
		return &fullError{what: sb.limitName(what), limit: limit}
	}
	return err
}

// neverRan records why the command was not started at all. It has logs, of nothing.
func (c *container) neverRan(e berth.Exit) {
	for _, stream := range []string{"stdout", "stderr"} {
		if stream == "stderr" && c.step.TTY {
			break
		}
		if w := c.logs[stream]; w != nil { // it was begun
			if c.step.TTY {
				w.Abandon()
			}
			continue
		}
		w, err := logfile.Create(c.logDir(), c.logName(stream), logfile.Options{})
		if err != nil {
			c.sb.m.log.Warn("log", "container", c.id, "err", err)
			continue
		}
		w.Abandon()
		c.logs[stream] = w
	}
	e.Runtime, e.Started, e.Ended = c.runtime, time.Now(), time.Now()
	c.finish(e)
}
