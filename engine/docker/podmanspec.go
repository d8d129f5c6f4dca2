package docker

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// podmanSpec is what berth says of a container in the words of Podman's API (its SpecGenerator).
type podmanSpec struct {
	Name       string            `json:"name"`
	Image      string            `json:"image"`
	Entrypoint []string          `json:"entrypoint"`
	Env        map[string]string `json:"env"`
	// Without what Podman and its configuration add: container=podman, TERM.
	UnsetEnvAll bool              `json:"unsetenvall"`
	Terminal    bool              `json:"terminal"`
	Stdin       bool              `json:"stdin"`
	Labels      map[string]string `json:"labels"`
	StopSignal  int               `json:"stop_signal,omitempty"`
	User        string            `json:"user,omitempty"`
	Groups      []string          `json:"groups,omitempty"`
	WorkDir     string            `json:"work_dir,omitempty"`
	MakeWorkDir bool              `json:"create_working_dir"`
	Hostname    string            `json:"hostname"`
	Hosts       []string          `json:"hostadd,omitempty"`
	Runtime     string            `json:"oci_runtime,omitempty"`
	Init        bool              `json:"init"`
	Log         podmanLog         `json:"log_configuration"`
	// Health turns checks off, which need systemd.
	Health struct {
		Test []string
	} `json:"healthconfig"`
	Systemd        string                    `json:"systemd"`
	ManagePasswd   bool                      `json:"manage_password"` // false: users are those of the image
	ImageVolumes   string                    `json:"image_volume_mode"`
	Mounts         []specs.Mount             `json:"mounts,omitempty"`
	Volumes        []podmanVolume            `json:"volumes,omitempty"`
	Devices        []specs.LinuxDevice       `json:"devices,omitempty"`
	DeviceRules    []specs.LinuxDeviceCgroup `json:"device_cgroup_rule,omitempty"`
	ShmSize        int64                     `json:"shm_size"`
	StorageOpts    map[string]string         `json:"storage_opts,omitempty"`
	CapAdd         []string                  `json:"cap_add,omitempty"`
	CapDrop        []string                  `json:"cap_drop,omitempty"`
	Seccomp        string                    `json:"seccomp_profile_path"`
	AppArmor       string                    `json:"apparmor_profile,omitempty"`
	SELinux        []string                  `json:"selinux_opts,omitempty"`
	NoNewPrivs     bool                      `json:"no_new_privileges"`
	ReadOnly       bool                      `json:"read_only_filesystem"`
	Mask           []string                  `json:"mask,omitempty"`
	CgroupNS       podmanNamespace           `json:"cgroupns"`
	IpcNS          podmanNamespace           `json:"ipcns"`
	NetNS          podmanNamespace           `json:"netns"`
	Networks       map[string]struct{}       `json:"Networks,omitempty"`
	Ports          []podmanPort              `json:"portmappings,omitempty"`
	CgroupParent   string                    `json:"cgroup_parent,omitempty"`
	Sysctl         map[string]string         `json:"sysctl,omitempty"`
	ResourceLimits specs.LinuxResources      `json:"resource_limits"`
	Rlimits        []specs.POSIXRlimit       `json:"r_limits,omitempty"`
	OOMScoreAdj    int                       `json:"oom_score_adj"`
}

type podmanNamespace struct {
	Mode string `json:"nsmode"`
}

type podmanLog struct {
	Driver string `json:"driver"`
	Size   int64  `json:"size"` // bytes
}

type podmanVolume struct {
	Name, Dest string
}

type podmanPort struct {
	HostIP    string `json:"host_ip,omitempty"`
	Container uint16 `json:"container_port"`
	Host      uint16 `json:"host_port,omitempty"`
	Protocol  string `json:"protocol"`
}

// podmanShm is the size of /dev/shm that Docker gives. Podman's default is 1.5 MiB less.
const podmanShm = 64 << 20

// podmanSpecOf says in Podman's words what Docker is asked for. ErrUnsupported names what has no words here. dir is a
// directory for the seccomp profile.
func podmanSpecOf(opts client.ContainerCreateOptions, dir string) (*podmanSpec, error) {
	c, h := opts.Config, opts.HostConfig
	if left := slices.Concat(
		leftOver(*c, "Hostname", "User", "AttachStdin", "AttachStdout", "AttachStderr", "Tty", "OpenStdin", "StdinOnce", "Env", "Image", "WorkingDir",
			"Entrypoint", "Labels", "StopSignal", "Healthcheck", "ExposedPorts"),
		leftOver(*h, "LogConfig", "NetworkMode", "PortBindings", "CapAdd", "CapDrop", "CgroupnsMode", "ExtraHosts", "GroupAdd", "IpcMode", "OomScoreAdj",
			"ReadonlyRootfs", "SecurityOpt", "StorageOpt", "Tmpfs", "ShmSize", "Sysctls", "Runtime", "Mounts", "MaskedPaths", "ReadonlyPaths", "Init",
			"Memory", "NanoCPUs", "CgroupParent", "Devices", "DeviceCgroupRules", "DeviceRequests", "MemorySwap", "PidsLimit", "Ulimits"),
	); len(left) > 0 || opts.NetworkingConfig != nil || opts.Platform != nil {
		return nil, fmt.Errorf("%w on Podman: %s", berth.ErrUnsupported, strings.Join(left, ", "))
	}
	s := &podmanSpec{
		Name: opts.Name, Image: c.Image, Entrypoint: c.Entrypoint, Env: podmanEnv(c), UnsetEnvAll: true,
		Terminal: c.Tty, Stdin: c.OpenStdin, Labels: c.Labels, StopSignal: signalNumber(c.StopSignal),
		User: c.User, Groups: h.GroupAdd, WorkDir: c.WorkingDir, MakeWorkDir: true, Hostname: c.Hostname, Hosts: h.ExtraHosts,
		Runtime: h.Runtime, Init: h.Init != nil && *h.Init, Systemd: "false", ImageVolumes: "anonymous",
		ShmSize: h.ShmSize, StorageOpts: h.StorageOpt, CapAdd: h.CapAdd, CapDrop: h.CapDrop, ReadOnly: h.ReadonlyRootfs, Mask: h.MaskedPaths,
		CgroupNS: podmanNamespace{string(h.CgroupnsMode)}, IpcNS: podmanNamespace{string(h.IpcMode)},
		CgroupParent: h.CgroupParent, Sysctl: h.Sysctls, OOMScoreAdj: h.OomScoreAdj, Rlimits: podmanRlimits(h.Ulimits),
	}
	if s.ShmSize == 0 {
		s.ShmSize = podmanShm
	}
	if c.Healthcheck != nil {
		s.Health.Test = c.Healthcheck.Test
	}
	size, err := strconv.ParseInt(cmp.Or(h.LogConfig.Config["max-size"], "0"), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("size of the log: %w: %w", berth.ErrInvalid, err)
	}
	s.Log = podmanLog{Driver: h.LogConfig.Type, Size: size}
	s.limit(h)
	for _, f := range []func(*container.HostConfig) error{s.secure(dir), s.mount, s.network, s.devices} {
		if err := f(h); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// leftOver are the names of the fields of a struct that are set, apart from those that are known.
func leftOver(v any, known ...string) (names []string) {
	for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
		if !f.Anonymous && !slices.Contains(known, f.Name) && !reflect.ValueOf(v).FieldByIndex(f.Index).IsZero() {
			names = append(names, f.Name)
		}
	}
	return names
}

// podmanEnv is the environment as Docker has it. Podman keeps it as a map: its order is lost.
func podmanEnv(c *container.Config) map[string]string {
	env := map[string]string{"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
	if c.Tty {
		env["TERM"] = "xterm"
	}
	for _, kv := range c.Env {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	return env
}

// podmanRlimits are the limits asked for. Where any is, Podman as root raises those of files and processes to a million,
// which a host without CAP_SYS_RESOURCE refuses; so they are given too.
func podmanRlimits(us []*container.Ulimit) []specs.POSIXRlimit {
	var all []specs.POSIXRlimit
	for _, u := range us {
		all = append(all, specs.POSIXRlimit{Type: u.Name, Soft: uint64(u.Soft), Hard: uint64(u.Hard)}) // -1 is no limit, as the kernel has it
	}
	for name, resource := range map[string]int{"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC} {
		var own unix.Rlimit
		set := slices.ContainsFunc(all, func(r specs.POSIXRlimit) bool { return r.Type == name })
		if len(us) > 0 && !set && os.Geteuid() == 0 && unix.Getrlimit(resource, &own) == nil {
			most := min(own.Max, podmanRlimitMax(name))
			all = append(all, specs.POSIXRlimit{Type: name, Soft: most, Hard: most})
		}
	}
	return all
}

// podmanRlimitMax is what Podman's service raises its own limit to: no more is had from it without a privilege.
func podmanRlimitMax(name string) uint64 {
	if name == "nproc" {
		if raw, err := os.ReadFile("/proc/sys/kernel/pid_max"); err == nil {
			if n, err := strconv.ParseUint(strings.TrimSpace(string(raw)), 10, 64); err == nil {
				return n
			}
		}
	}
	return 1 << 20
}

func (s *podmanSpec) limit(h *container.HostConfig) {
	r := &s.ResourceLimits
	if h.NanoCPUs > 0 {
		r.CPU = &specs.LinuxCPU{Period: new(uint64(100_000)), Quota: new(h.NanoCPUs / 10_000)}
	}
	if h.Memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &h.Memory, Swap: &h.MemorySwap}
	}
	r.Pids = &specs.LinuxPids{Limit: h.PidsLimit}
}

// secure sets what confines. Podman's own seccomp profile lets a container make namespaces, so that Podman runs in
// Podman; it gets Docker's.
func (s *podmanSpec) secure(dir string) func(*container.HostConfig) error {
	return func(h *container.HostConfig) error {
		profile := ""
		for _, o := range h.SecurityOpt {
			k, v, _ := strings.Cut(o, "=")
			switch k {
			case "no-new-privileges":
				s.NoNewPrivs = v == "" || v == "true"
			case "seccomp":
				profile = v
			case "apparmor":
				s.AppArmor = v
			case "label":
				s.SELinux = append(s.SELinux, v)
			default:
				return fmt.Errorf("security option %s: %w on Podman", o, berth.ErrUnsupported)
			}
		}
		if profile == "unconfined" {
			s.Seccomp = profile
			return nil
		}
		if profile == "" {
			raw, err := json.Marshal(seccomp.DefaultProfile())
			if err != nil {
				return err
			}
			profile = string(raw)
		}
		var err error
		s.Seccomp, err = writeProfile(dir, profile)
		return err
	}
}

func (s *podmanSpec) mount(h *container.HostConfig) error {
	for _, m := range h.Mounts {
		switch m.Type {
		case mount.TypeVolume:
			s.Volumes = append(s.Volumes, podmanVolume{m.Source, m.Target})
		case mount.TypeTmpfs:
			var size int64
			if m.TmpfsOptions != nil {
				size = m.TmpfsOptions.SizeBytes
			}
			opts := []string{"nosuid", "nodev", "noexec"}
			if size > 0 {
				opts = append(opts, "size="+strconv.FormatInt(size, 10))
			}
			s.tmpfs(m.Target, opts)
		case mount.TypeBind:
			if _, err := os.Stat(m.Source); err != nil { // which Podman says in words of many kinds
				return fmt.Errorf("bind at %s: its source: %w: %w", m.Target, kindOfFile(err), err)
			}
			opts := []string{"rbind", "rprivate"}
			if b := m.BindOptions; b != nil {
				if b.NonRecursive {
					opts[0] = "bind"
				}
				if b.Propagation != "" {
					opts[1] = string(b.Propagation)
				}
			}
			if m.ReadOnly {
				opts = append(opts, "ro")
			}
			s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: m.Source, Destination: m.Target, Options: opts})
		default:
			return fmt.Errorf("mount at %s: type %s: %w on Podman", m.Target, m.Type, berth.ErrUnsupported)
		}
	}
	for target, opts := range h.Tmpfs {
		s.tmpfs(target, strings.Split(opts, ","))
	}
	return nil
}

// tmpfs adds one that is empty: Podman would fill it from the image.
func (s *podmanSpec) tmpfs(target string, opts []string) {
	s.Mounts = append(s.Mounts, specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: path.Clean(target), Options: append(opts, "notmpcopyup")})
}

func (s *podmanSpec) network(h *container.HostConfig) error {
	switch mode := string(h.NetworkMode); mode {
	case string(berth.NetworkNone), string(berth.NetworkHost), string(berth.NetworkBridge):
		s.NetNS.Mode = mode
	default:
		s.NetNS.Mode, s.Networks = "bridge", map[string]struct{}{mode: {}}
	}
	for port, bindings := range h.PortBindings {
		for _, b := range bindings {
			p := podmanPort{Container: port.Num(), Protocol: string(port.Proto())}
			if b.HostIP.IsValid() {
				p.HostIP = b.HostIP.String()
			}
			if b.HostPort != "" {
				n, err := strconv.ParseUint(b.HostPort, 10, 16)
				if err != nil {
					return fmt.Errorf("port %s: %w: %w", port, berth.ErrInvalid, err)
				}
				p.Host = uint16(n)
			}
			s.Ports = append(s.Ports, p)
		}
	}
	return nil
}

// devices adds device nodes, devices by their CDI names, and rules.
func (s *podmanSpec) devices(h *container.HostConfig) error {
	for _, d := range h.Devices {
		if strings.Contains(d.PathOnHost+d.PathInContainer, ":") {
			return fmt.Errorf("device %s: %w on Podman, which takes what follows the colon in its name for another path", d.PathOnHost, berth.ErrUnsupported)
		}
		s.Devices = append(s.Devices, specs.LinuxDevice{Path: d.PathOnHost + ":" + d.PathInContainer + ":" + d.CgroupPermissions})
	}
	for _, r := range h.DeviceRequests {
		if r.Driver != "cdi" {
			return fmt.Errorf("devices of driver %q: %w on Podman, which has only CDI", r.Driver, berth.ErrUnsupported)
		}
		for _, id := range r.DeviceIDs {
			s.Devices = append(s.Devices, specs.LinuxDevice{Path: id})
		}
	}
	for _, rule := range h.DeviceCgroupRules {
		r, err := deviceRule(rule)
		if err != nil {
			return err
		}
		s.DeviceRules = append(s.DeviceRules, r)
	}
	return nil
}

// deviceRule reads a rule, "c 10:229 rwm" or "c 10:* r".
func deviceRule(rule string) (specs.LinuxDeviceCgroup, error) {
	f := strings.Fields(rule)
	if len(f) != 3 {
		return specs.LinuxDeviceCgroup{}, fmt.Errorf("device rule %q: %w: it is a type, numbers and permissions", rule, berth.ErrInvalid)
	}
	r := specs.LinuxDeviceCgroup{Allow: true, Type: f[0], Access: f[2]}
	major, minor, _ := strings.Cut(f[1], ":")
	for _, n := range []struct {
		text string
		to   **int64
	}{{major, &r.Major}, {minor, &r.Minor}} {
		if n.text == "*" {
			continue
		}
		v, err := strconv.ParseInt(n.text, 10, 64)
		if err != nil {
			return r, fmt.Errorf("device rule %q: %w: %w", rule, berth.ErrInvalid, err)
		}
		*n.to = &v
	}
	return r, nil
}
