package ociruntime

import (
	"context"
	"os"
	"path/filepath"

	"github.com/berth-project/berth/device"
)

// names are those under which a program is the runtime or the hook, by its own name or its first argument: some engines
// take a program's path and no arguments, and Docker looks for NVIDIA's hook by its name.
var names = map[string]func(context.Context, Process) int{
	"oci-runtime": Runtime, "berth-oci-runtime": Runtime, "nvidia-container-runtime": Runtime,
	"oci-hook": Hook, "berth-oci-hook": Hook, "nvidia-container-runtime-hook": Hook,
}

// Main runs the runtime or the hook with the streams and environment of this process, if its arguments, of which the
// first is the program's name, call one; else it returns false. more may be nil; see Process.More.
func Main(args []string, more func(*device.Host) func(context.Context, []device.Device) ([]device.Device, error)) (exit int, is bool) {
	if len(args) == 0 {
		return 0, false
	}
	var run func(context.Context, Process) int
	rest := args[1:]
	if len(rest) > 0 {
		// First: a hook in a bundle names the file of this program, which may have the name of the runtime.
		if run = names[rest[0]]; run != nil {
			rest = rest[1:]
		}
	}
	if run == nil {
		run = names[filepath.Base(args[0])]
	}
	if run == nil {
		return 0, false
	}
	dir, err := os.Getwd()
	if err != nil {
		dir = "/" // a relative bundle is not found
	}
	p := Process{Args: rest, Env: os.Environ(), Dir: dir, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, More: more}
	return run(context.Background(), p), true
}
