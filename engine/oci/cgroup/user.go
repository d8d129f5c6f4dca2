package cgroup

import (
	"os"
	"strconv"
	"strings"
)

// ownsHost reports whether this process is not in a user namespace.
func ownsHost() bool {
	m := idMap()
	return m == nil || m[0] == 0 && m[1] == 0 && m[2] == 1<<32-1
}

// idMap is the first line of /proc/self/uid_map: first id inside, first id outside, count. nil where the
// kernel has no user namespaces.
func idMap() []int64 {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return nil
	}
	f := strings.Fields(string(b))
	if len(f) < 3 {
		return nil
	}
	m := make([]int64, 3)
	for i := range m {
		if m[i], err = strconv.ParseInt(f[i], 10, 64); err != nil {
			return nil
		}
	}
	return m
}

// swaps reports whether the host has swap space.
func swaps() bool {
	b, err := os.ReadFile("/proc/swaps")
	return err == nil && strings.Count(string(b), "\n") > 1
}
