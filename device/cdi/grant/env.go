package grant

import (
	"slices"
	"strings"
)

// nothing is the value that grants no device, to what reads a container's environment for that.
const nothing = "void"

// nvidiaDevices is the variable by which NVIDIA's runtime and hook give devices to a container.
const nvidiaDevices = "NVIDIA_VISIBLE_DEVICES"

// Void is an environment that asks for no devices, whatever the image or the user say in it: an engine's default
// runtime may be one that gives containers what their environment names. What was lent comes by other ways.
// NVIDIA's variable is always set, as unset it can mean all; AMD's and those of a swarm where they are.
func Void(env []string) []string {
	env = slices.Clone(env)
	found := false
	for i, kv := range env {
		name, _, _ := strings.Cut(kv, "=")
		switch {
		case name == nvidiaDevices:
			found = true
		case name != "AMD_VISIBLE_DEVICES" && !strings.HasPrefix(name, "DOCKER_RESOURCE_"):
			continue
		}
		env[i] = name + "=" + nothing
	}
	if !found {
		env = append(env, nvidiaDevices+"="+nothing)
	}
	return env
}

// mountedDevices is where NVIDIA's runtime looks for mounts that ask for devices.
const mountedDevices = "/var/run/nvidia-container-devices"

// AsksByMount reports whether a mount at a path of the container asks NVIDIA's runtime for a device.
func AsksByMount(target string) bool { return strings.HasPrefix(target, mountedDevices) }
