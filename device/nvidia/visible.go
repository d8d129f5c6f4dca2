package nvidia

import (
	"path"
	"slices"
	"strings"

	"github.com/berth-project/berth/device/cdi"
)

// MountRoot is where mounts of /dev/null name devices by their paths.
const MountRoot = "/var/run/nvidia-container-devices"

// Visible are the devices that a container asks for.
type Visible struct {
	// IDs are nil for a container without GPUs, "all", or names of devices; one empty name stands for the
	// driver's files without any device.
	IDs []string `json:"ids,omitempty"`
	// From says where they were named: "annotations", "mounts", "legacy image", or variables.
	From string `json:"from,omitempty"`
	// Ignored says what was named and does not count here, and which option decides that.
	Ignored string `json:"ignored,omitempty"`
}

// VisibleDevices returns the devices that a container asks for: by annotations, else by mounts, else by its
// environment, as far as the configuration accepts each.
func (cfg Config) VisibleDevices(c Container) Visible {
	if ids := annotated(c.Annotations, cfg.Runtime.Modes.CDI.AnnotationPrefixes); len(ids) > 0 {
		return Visible{IDs: ids, From: "annotations"}
	}
	var ignored string
	if ids := mountedDevices(c); len(ids) > 0 {
		if cfg.AcceptMounts {
			return Visible{IDs: ids, From: "mounts"}
		}
		ignored = "mounts below " + MountRoot + ": accept-nvidia-visible-devices-as-volume-mounts is false"
	}
	ids, from := cfg.fromEnv(c)
	if len(ids) > 0 && !cfg.acceptsEnv(c) {
		return Visible{Ignored: from + ": " + notAccepted}
	}
	if len(ids) == 0 {
		from = ""
	}
	return Visible{IDs: ids, From: from, Ignored: ignored}
}

const notAccepted = "the container is not privileged, and accept-nvidia-visible-devices-envvar-when-unprivileged is false"

func (cfg Config) acceptsEnv(c Container) bool { return c.Privileged || cfg.AcceptEnvUnprivileged }

// fromEnv reads the variables that name devices: those of swarm resources that are set, all of them, and
// NVIDIA_VISIBLE_DEVICES only if none is.
func (cfg Config) fromEnv(c Container) (ids []string, from string) {
	var names []string
	for name := range strings.SplitSeq(cfg.SwarmResource, ",") {
		name = strings.TrimSpace(name)
		if _, set := c.Env[name]; set && name != "" {
			names = append(names, name)
		}
	}
	if names == nil {
		names = []string{envVisible}
		if _, set := c.Env[envVisible]; !set && c.Legacy() {
			return []string{"all"}, "legacy image"
		}
	}
	return listed(c, names...), strings.Join(names, ",")
}

// listed reads lists of devices in variables. It returns nil if they name none or "void", and one empty name if
// "none" is the first word that is not a device. A device counts once, and where it is named last, as upstream.
func listed(c Container, names ...string) []string {
	var ids []string
	for _, name := range names {
		for id := range strings.SplitSeq(c.Env[name], ",") {
			if id = strings.TrimSpace(id); id != "" {
				ids = append(ids, id)
			}
		}
	}
	if slices.Contains(ids, "void") {
		return nil
	}
	for _, id := range ids {
		switch id {
		case "all":
			return []string{"all"}
		case "none":
			return []string{""}
		}
	}
	var once []string
	for i, id := range ids {
		if !slices.Contains(ids[i+1:], id) {
			once = append(once, id)
		}
	}
	return once
}

// annotated reads the values of those annotations whose keys have one of the prefixes, in the order of the keys.
func annotated(annotations map[string]string, prefixes []string) []string {
	var keys, ids []string
	for key := range annotations {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(key, p) }) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		ids = append(ids, strings.Split(annotations[key], ",")...)
	}
	return ids
}

// mounted returns what lies below MountRoot in the destinations of mounts of /dev/null, each once.
func mounted(c Container) []string {
	var names []string
	for _, m := range c.Mounts {
		if path.Clean(m.Source) != "/dev/null" {
			continue
		}
		name, ok := strings.CutPrefix(path.Clean(m.Destination), MountRoot+"/")
		if ok && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// mountedDevices returns the devices that mounts name. What lies below cdi/ is a CDI name, with or without its
// own slash before the device; one that is neither is left out.
func mountedDevices(c Container) []string {
	var ids []string
	for _, name := range mounted(c) {
		if strings.HasPrefix(name, "imex/") {
			continue
		}
		if qualified, ok := strings.CutPrefix(name, "cdi/"); ok {
			if !cdi.IsQualified(qualified) {
				parts := strings.SplitN(qualified, "/", 3)
				if len(parts) != 3 {
					continue
				}
				qualified = parts[0] + "/" + parts[1] + "=" + parts[2]
			}
			name = qualified
		}
		ids = append(ids, name)
	}
	return ids
}

// IMEXChannels returns the IMEX channels that a container asks for, by mounts, else by its environment. "all"
// is none of them: nobody says which there are.
func (cfg Config) IMEXChannels(c Container) []string {
	if cfg.Features.IgnoreIMEX {
		return nil
	}
	var channels []string
	for _, name := range mounted(c) {
		if channel, ok := strings.CutPrefix(name, "imex/"); ok && cfg.AcceptMounts {
			channels = append(channels, channel)
		}
	}
	if channels != nil || !cfg.acceptsEnv(c) {
		return channels
	}
	return channelsFromEnv(c)
}

func channelsFromEnv(c Container) []string {
	channels := listed(c, envIMEX)
	if slices.Equal(channels, []string{"all"}) {
		return nil
	}
	return channels
}
