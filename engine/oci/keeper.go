package oci

import (
	"context"

	"github.com/berth-project/berth/engine/oci/wire"
)

// Monitor is the process with which all containers of the sandbox end. What was lent to a task can be left
// to it when nobody else waits for the task.
func (s *Sandbox) Monitor(ctx context.Context) (pid int, err error) {
	var a wire.Answer
	if err := s.e.client.call(ctx, &wire.Request{Op: wire.OpHello}, &a); err != nil {
		return 0, err
	}
	return a.Pid, nil
}

// Pid is the container's first process, as this host sees it; 0 where it is unknown.
func (c *Container) Pid() int { return c.desc.Pid }
