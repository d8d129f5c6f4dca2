package docker

import (
	"fmt"
	"os"
	"strings"
)

const noSource = "bind source path does not exist: "

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
	p := sharedPath(msg)
	if p == "" {
		return ""
	}
	if _, err := os.Lstat(p); err != nil {
		return ""
	}
	return fmt.Sprintf("Docker cannot access `%s`, but that path exists on this machine: with Docker Desktop, share it in Settings, Resources, File Sharing; a daemon on another machine has no such path (the daemon answered with status code 400)", p)
}
