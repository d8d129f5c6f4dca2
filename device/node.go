package device

import (
	"io/fs"
	"path/filepath"
)

// Private says whether a node is for its group and not for everybody: a user needs the group to open it.
func (n Node) Private() bool {
	const everybody fs.FileMode = 0o006
	return n.GID != 0 && n.Mode&everybody != everybody
}

// HostPath returns where a path of the host is on this machine, for CDI's hostPath: "" where it is the same. A
// recorded host speaks of its own paths.
func (h *Host) HostPath(name string) string {
	if path := filepath.Join(h.root, name); !h.Recorded() && path != name {
		return path
	}
	return ""
}
