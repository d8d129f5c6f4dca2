package docker

import (
	"context"
	"os"
	"strconv"
	"strings"
)

// Pid is the container's first process, as far as the daemon runs on this host and the container runs: what the task
// was lent is not free before that has ended, whoever was killed. Else it is 0.
func (c *Container) Pid() int { return c.pid(context.Background()) }

func (c *Container) pid(ctx context.Context) int {
	if c.sb.away() {
		return 0
	}
	got, err := c.life.inspect(ctx, c.life.docker())
	if err != nil || isOver(got.State) || got.State.Pid <= 0 || !inCgroupOf(got.State.Pid, got.ID) {
		return 0
	}
	return got.State.Pid
}

// inCgroupOf reports whether a process is of the container with an ID. The daemon may count processes in another
// namespace, and the container may be gone: its number is another's then.
func inCgroupOf(pid int, id string) bool {
	own, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	return err == nil && strings.Contains(string(own), id)
}
