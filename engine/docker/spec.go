package docker

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/scratch"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

const (
	defaultPIDs = 4096
)

// MinMemory is the least memory limit that daemons take, in bytes. Less is raised to it.
const MinMemory = 6 << 20

var ulimitNames = []string{"core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"}

// checkStep refuses what makes no sense before anything is made for it.
func checkStep(s *berth.StepSpec) error {
	if err := berth.CheckID(s.ID); err != nil {
		return err
	}
	if err := checkLimits(s.Limits); err != nil {
		return err
	}
	for _, kv := range s.Env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" {
			return fmt.Errorf("environment %q: %w: a variable is NAME=VALUE", kv, berth.ErrInvalid)
		}
	}
	for what, list := range map[string][]string{"command": s.Command, "entrypoint": s.Entrypoint, "environment": s.Env} {
		for _, v := range list {
			if strings.ContainsRune(v, 0) {
				return fmt.Errorf("%s %q: %w: it has a zero byte", what, v, berth.ErrInvalid)
			}
		}
	}
	if len(argv(s)) == 0 && len(s.Image.Config.Cmd) > 0 {
		return fmt.Errorf("command: %w: beside an entrypoint of the step's own the image's command does not count; give one", berth.ErrInvalid)
	}
	if len(argv(s)) == 0 {
		return fmt.Errorf("command: %w: neither the step nor the image has one", berth.ErrInvalid)
	}
	if s.StopSignal != "" {
		if _, err := berth.ParseSignal(s.StopSignal); err != nil {
			return fmt.Errorf("stop %w", err)
		}
	}
	if s.Timeout < 0 || s.Grace < 0 {
		return fmt.Errorf("timeout %s, grace %s: %w: they are not negative", s.Timeout, s.Grace, berth.ErrInvalid)
	}
	for _, m := range s.Mounts {
		if !path.IsAbs(m.Target) {
			return fmt.Errorf("mount at %q: %w: the target is an absolute path", m.Target, berth.ErrInvalid)
		}
		if grant.AsksByMount(path.Clean(m.Target)) {
			return fmt.Errorf("mount at %s: %w: it asks NVIDIA's runtime for GPUs; ask berth, with --gpus", m.Target, berth.ErrInvalid)
		}
	}
	for _, u := range s.Ulimits {
		if !slices.Contains(ulimitNames, u.Name) {
			return fmt.Errorf("ulimit %q: %w: it is one of %s", u.Name, berth.ErrInvalid, strings.Join(ulimitNames, ", "))
		}
	}
	if s.Seccomp != "" && s.Seccomp != "unconfined" {
		var profile map[string]any
		if err := json.Unmarshal([]byte(s.Seccomp), &profile); err != nil {
			return fmt.Errorf("seccomp profile: %w: %w", berth.ErrInvalid, err)
		}
	}
	if err := confinementOf(s).check(); err != nil {
		return err
	}
	if strings.Count(s.User, ":") > 1 {
		return fmt.Errorf("user %q: %w: it is USER or USER:GROUP", s.User, berth.ErrInvalid)
	}
	if s.Runtime == "direct" || s.Runtime == "auto" {
		return fmt.Errorf("runtime %q: %w: the daemon has only OCI runtimes", s.Runtime, berth.ErrUnsupported)
	}
	return nil
}

// signalNumber is the number of a signal by name or number; 0 is none.
func signalNumber(s string) int {
	sig, err := berth.ParseSignal(s)
	if err != nil {
		return 0
	}
	return int(sig)
}

// signalText is a signal as all daemons read it, by number: of the real-time signals they know some names alone. "" where it is none.
func signalText(s string) string {
	if n := signalNumber(s); n > 0 {
		return strconv.Itoa(n)
	}
	return ""
}

// argv is the command by the image's and the step's words.
func argv(s *berth.StepSpec) []string {
	entry, cmd := s.Entrypoint, s.Command
	if entry == nil {
		entry = s.Image.Config.Entrypoint
		if cmd == nil {
			cmd = s.Image.Config.Cmd
		}
	}
	return append(slices.Clone(entry), cmd...)
}

// mergeEnv is base with over laid over it: a variable keeps its place and gets its last value.
func mergeEnv(base, over []string) []string {
	var out []string
	at := map[string]int{}
	for _, kv := range slices.Concat(base, over) {
		k, _, _ := strings.Cut(kv, "=")
		if i, ok := at[k]; ok {
			out[i] = kv
			continue
		}
		at[k] = len(out)
		out = append(out, kv)
	}
	return out
}

func specHash(spec berth.StepSpec) (string, error) {
	raw, err := json.Marshal(spec)
	if err != nil {
		return "", fmt.Errorf("step %s: %w: %w", spec.ID, berth.ErrInvalid, err)
	}
	sum := sha256.Sum256(raw)
	return hex.EncodeToString(sum[:]), nil
}

// limits are the step's where it has them, else the sandbox's, else those that all have; and none less than the daemon
// takes.
func (s *Sandbox) limits(host *hostInfo, step berth.Limits) berth.Limits {
	l := s.asked(step)
	if l.PIDs == 0 {
		l.PIDs = defaultPIDs
	}
	if l.Memory > 0 && !host.podman { // which has none
		l.Memory = max(l.Memory, MinMemory)
	}
	return l
}

func (s *Sandbox) asked(step berth.Limits) berth.Limits {
	l := s.spec.Limits
	if step.CPU != 0 {
		l.CPU = step.CPU
	}
	if step.Memory != 0 {
		l.Memory = step.Memory
	}
	if step.PIDs != 0 {
		l.PIDs = step.PIDs
	}
	return l
}

// plan is what the daemon is asked for.
func (s *Sandbox) plan(ctx context.Context, host *hostInfo, step *berth.StepSpec, hash, name string) (opts client.ContainerCreateOptions, lent *lending, err error) {
	hc := &container.HostConfig{
		LogConfig:      host.log,
		NetworkMode:    container.NetworkMode(s.spec.Network.Mode),
		CapAdd:         step.CapAdd,
		CapDrop:        step.CapDrop,
		CgroupnsMode:   container.CgroupnsModePrivate,
		IpcMode:        container.IPCModePrivate,
		ExtraHosts:     plainHosts(s.spec.Network.Hosts),
		MaskedPaths:    maskedPaths(),
		ReadonlyPaths:  readonlyPaths(),
		GroupAdd:       s.groups(host, step),
		ReadonlyRootfs: step.ReadOnly,
		SecurityOpt:    []string{"no-new-privileges"},
		ShmSize:        step.ShmSize,
		Sysctls:        step.Sysctls,
		Runtime:        step.Runtime,
		Init:           new(!step.NoInit),
	}
	if s.spec.Network.Mode == berth.NetworkNone { // where the daemon gives the hostname no address
		hc.ExtraHosts = append(hc.ExtraHosts, s.hostname()+":127.0.1.1")
	}
	if step.Seccomp != "" {
		hc.SecurityOpt = append(hc.SecurityOpt, "seccomp="+step.Seccomp)
	}
	if err := s.e.refuseConfinement(ctx, confinementOf(step)); err != nil {
		return opts, nil, err
	}
	hc.SecurityOpt = append(hc.SecurityOpt, confinementOf(step).options()...)
	if step.Ephemeral {
		hc.LogConfig = container.LogConfig{Type: "none"}
	}
	if err := host.keeps.refuse(s.asked(step.Limits)); err != nil {
		return opts, nil, err
	}
	s.planLimits(hc, host, step)
	if s.away() && len(step.Devices) > 0 {
		return opts, nil, s.e.notHere("device " + step.Devices[0].Host)
	}
	if err := s.planMounts(ctx, hc, step); err != nil {
		return opts, nil, err
	}
	cfg := s.config(step, hash)
	if err := s.planPorts(cfg, hc); err != nil {
		return opts, nil, err
	}
	if len(s.spec.Grants) > 0 {
		if lent, err = s.lend(host, cfg, hc); err != nil {
			return opts, nil, err
		}
	}
	if err := s.planLone(host, cfg, hc, step.ID); err != nil {
		return opts, nil, fmt.Errorf("%w: %w", kindOf(err), err)
	}
	return client.ContainerCreateOptions{Config: cfg, HostConfig: hc, Name: name, Platform: s.e.imagePlatform(host, step.Image)}, lent, nil
}

// groups are the step's supplementary groups, with the one that the invoker works in. In containers of a daemon that is not
// root's that number is another group.
func (s *Sandbox) groups(host *hostInfo, step *berth.StepSpec) []string {
	own := strconv.Itoa(s.e.cfg.Group)
	if s.e.cfg.Group <= 0 || host.rootless || slices.Contains(step.Groups, own) {
		return step.Groups
	}
	return append(slices.Clone(step.Groups), own)
}

// maskedPaths are those of daemons of today; older ones mask less.
func maskedPaths() []string {
	return []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
}

func readonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}

// plainHosts are names with their addresses as daemons take them: of IPv6 without brackets.
func plainHosts(hosts []string) (plain []string) {
	for _, h := range hosts {
		name, address, _ := strings.Cut(h, ":")
		plain = append(plain, name+":"+strings.Trim(address, "[]"))
	}
	return plain
}

func (s *Sandbox) hostname() string {
	if s.spec.Hostname != "" {
		return s.spec.Hostname
	}
	return s.spec.ID
}

func (s *Sandbox) config(step *berth.StepSpec, hash string) *container.Config {
	labels := maps.Clone(step.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[LabelOwner], labels[LabelSandbox], labels[LabelStep], labels[labelSpec] = s.e.owner, s.spec.ID, step.ID, hash
	cfg := &container.Config{
		Hostname:     s.hostname(),
		User:         step.User,
		AttachStdout: true, AttachStderr: true,
		Tty:         step.TTY,
		Env:         grant.Void(mergeEnv(step.Image.Config.Env, step.Env)),
		Image:       step.Image.ID,
		WorkingDir:  step.WorkingDir,
		Entrypoint:  argv(step), // the whole: nothing of the image's is added
		Labels:      labels,
		StopSignal:  signalText(step.StopSignal),
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	}
	if cfg.WorkingDir == "." {
		cfg.WorkingDir = ""
	}
	if step.OpenStdin || step.Stdin != "" {
		cfg.OpenStdin, cfg.StdinOnce, cfg.AttachStdin = true, true, true
	}
	return cfg
}

func (s *Sandbox) planLimits(hc *container.HostConfig, host *hostInfo, step *berth.StepSpec) {
	l := s.limits(host, step.Limits)
	hc.NanoCPUs = int64(l.CPU * 1e9)
	hc.Memory = l.Memory
	if asked := s.asked(step.Limits).Memory; asked < l.Memory {
		s.e.cfg.Logger.Warn("memory limit raised to the daemon's minimum", "sandbox", s.spec.ID, "step", step.ID, "asked", asked, "minimum", l.Memory)
	}
	hc.MemorySwap = hc.Memory
	if host.keeps.pids {
		hc.PidsLimit = &l.PIDs
	}
	if disk := s.spec.Limits.Disk; disk > 0 && host.quota && !host.podman && s.e.mayQuota() {
		hc.StorageOpt = map[string]string{"size": strconv.FormatInt(disk, 10)} // bytes
	}
	for _, u := range step.Ulimits {
		hc.Ulimits = append(hc.Ulimits, &container.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	for _, d := range step.Devices {
		m := container.DeviceMapping{PathOnHost: d.Host, PathInContainer: d.Container, CgroupPermissions: d.Permissions}
		if m.PathInContainer == "" {
			m.PathInContainer = d.Host
		}
		if m.CgroupPermissions == "" {
			m.CgroupPermissions = "rwm"
		}
		hc.Devices = append(hc.Devices, m)
	}
	if host.cgroups {
		hc.CgroupParent = cgroupParent(s, step.ID)
	} else {
		hc.CgroupParent = s.spec.CgroupParent
	}
}

// defaultParent is the cgroup above those of steps.
const defaultParent = "/berth-docker"

// cgroupParent is a cgroup of the step's own above its container's, in which the kernel keeps what the
// container used when that is gone.
func cgroupParent(s *Sandbox, step string) string {
	above := s.spec.CgroupParent
	if above == "" {
		above = defaultParent
	}
	return path.Join("/", above, s.e.group+"-"+s.spec.ID+"-"+step)
}

var propagations = []string{"private", "rprivate", "shared", "rshared", "slave", "rslave"}

func (s *Sandbox) planMounts(ctx context.Context, hc *container.HostConfig, step *berth.StepSpec) error {
	if s.remote {
		return s.withRemote(func(r *remote) error { return r.planMounts(ctx, hc, step) })
	}
	for i, v := range s.spec.Volumes {
		m, err := s.mountVolume(ctx, i, v)
		if err != nil {
			return err
		}
		hc.Mounts = append(hc.Mounts, m)
	}
	return planOwn(hc, step, planMount)
}

// planOwn adds the mounts that a step names.
func planOwn(hc *container.HostConfig, step *berth.StepSpec, plan func(berth.Mount) (mount.Mount, error)) error {
	for _, m := range step.Mounts {
		if m.Type == berth.MountTmpfs && len(m.Options) > 0 {
			if hc.Tmpfs == nil {
				hc.Tmpfs = map[string]string{}
			}
			opts := m.Options
			if m.Size > 0 {
				opts = append(slices.Clone(opts), "size="+strconv.FormatInt(m.Size, 10))
			}
			hc.Tmpfs[path.Clean(m.Target)] = strings.Join(opts, ",")
			continue
		}
		dm, err := plan(m)
		if err != nil {
			return err
		}
		hc.Mounts = append(hc.Mounts, dm)
	}
	return nil
}

func planMount(m berth.Mount) (mount.Mount, error) {
	dm := mount.Mount{Type: mount.TypeBind, Source: m.Source, Target: path.Clean(m.Target), ReadOnly: m.ReadOnly}
	switch m.Type {
	case "", berth.MountBind:
		if !filepath.IsAbs(m.Source) {
			return dm, fmt.Errorf("bind at %s: %w: its source %q is no absolute path", m.Target, berth.ErrInvalid, m.Source)
		}
		dm.BindOptions = &mount.BindOptions{}
		for _, o := range m.Options {
			switch {
			case slices.Contains(propagations, o):
				dm.BindOptions.Propagation = mount.Propagation(o)
			case o == "ro":
				dm.ReadOnly = true
			case o == "bind":
				dm.BindOptions.NonRecursive = true
			case o != "rbind" && o != "rw":
				return dm, fmt.Errorf("bind at %s: option %q: %w on this engine", m.Target, o, berth.ErrUnsupported)
			}
		}
	case berth.MountTmpfs:
		dm.Type, dm.Source = mount.TypeTmpfs, ""
		dm.TmpfsOptions = &mount.TmpfsOptions{SizeBytes: m.Size}
	default:
		return dm, fmt.Errorf("mount at %s: %w: it is a %s or a %s, not %q", m.Target, berth.ErrInvalid, berth.MountBind, berth.MountTmpfs, m.Type)
	}
	return dm, nil
}

// mountVolume binds a volume's directory. What is to be copied up is bound as a volume of the daemon's, which
// then fills it from the image while it is empty.
func (s *Sandbox) mountVolume(ctx context.Context, i int, v berth.Volume) (mount.Mount, error) {
	dir, err := s.area.Volume(scratch.VolumeName(i, v.Path))
	if err != nil {
		return mount.Mount{}, err
	}
	if !v.CopyUp || s.filled() {
		return mount.Mount{Type: mount.TypeBind, Source: dir, Target: v.Path}, nil
	}
	// Not the name of one that an earlier sandbox of this ID had to leave: see removeVolume.
	var st unix.Stat_t
	if err := unix.Stat(s.e.sandboxDir(s.spec.ID), &st); err != nil {
		return mount.Mount{}, err
	}
	name := fmt.Sprintf("berth-%s-%s-v%d-%x", s.e.owner, s.spec.ID, i, st.Ino)
	ctx, cancel := s.e.call(ctx)
	defer cancel()
	_, err = s.e.api().VolumeCreate(ctx, client.VolumeCreateOptions{
		Name: name, Driver: "local",
		DriverOpts: map[string]string{"type": "none", "o": "bind", "device": dir},
		Labels:     map[string]string{LabelOwner: s.e.owner, LabelSandbox: s.spec.ID},
	})
	if err != nil {
		return mount.Mount{}, wrap(ctx, "volume "+v.Path, err)
	}
	return mount.Mount{Type: mount.TypeVolume, Source: name, Target: v.Path}, nil
}

// checkPorts refuses ports that the daemon would take, and publish none of.
func checkPorts(n berth.Network) error {
	if len(n.Ports) == 0 {
		return nil
	}
	switch n.Mode {
	case berth.NetworkNone:
		return fmt.Errorf("published ports: %w: there is no network to reach the container by; give --network bridge, or a network of the daemon's", berth.ErrInvalid)
	case berth.NetworkHost:
		return fmt.Errorf("published ports: %w: with the host's network the container's ports are the host's; leave them out, or give --network bridge", berth.ErrInvalid)
	case berth.NetworkBridge: // and the daemon's own
	}
	for _, p := range n.Ports {
		if p.HostIP == "" {
			continue
		}
		if _, err := netip.ParseAddr(p.HostIP); err != nil {
			return fmt.Errorf("published port %d: %w: %w", p.Container, berth.ErrInvalid, err)
		}
	}
	for i, p := range n.Ports {
		if slices.ContainsFunc(n.Ports[:i], func(o berth.Port) bool { return samePort(o, p) }) {
			return fmt.Errorf("published port %d: %w: the host's port %d is published twice; it leads to one port of one container", p.Container, berth.ErrInvalid, p.Host)
		}
	}
	return nil
}

// samePort reports whether two ports are to be the same one of the host.
func samePort(a, b berth.Port) bool {
	if a.Host == 0 || a.Host != b.Host || cmp.Or(a.Protocol, "tcp") != cmp.Or(b.Protocol, "tcp") {
		return false
	}
	if a.HostIP == "" || b.HostIP == "" {
		return true // of all addresses
	}
	x, y := netip.MustParseAddr(a.HostIP).Unmap(), netip.MustParseAddr(b.HostIP).Unmap()
	return x == y || x.Is4() == y.Is4() && (x.IsUnspecified() || y.IsUnspecified())
}

func (s *Sandbox) planPorts(cfg *container.Config, hc *container.HostConfig) error {
	for _, p := range s.spec.Network.Ports {
		proto := p.Protocol
		if proto == "" {
			proto = "tcp"
		}
		port, err := network.ParsePort(strconv.Itoa(int(p.Container)) + "/" + proto)
		if err != nil {
			return fmt.Errorf("port %d: %w: %w", p.Container, berth.ErrInvalid, err)
		}
		b := network.PortBinding{}
		if p.HostIP != "" {
			if b.HostIP, err = netip.ParseAddr(p.HostIP); err != nil {
				return fmt.Errorf("port %d: %w: %w", p.Container, berth.ErrInvalid, err)
			}
		}
		if p.Host != 0 {
			b.HostPort = strconv.Itoa(int(p.Host))
		}
		if cfg.ExposedPorts == nil {
			cfg.ExposedPorts, hc.PortBindings = network.PortSet{}, network.PortMap{}
		}
		cfg.ExposedPorts[port] = struct{}{}
		hc.PortBindings[port] = append(hc.PortBindings[port], b)
	}
	return nil
}
