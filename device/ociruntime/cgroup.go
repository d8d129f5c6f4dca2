package ociruntime

import (
	"os"
	"strings"

	"github.com/berth-project/berth/device/cdi/grant"
)

// ownGroup finds the cgroup of a container's process, where it is not that of who started it too.
func ownGroup(pid int) (grant.Group, bool) {
	g, err := grant.GroupOf(pid)
	if err != nil {
		return g, false
	}
	here, err := grant.GroupOf(os.Getpid())
	return g, err == nil && g.Dir != here.Dir && !strings.HasPrefix(here.Dir, g.Dir+"/")
}
