package docker

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
	"github.com/moby/moby/client"
)

// hostInfo is what the engine must know of the daemon to start containers there.
type hostInfo struct {
	podman   bool   // it is Podman's service
	remote   bool   // it is on another machine
	above    bool   // it writes on this machine as a user of whose files this process can own and remove none
	oci      string // how Podman names its OCI runtime
	log      container.LogConfig
	cgroups  bool // this process can make and read the cgroups of its containers
	mend     bool // its log driver local leaves out newlines: see mender
	live     bool // it restarts without ending its containers
	runtimes []string
	cdiDirs  []string // whose CDI specs it injects; none where it cannot
	quota    bool     // its storage driver may be able to limit writable layers
	runtime  string   // "docker 20.10.24, runc 1.1.5"
	root     string   // the directory of its images and writable layers
	// ahead is by how much its clock is ahead of this machine's, give or take unsure. 0 where both may be the same.
	ahead, unsure time.Duration
	platform
}

// daemon asks once what the daemon is.
func (e *Engine) daemon(ctx context.Context) (*hostInfo, error) {
	e.mu.Lock()
	h := e.host
	e.mu.Unlock()
	if h != nil {
		return h, nil
	}
	ctx, cancel := e.call(ctx)
	defer cancel()
	asked := time.Now()
	info, err := e.api.Info(ctx, client.InfoOptions{})
	if err != nil {
		return nil, wrapHost(ctx, "docker info", err)
	}
	answered := time.Now()
	v, err := e.api.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, wrapHost(ctx, "docker version", err)
	}
	h = &hostInfo{
		podman:   slices.ContainsFunc(v.Components, func(c system.ComponentVersion) bool { return c.Name == podmanEngine }),
		log:      logConfig(info.Info.Plugins.Log, e.cfg.LogKeep),
		live:     info.Info.LiveRestoreEnabled,
		runtimes: slices.Sorted(maps.Keys(info.Info.Runtimes)),
		quota:    mayLimit(info.Info),
		cdiDirs:  info.Info.CDISpecDirs,
		runtime:  components(v),
		root:     info.Info.DockerRootDir,
		platform: parsePlatform(info.Info.OSType + "/" + info.Info.Architecture),
	}
	if h.podman { // which does not say where it reads them
		h.cdiDirs = cdi.DefaultDirs
	}
	h.live = h.live || h.podman // its containers are no children of its service
	for _, c := range v.Components {
		if name, ok := strings.CutPrefix(c.Name, "OCI Runtime ("); ok {
			h.oci = strings.TrimSuffix(name, ")")
		}
	}
	h.mend = !h.podman && apiBefore(v.APIVersion, 42)
	if h.remote = e.isElsewhere(ctx, info.Info, h.podman); h.remote {
		h.root, h.cdiDirs = "", nil
		h.ahead, h.unsure = clockAhead(info.Info.SystemTime, asked, answered)
		if h.podman {
			return nil, fmt.Errorf("docker: %w: Podman at %s, on another machine; berth runs tasks there on Docker alone", berth.ErrUnsupported, e.at.Host)
		}
	}
	rootless := slices.Contains(info.Info.SecurityOptions, "name=rootless")
	h.above = !h.remote && !h.podman && !rootless && os.Geteuid() != 0
	// With the systemd driver parents are slices, which are systemd's to make.
	h.cgroups = !h.remote && os.Geteuid() == 0 && info.Info.CgroupDriver == "cgroupfs" && !rootless
	e.mu.Lock()
	defer e.mu.Unlock()
	e.host = h
	return h, nil
}

// clockAhead is by how much a clock is ahead of this machine's, and how far that may be off: it said a time between two of
// this one's.
func clockAhead(said string, asked, answered time.Time) (ahead, unsure time.Duration) {
	at, err := time.Parse(time.RFC3339Nano, said)
	if err != nil || !at.Before(asked) && !at.After(answered) {
		return 0, 0
	}
	unsure = answered.Sub(asked) / 2
	return at.Sub(asked.Add(unsure)), unsure
}

// logConfig is how the daemon is to keep what a container writes, bounded: by the driver local, or what it has in that
// one's place.
func logConfig(drivers []string, keep int64) container.LogConfig {
	if !slices.Contains(drivers, "local") && slices.Contains(drivers, "k8s-file") {
		return container.LogConfig{Type: "k8s-file", Config: map[string]string{"max-size": strconv.FormatInt(keep, 10)}}
	}
	return container.LogConfig{Type: "local", Config: map[string]string{"max-size": strconv.FormatInt(keep/logFiles, 10), "max-file": strconv.Itoa(logFiles)}}
}

// logFiles is in how many files the daemon keeps a log: the oldest goes when they are full.
const logFiles = 4

// liveRestore reports whether the daemon lets its containers run while it is away.
func (e *Engine) liveRestore(ctx context.Context) bool {
	h, err := e.daemon(ctx)
	return err == nil && h.live
}

// mayLimit reports whether a storage driver may be able to limit writable layers: whether it can depends on how its
// file system is mounted, which only a try tells.
func mayLimit(i system.Info) bool {
	switch i.Driver {
	case "btrfs", "zfs", "devicemapper":
		return true
	}
	return slices.ContainsFunc(i.DriverStatus, func(s [2]string) bool { return s[0] == "Backing Filesystem" && s[1] == "xfs" })
}

// apiBefore reports whether a version of the API, "1.41", is before 1.minor.
func apiBefore(version string, minor int) bool {
	major, rest, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(rest)
	return err == nil && major == "1" && n < minor
}

// components names the daemon and what it is made of. Podman's parts say their names again, and more, in their versions:
// "conmon version 2.1.6, commit: unknown".
func components(v client.ServerVersionResult) string {
	name := "docker"
	var parts []string
	for _, c := range v.Components {
		switch c.Name {
		case "Engine":
		case podmanEngine:
			name = "podman"
		default:
			part, version := c.Name, firstLine(c.Version)
			if p, rest, ok := strings.Cut(version, " version "); ok {
				part = p
				version, _, _ = strings.Cut(rest, ",")
			}
			parts = append(parts, part+" "+version)
		}
	}
	return strings.Join(append([]string{name + " " + v.Version}, parts...), ", ")
}

// Info says what the daemon is and has.
func (e *Engine) Info(ctx context.Context) (berth.Info, error) {
	ctx, cancel := e.call(ctx)
	defer cancel()
	res, err := e.api.Info(ctx, client.InfoOptions{})
	if err != nil {
		return berth.Info{}, wrapHost(ctx, "docker info", err)
	}
	v, err := e.api.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return berth.Info{}, wrapHost(ctx, "docker version", err)
	}
	info := berth.Info{
		Name: "docker", Version: components(v),
		Total: berth.Limits{CPU: float64(res.Info.NCPU), Memory: res.Info.MemTotal},
	}
	for name := range res.Info.Runtimes {
		info.Runtime = append(info.Runtime, name)
	}
	slices.Sort(info.Runtime)
	if away, err := e.Elsewhere(ctx); err == nil && away != "" {
		info.Lacks = append(info.Lacks, berth.Lack{
			What: "mounts, devices, GPUs", Why: "the daemon at " + away + " is on another machine and has none of this one's",
			Remedy: "bring files by --input and --output; for GPUs, run berth there",
		})
	}
	for _, w := range res.Info.Warnings {
		info.Lacks = append(info.Lacks, berth.Lack{What: "docker", Why: strings.TrimPrefix(w, "WARNING: "), Remedy: "see the documentation of the daemon"})
	}
	return info, nil
}
