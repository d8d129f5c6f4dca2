package docker

import (
	"fmt"
	"os"
	"strings"
)

// ownHook is how berth's own hook begins what it says, and lentTo what it says where a GPU has been lent.
const (
	ownHook = "oci-hook: GPU "
	lentTo  = "it is lent to "
)

const (
	noSource     = "bind source path does not exist: "
	unseenSource = `invalid mount config for type "bind": stat /`
)

// sharedPath is the path of this machine that a daemon's error means, where it says that a bind's source is not there.
// Docker Desktop's daemon runs in a virtual machine, which has this machine's paths below /host_mnt.
func sharedPath(msg string) string {
	_, p, ok := strings.Cut(msg, noSource)
	if !ok {
		return ""
	}
	p, _, _ = strings.Cut(p, "\n")
	p = strings.TrimSpace(p)
	if rest, ok := strings.CutPrefix(p, "/host_mnt/"); ok {
		return "/" + rest
	}
	return p
}

// hint explains an error of the daemon that says too little. It is "" where there is nothing to explain.
func hint(msg string) string {
	if _, said, ok := strings.Cut(msg, ownHook); ok && strings.Contains(said, lentTo) {
		return "the daemon takes berth's own hook for NVIDIA's, which lends GPUs to containers by itself, and does not know those of berth's tasks: " +
			"put NVIDIA's hook in its place, or run the task with --engine oci"
	}
	if strings.Contains(msg, unseenSource) && strings.HasSuffix(msg, ": permission denied") {
		return "the daemon runs as a user who may not see that path, as a rootless one does: run berth as that user, or with a --data-dir that it may enter"
	}
	p := sharedPath(msg)
	if p == "" {
		return ""
	}
	if _, err := os.Lstat(p); err != nil {
		return ""
	}
	return fmt.Sprintf("Docker cannot access `%s`, but that path exists on this machine: with Docker Desktop, share it in Settings, Resources, File Sharing; a daemon on another machine has no such path (the daemon answered with status code 400)", p)
}
