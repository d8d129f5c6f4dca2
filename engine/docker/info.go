package docker

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/system"
)

// hostInfo is what the engine must know of the daemon to start containers there.
type hostInfo struct {
	podman   bool   // it is Podman's service
	remote   bool   // it is on another machine
	above    bool   // it writes on this machine as a user of whose files this process can own and remove none
	rootless bool   // it is a user's who is not root
	keeps    limits // which limits it keeps
	log      container.LogConfig
	alone    bool // a container without a network is better made without the daemon's part of one: see planLone
	driver   cgroupDriver
	cgroups  bool // this process can make and read the cgroups of its containers
	mend     bool // its log driver local leaves out newlines: see mender
	live     bool // it restarts without ending its containers
	runtimes []string
	lends    bool     // its runtime "nvidia" is berth's
	cdiDirs  []string // whose CDI specs it injects; none where it cannot
	quota    bool     // its storage driver may be able to limit writable layers
	parts    *parts   // nil is not known yet; guarded by mu
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
	said, err := e.says(ctx, time.Minute)
	if err != nil {
		return nil, err
	}
	info := said.Info
	h = &hostInfo{
		podman:   said.podman,
		rootless: said.rootless,
		log:      logConfig(info.Plugins.Log, e.cfg.LogKeep),
		live:     info.LiveRestoreEnabled,
		runtimes: slices.Sorted(maps.Keys(info.Runtimes)),
		lends:    lendsItself(info),
		quota:    mayLimit(info),
		cdiDirs:  info.CDISpecDirs,
		root:     info.DockerRootDir,
		platform: parsePlatform(info.OSType + "/" + info.Architecture),
	}
	if h.podman { // which does not say where it reads them
		h.cdiDirs = cdi.DefaultDirs
	} else {
		h.parts = &parts{all: components(said.version), apparmor: confines(info.SecurityOptions, "apparmor"), selinux: confines(info.SecurityOptions, "selinux")}
	}
	h.live = h.live || h.podman // its containers are no children of its service
	h.mend = !h.podman && apiBefore(said.version.APIVersion, 42)
	if h.mend { // it unpacks all that it keeps each time that it is asked for its log, and leaves some out: see rotation
		h.log.Config["compress"] = "false"
	}
	if h.remote = e.isElsewhere(ctx, info, h.podman); h.remote {
		h.root, h.cdiDirs = "", nil
		h.ahead, h.unsure = clockAhead(info.SystemTime, said.asked, said.answered)
		if h.podman {
			return nil, fmt.Errorf("docker: %w: Podman at %s, on another machine; berth runs tasks there on Docker alone", berth.ErrUnsupported, e.at.Host)
		}
	}
	h.above = !h.remote && !h.podman && !h.rootless && os.Geteuid() != 0
	h.keeps = limitsOf(info, h)
	if h.driver.name = info.CgroupDriver; h.keeps.why == noRootless {
		h.driver.none = noRootless
	}
	h.alone = mayBeAlone(h, info, said.version.APIVersion)
	// With the systemd driver parents are slices, which are systemd's to make.
	h.cgroups = !h.remote && os.Geteuid() == 0 && info.CgroupDriver == "cgroupfs" && !h.rootless
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.host == nil { // one for all, as parts are added to it
		e.host = h
	}
	return e.host, nil
}

// lendsItself reports whether a daemon's runtime of NVIDIA's name is berth's own, which would lend once more what berth has lent.
func lendsItself(info system.Info) bool {
	return filepath.Base(info.Runtimes[driverNVIDIA].Path) == "berth-oci-runtime"
}

// limits are those that a daemon keeps: others it leaves out, with a warning.
type limits struct {
	cpu, memory, pids bool
	why               string // it does not keep all
}

const noRootless = "it runs as an ordinary user, whom cgroup v1 gives none: boot with cgroup v2 (systemd.unified_cgroup_hierarchy=1 on the kernel command line), " +
	"or take a daemon of root's"

func limitsOf(info system.Info, h *hostInfo) limits {
	switch {
	case h.rootless && info.CgroupVersion != "2": // Podman says that it does
		return limits{why: noRootless}
	case h.podman:
		return limits{cpu: true, memory: true, pids: true}
	}
	return limits{cpu: info.CPUCfsQuota, memory: info.MemoryLimit, pids: info.PidsLimit, why: "docker info tells what its host lacks"}
}

// refuse refuses limits that the daemon would leave out.
func (k limits) refuse(l berth.Limits) error {
	what := ""
	switch {
	case l.CPU > 0 && !k.cpu:
		what = "CPU limit"
	case l.Memory > 0 && !k.memory:
		what = "memory limit"
	case l.PIDs > 0 && !k.pids:
		what = "limit of processes"
	default:
		return nil
	}
	return fmt.Errorf("%s: %w: the daemon keeps none: %s", what, berth.ErrUnsupported, k.why)
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

// liveRestore reports whether the daemon lets its containers run while it is away. One that was away since it was first asked may
// have had that changed before.
func (e *Engine) liveRestore(ctx context.Context, away bool) bool {
	h, err := e.daemon(ctx)
	if err != nil || !h.live || !away || h.podman {
		return err == nil && h.live
	}
	ctx, cancel := e.call(ctx)
	defer cancel()
	now, err := e.says(ctx, 0)
	return err != nil || now.LiveRestoreEnabled
}

// ahead is by how much the daemon's clock is ahead of this machine's.
func (e *Engine) ahead(ctx context.Context) time.Duration {
	h, err := e.daemon(ctx)
	if err != nil {
		return 0
	}
	return h.ahead
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

// Info says what the daemon is and has. Podman's answer may be a minute old.
func (e *Engine) Info(ctx context.Context) (berth.Info, error) {
	ctx, cancel := e.call(ctx)
	defer cancel()
	said, err := e.says(ctx, time.Minute)
	if err != nil {
		return berth.Info{}, err
	}
	version := components(said.version)
	if said.podman {
		made, err := e.parts(ctx)
		if err != nil {
			return berth.Info{}, err
		}
		version = made.all
	}
	info := berth.Info{
		Name: "docker", Version: version,
		Total: berth.Limits{CPU: float64(said.NCPU), Memory: said.MemTotal},
	}
	for name := range said.Runtimes {
		info.Runtime = append(info.Runtime, name)
	}
	slices.Sort(info.Runtime)
	if away, err := e.Elsewhere(ctx); err == nil && away != "" {
		info.Lacks = append(info.Lacks, berth.Lack{
			What: "mounts, devices, GPUs", Why: "the daemon at " + away + " is on another machine and has none of this one's",
			Remedy: "bring files by --input and --output; for GPUs, run berth there",
		})
	}
	if h, err := e.daemon(ctx); err == nil && h.keeps.why == noRootless {
		info.Lacks = append(info.Lacks, berth.Lack{What: "limits of CPU, memory and processes", Why: "the daemon runs as an ordinary user, on cgroup v1", Remedy: "boot with cgroup v2, or take a daemon of root's"})
	}
	for _, w := range said.Warnings {
		info.Lacks = append(info.Lacks, berth.Lack{What: "docker", Why: strings.TrimPrefix(w, "WARNING: "), Remedy: "see the documentation of the daemon"})
	}
	return info, nil
}
