package docker_test

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/runner"
)

// A lease on what a container has is held by the container's own process.
func TestPid(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{})
	_, c := begin(t, e, img, "sleep 1000")
	pid := c.(runner.Process).Pid()
	if root, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/pid"); err != nil || root == namespace(t) {
		t.Errorf("%d is no process of a container: %s, %v", pid, root, err)
	}
	if err := c.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	wait(t, c)
	if pid := c.(runner.Process).Pid(); pid != 0 {
		t.Errorf("a container that has ended is process %d", pid)
	}
}

func namespace(t *testing.T) string {
	t.Helper()
	own, err := os.Readlink("/proc/self/ns/pid")
	if err != nil || !strings.HasPrefix(own, "pid:") {
		t.Fatal(own, err)
	}
	return own
}
