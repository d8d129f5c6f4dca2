package cdi

import (
	"path"
	"strings"
)

// LentVendor is the vendor of CDI devices that are one sandbox's, which an engine describes in a file of their own for as long as
// the sandbox is there.
const LentVendor = "lent.berth"

// LentName is the name of a sandbox's device, and of its file. Owners, sandboxes and vendors have no dot in their names; "*" is any.
func LentName(owner, sandbox, vendor string) string {
	return strings.Join([]string{"berth", owner, sandbox, vendor}, ".")
}

// IsLent reports whether a file has the name of a sandbox's: it says nothing of what the host has, and comes and goes with each task.
func IsLent(file string) bool {
	_, _, ok := LentTo(file)
	return ok
}

// LentTo is whose a file is that has the name of a sandbox's.
func LentTo(file string) (owner, sandbox string, ok bool) {
	parts := strings.Split(path.Base(file), ".")
	if len(parts) != 5 || parts[0] != "berth" || parts[4] != "yaml" {
		return "", "", false
	}
	return parts[1], parts[2], true
}
