package monitor

import (
	"cmp"
	"context"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// end ends the container for the given cause, unless it has ended: its stop signal, then after grace KILL.
// It does not wait, but for the start.
func (c *container) end(cause berth.Reason, detail string, grace time.Duration) {
	c.mu.Lock()
	c.blame(cause, detail)
	c.mu.Unlock()
	c.abort()
	<-c.started
	select {
	case <-c.ended:
		return
	default:
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.blame(cause, detail)
	if grace <= 0 {
		c.kill()
		return
	}
	if err := c.proc.Signal(c.stopSignal()); err != nil {
		c.kill()
		return
	}
	c.timers = append(c.timers, time.AfterFunc(grace, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.kill()
	}))
}

// blame notes who ended it, unless that is known; c.mu is held.
func (c *container) blame(cause berth.Reason, detail string) {
	if c.cause == "" {
		c.cause, c.detail = cause, detail
	}
}

// kill kills everything in the container; c.mu is held. Once the end is recorded the cgroup may be another
// container's.
func (c *container) kill() {
	if c.proc == nil || c.over {
		return
	}
	if err := c.proc.Kill(); err != nil {
		c.sb.m.log.Error("kill", "container", c.id, "err", err)
	}
	c.killGroup()
}

// killGroup kills everything in the container's cgroup.
func (c *container) killGroup() {
	ctx, cancel := context.WithTimeout(context.Background(), killTime)
	defer cancel()
	if err := c.group.Kill(ctx); err != nil {
		c.sb.m.log.Error("kill", "container", c.id, "err", err)
	}
}

// stopSignal is what the step, else its image, names. A name of an image's that is none was told of at the start.
func (c *container) stopSignal() syscall.Signal {
	if sig, err := berth.ParseSignal(cmp.Or(c.step.StopSignal, c.step.Image.Config.StopSignal)); err == nil {
		return sig
	}
	return unix.SIGTERM
}
