package device

import (
	"fmt"
	"slices"

	"github.com/berth-project/berth"
)

// PreflightName is the name under which the program of a preflight knows what it is to do; what follows are the paths of
// nodes.
const PreflightName = "preflight"

// Preflight says what is to run in a task's container before each step's command, with the container's devices and as its
// user: a program of this machine, and its arguments. It says on standard error what does not open, and ends with 1 then.
// Without a program the task does not ask for it.
func (p *Pool) Preflight(task *berth.Task, grants []berth.Grant) (program string, args []string, err error) {
	requests, err := ParseRequests(task.Resources.GPUs)
	if err != nil || !slices.ContainsFunc(requests, func(r Request) bool { return r.Preflight }) {
		return "", nil, err
	}
	if p.cfg.Preflight == nil {
		return "", nil, fmt.Errorf("GPU preflight: %w: there is no program for it", berth.ErrUnsupported)
	}
	if program, err = p.cfg.Preflight(); err != nil {
		return "", nil, fmt.Errorf("GPU preflight: %w", err)
	}
	args = []string{PreflightName}
	for _, g := range grants {
		for _, n := range g.Nodes {
			at := n.Container
			if at == "" {
				at = n.Host
			}
			if !slices.Contains(args, at) {
				args = append(args, at)
			}
		}
	}
	return program, args, nil
}
