package network

import (
	"os"
	"strings"
)

// canRoute reports whether this process may change the host's links and rules at all: it is root, and not in
// a user namespace.
func canRoute() bool {
	if os.Geteuid() != 0 {
		return false
	}
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return true // a kernel without user namespaces
	}
	return strings.Join(strings.Fields(string(b)), " ") == "0 0 4294967295"
}
