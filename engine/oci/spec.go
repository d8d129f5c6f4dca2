package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/engine/oci/cgroup"
	"github.com/berth-project/berth/engine/oci/seccomp"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Docker's 14 capabilities, in its order.
var defaultCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

var (
	maskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
	}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// The defaults of a container.
const (
	defaultShm  = 64 << 20 // bytes
	defaultPIDs = 4096
	minMemory   = 6 << 20 // bytes: less cannot start anything, as on Docker
)

// prepare makes of a step all that the monitor needs to start it.
func (e *Engine) prepare(sb *wire.Sandbox, lent *grant.Set, step berth.StepSpec) (*wire.Start, error) {
	if err := berth.CheckID(step.ID); err != nil {
		return nil, err
	}
	layers, err := e.images.Layers(step.Image.ID)
	if err != nil {
		return nil, err
	}
	if err := checkStep(&step); err != nil {
		return nil, err
	}
	b := &builder{e: e, sb: sb, lent: lent, step: &step, spec: newSpec()}
	for _, part := range []func() error{b.process, b.caps, b.mounts, b.devices, b.grants, b.limits, b.seccomp, b.confine, b.network, b.sysctls} {
		if err := part(); err != nil {
			return nil, err
		}
	}
	raw, err := wire.EncodeSpec(b.spec)
	if err != nil {
		return nil, err
	}
	runtime := step.Runtime
	if runtime == "" {
		runtime = e.cfg.Runtime
	}
	return &wire.Start{Step: step, Spec: raw, Layers: layers, Runtime: runtime, DefaultSeccomp: step.Seccomp == "", Lent: lent.Nodes, Needed: lent.Needed, Places: b.places.String()}, nil
}

func newSpec() *specs.Spec {
	return &specs.Spec{
		Version: "1.0.2",
		Process: &specs.Process{NoNewPrivileges: true},
		Root:    &specs.Root{Path: "rootfs"},
		Linux:   &specs.Linux{Resources: &specs.LinuxResources{}},
	}
}

// builder makes the OCI runtime spec of one step.
type builder struct {
	e    *Engine
	sb   *wire.Sandbox
	lent *grant.Set
	step *berth.StepSpec
	spec *specs.Spec

	places strings.Builder // see wire.Start
}

func (b *builder) process() error {
	img, p := b.step.Image.Config, b.spec.Process
	p.Terminal = b.step.TTY
	p.Args = argv(img, b.step)
	if len(p.Args) == 0 && len(img.Cmd) > 0 {
		return fmt.Errorf("command: %w: beside an entrypoint of the step's own the image's command does not count; give one", berth.ErrInvalid)
	}
	if len(p.Args) == 0 || p.Args[0] == "" {
		return fmt.Errorf("command: %w: neither the step nor the image %s names one", berth.ErrInvalid, b.step.Image.Ref)
	}
	userSpec := b.step.User
	if userSpec == "" {
		userSpec = img.User
	}
	id, err := b.e.user(b.step.Image.ID, userSpec, b.step.Groups)
	if err != nil {
		return err
	}
	p.User = id.User
	p.Cwd = b.step.WorkingDir
	if p.Cwd == "" || p.Cwd == "." {
		p.Cwd = img.WorkingDir
	}
	if p.Cwd == "" {
		p.Cwd = "/"
	}
	if !path.IsAbs(p.Cwd) {
		return fmt.Errorf("workdir %q: %w: it is an absolute path in the container", p.Cwd, berth.ErrInvalid)
	}
	p.Cwd = path.Clean(p.Cwd)
	p.Env = b.env(id.Home)
	return b.rlimits()
}

// argv is entrypoint and command as Docker combines them.
func argv(img berth.ImageConfig, step *berth.StepSpec) []string {
	entry, cmd := step.Entrypoint, step.Command
	if entry == nil {
		entry = img.Entrypoint
		if cmd == nil {
			cmd = img.Cmd
		}
	}
	return append(slices.Clone(entry), cmd...)
}

func (b *builder) env(home string) []string {
	env := mergeEnv(nil, b.step.Image.Config.Env)
	env = mergeEnv(env, b.step.Env)
	var add []string
	if !hasEnv(env, "PATH") {
		add = append(add, "PATH="+defaultPath)
	}
	add = append(add, "HOSTNAME="+b.hostname())
	if b.step.TTY {
		add = append(add, "TERM=xterm")
	}
	if !hasEnv(env, "HOME") {
		env = append(env, "HOME="+home)
	}
	return mergeEnv(add, env)
}

func (b *builder) hostname() string {
	if h := b.sb.Spec.Hostname; h != "" {
		return h
	}
	return b.sb.Spec.ID
}

func (b *builder) rlimits() error {
	for _, u := range b.step.Ulimits {
		hard := u.Hard
		if hard == 0 && u.Soft != 0 {
			hard = u.Soft
		}
		name := "RLIMIT_" + strings.ToUpper(u.Name)
		if !knownRlimits[name] {
			return fmt.Errorf("ulimit %q: %w: there is no such limit", u.Name, berth.ErrInvalid)
		}
		if u.Soft > hard && hard >= 0 || u.Soft < 0 && hard >= 0 {
			return fmt.Errorf("ulimit %s: %w: the soft limit %d is above the hard limit %d", u.Name, berth.ErrInvalid, u.Soft, hard)
		}
		b.spec.Process.Rlimits = append(b.spec.Process.Rlimits, specs.POSIXRlimit{Type: name, Soft: rlim(u.Soft), Hard: rlim(hard)})
	}
	return nil
}

func rlim(n int64) uint64 {
	if n < 0 {
		return math.MaxUint64
	}
	return uint64(n)
}

var knownRlimits = map[string]bool{
	"RLIMIT_AS": true, "RLIMIT_CORE": true, "RLIMIT_CPU": true, "RLIMIT_DATA": true, "RLIMIT_FSIZE": true, "RLIMIT_LOCKS": true,
	"RLIMIT_MEMLOCK": true, "RLIMIT_MSGQUEUE": true, "RLIMIT_NICE": true, "RLIMIT_NOFILE": true, "RLIMIT_NPROC": true, "RLIMIT_RSS": true,
	"RLIMIT_RTPRIO": true, "RLIMIT_RTTIME": true, "RLIMIT_SIGPENDING": true, "RLIMIT_STACK": true,
}

func (b *builder) caps() error {
	set, err := capSet(b.step.CapAdd, b.step.CapDrop)
	if err != nil {
		return err
	}
	c := &specs.LinuxCapabilities{Bounding: set}
	if b.spec.Process.User.UID == 0 {
		c.Effective, c.Permitted = set, set
	}
	b.spec.Process.Capabilities = c
	return nil
}

// capSet is Docker's default set, with some added and some dropped; what is dropped by name stays dropped.
func capSet(add, drop []string) ([]string, error) {
	all := knownCaps()
	set := map[string]bool{}
	for _, c := range defaultCaps {
		set[c] = true
	}
	addAll, dropAll := false, false
	names := func(list []string, each func(string)) error {
		for _, n := range list {
			name := strings.ToUpper(n)
			if name == "ALL" {
				each("ALL")
				continue
			}
			if !strings.HasPrefix(name, "CAP_") {
				name = "CAP_" + name
			}
			if !slices.Contains(all, name) {
				return fmt.Errorf("capability %q: %w: there is no such capability", n, berth.ErrInvalid)
			}
			each(name)
		}
		return nil
	}
	var adds, drops []string
	if err := names(add, func(c string) { addAll = addAll || c == "ALL"; adds = append(adds, c) }); err != nil {
		return nil, err
	}
	if err := names(drop, func(c string) { dropAll = dropAll || c == "ALL"; drops = append(drops, c) }); err != nil {
		return nil, err
	}
	if dropAll {
		clear(set)
	}
	own := ownCaps()
	if addAll { // all that there is to give
		for _, c := range all {
			set[c] = own[c]
		}
	}
	for _, c := range adds {
		if c != "ALL" && !own[c] {
			return nil, fmt.Errorf("capability %s: %w: berth itself does not have it here", c, berth.ErrDenied)
		}
		set[c] = true
	}
	for _, c := range drops {
		delete(set, c)
	}
	delete(set, "ALL")
	out := make([]string, 0, len(set))
	for _, c := range all {
		if set[c] && own[c] {
			out = append(out, c)
		}
	}
	return out, nil
}

func (b *builder) mounts() error {
	shm := b.step.ShmSize
	if shm == 0 {
		shm = defaultShm
	}
	pts := []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}
	if setgroupsDenied() {
		pts = pts[:len(pts)-1] // a namespace of one group has no group tty
	}
	ms := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: pts},
		b.sysMount(),
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(shm, 10)}},
	}
	var own []specs.Mount
	for p, dir := range b.sb.Volumes {
		own = append(own, specs.Mount{Destination: p, Type: "bind", Source: dir, Options: []string{"rbind", "rprivate", "nosuid", "nodev"}})
	}
	for _, m := range b.step.Mounts {
		om, err := mount(m)
		if err != nil {
			return err
		}
		own = append(own, om)
	}
	seen := map[string]bool{}
	for _, m := range own {
		if seen[m.Destination] {
			return fmt.Errorf("mount %s: %w: two mounts have this target", m.Destination, berth.ErrInvalid)
		}
		seen[m.Destination] = true
	}
	files := []string{"hosts", "hostname"}
	if b.sb.Spec.Network.Mode != berth.NetworkNone {
		files = append(files, "resolv.conf")
	}
	for _, name := range files {
		if p := "/etc/" + name; !seen[p] {
			if err := b.roomFor(p); err != nil {
				return err
			}
			own = append(own, specs.Mount{Destination: p, Type: "bind", Source: filepath.Join(b.sb.Files, name), Options: []string{"rbind", "rprivate", "nosuid", "nodev", "noexec"}})
		}
	}
	// What lies deeper comes later, or it would be hidden.
	sort.SliceStable(own, func(i, j int) bool { return depth(own[i].Destination) < depth(own[j].Destination) })
	ms = slices.DeleteFunc(ms, func(m specs.Mount) bool { return seen[m.Destination] })
	b.spec.Mounts = append(ms, own...)
	b.spec.Root.Readonly = b.step.ReadOnly
	b.spec.Linux.MaskedPaths, b.spec.Linux.ReadonlyPaths = maskedPaths, readonlyPaths
	return nil
}

// roomFor refuses a read-only mount on the directory of a file that berth puts there, which has no such file to cover.
func (b *builder) roomFor(p string) error {
	dir, name := path.Split(p)
	for _, m := range b.step.Mounts {
		if !m.ReadOnly || m.Type == berth.MountTmpfs || path.Clean(m.Target) != path.Clean(dir) {
			continue
		}
		if _, err := os.Lstat(filepath.Join(m.Source, name)); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("mount target %s: %w: what is to be mounted there, read-only, has no file %s, over which berth puts its own; add an empty one, or choose another path",
				path.Clean(dir), berth.ErrInvalid, name)
		}
	}
	return nil
}

func depth(p string) int { return strings.Count(path.Clean(p), "/") }

func mount(m berth.Mount) (specs.Mount, error) {
	if !path.IsAbs(m.Target) || path.Clean(m.Target) == "/" {
		return specs.Mount{}, fmt.Errorf("mount target %q: %w: it is an absolute path in the container, and not /", m.Target, berth.ErrInvalid)
	}
	om := specs.Mount{Destination: path.Clean(m.Target)}
	if grant.AsksByMount(om.Destination) {
		return om, fmt.Errorf("mount target %s: %w: it asks NVIDIA's runtime for GPUs; ask berth, with --gpus", om.Destination, berth.ErrInvalid)
	}
	switch m.Type {
	case "", berth.MountBind:
		if !filepath.IsAbs(m.Source) {
			return om, fmt.Errorf("mount source %q: %w: it is an absolute path on this host", m.Source, berth.ErrInvalid)
		}
		if _, err := os.Lstat(m.Source); err != nil {
			return om, fmt.Errorf("cannot mount input %s as it does not exist: %w: %w", m.Source, berth.ErrNotFound, err)
		}
		om.Type, om.Source, om.Options = "bind", m.Source, append([]string{"rbind", "rprivate"}, m.Options...)
		if m.ReadOnly {
			om.Options = append(om.Options, "ro")
			// With all that is mounted below, which is nothing for a file: there crun 1.8 looks for a directory. An old
			// runtime passes over what it does not know.
			if st, err := os.Stat(m.Source); err != nil || st.IsDir() {
				om.Options = append(om.Options, "rro")
			}
		}
	case berth.MountTmpfs:
		om.Type, om.Source, om.Options = "tmpfs", "tmpfs", append([]string{"nosuid", "nodev", "mode=1777"}, m.Options...)
		if m.Size > 0 {
			om.Options = append(om.Options, "size="+strconv.FormatInt(m.Size, 10))
		}
		if m.ReadOnly {
			om.Options = append(om.Options, "ro")
		}
	default:
		return om, fmt.Errorf("mount type %q: %w", m.Type, berth.ErrInvalid)
	}
	return om, nil
}

// devices gives the step its extra device nodes, and the rules that let it open them.
func (b *builder) devices() error {
	rules := append([]specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}, cgroup.DefaultDevices()...)
	for _, d := range b.step.Devices {
		node, rule, err := device(d)
		if err != nil {
			return err
		}
		b.spec.Linux.Devices = append(b.spec.Linux.Devices, node)
		rules = append(rules, rule)
	}
	b.spec.Linux.Resources.Devices = rules
	return nil
}

func rule(typ string, major, minor int64, access string) specs.LinuxDeviceCgroup {
	return specs.LinuxDeviceCgroup{Allow: true, Type: typ, Major: &major, Minor: &minor, Access: access}
}

func device(d berth.Device) (specs.LinuxDevice, specs.LinuxDeviceCgroup, error) {
	var st unix.Stat_t
	if err := unix.Stat(d.Host, &st); err != nil {
		return specs.LinuxDevice{}, specs.LinuxDeviceCgroup{}, fmt.Errorf("device %s: %w: %w", d.Host, berth.ErrNotFound, err)
	}
	node := specs.LinuxDevice{Path: d.Container, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev))}
	if node.Path == "" {
		node.Path = d.Host
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		node.Type = "c"
	case unix.S_IFBLK:
		node.Type = "b"
	default:
		return node, specs.LinuxDeviceCgroup{}, fmt.Errorf("device %s: %w: it is no device node", d.Host, berth.ErrInvalid)
	}
	mode := os.FileMode(st.Mode & 0o777)
	node.FileMode, node.UID, node.GID = &mode, &st.Uid, &st.Gid
	access := d.Permissions
	if access == "" {
		access = "rwm"
	}
	return node, rule(node.Type, node.Major, node.Minor, access), nil
}

func (b *builder) limits() error {
	lim := b.step.Limits
	whole := b.sb.Spec.Limits
	if lim.CPU == 0 {
		lim.CPU = whole.CPU
	}
	if lim.Memory == 0 {
		lim.Memory = whole.Memory
	}
	if lim.PIDs == 0 {
		lim.PIDs = whole.PIDs
	}
	if lim.PIDs == 0 {
		lim.PIDs = defaultPIDs
	}
	if lim.Memory != 0 && lim.Memory < minMemory {
		return fmt.Errorf("memory limit of %s: %w: nothing can start in less than %s", berth.FormatSize(lim.Memory), berth.ErrInvalid, berth.FormatSize(minMemory))
	}
	r := b.spec.Linux.Resources
	if lim.Memory > 0 {
		r.Memory = &specs.LinuxMemory{Limit: &lim.Memory, Swap: &lim.Memory}
	}
	if lim.CPU > 0 {
		period := uint64(100_000)
		quota := int64(math.Round(lim.CPU * float64(period)))
		r.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
	}
	r.Pids = &specs.LinuxPids{Limit: &lim.PIDs}
	return nil
}

func (b *builder) seccomp() error {
	if b.step.Seccomp == "unconfined" {
		return nil
	}
	bounding := b.spec.Process.Capabilities.Bounding
	if b.step.Seccomp != "" {
		p, err := seccomp.Load([]byte(b.step.Seccomp), bounding)
		b.spec.Linux.Seccomp = p
		return err
	}
	return nil // the monitor has Docker's default one
}

func (b *builder) network() error {
	l := b.spec.Linux
	for _, t := range []specs.LinuxNamespaceType{specs.PIDNamespace, specs.IPCNamespace, specs.MountNamespace, specs.UTSNamespace, specs.CgroupNamespace} {
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: t})
	}
	if b.sb.Spec.Network.Mode != berth.NetworkHost {
		l.Namespaces = append(l.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	}
	b.spec.Hostname = b.hostname()
	return nil
}

// sysctls takes those that belong to the container's own namespaces, as Docker does.
func (b *builder) sysctls() error {
	for k, v := range b.step.Sysctls {
		switch {
		case strings.HasPrefix(k, "net."):
			if b.sb.Spec.Network.Mode == berth.NetworkHost {
				return fmt.Errorf("sysctl %s: %w with the host's network", k, berth.ErrInvalid)
			}
		case strings.HasPrefix(k, "fs.mqueue."), ipcSysctls[k]:
		default:
			return fmt.Errorf("sysctl %s: %w: it is the whole host's; a container has its own of net.*, fs.mqueue.* and kernel.msg*, sem and shm*", k, berth.ErrInvalid)
		}
		if b.spec.Linux.Sysctl == nil {
			b.spec.Linux.Sysctl = map[string]string{}
		}
		b.spec.Linux.Sysctl[k] = v
	}
	return nil
}

var ipcSysctls = map[string]bool{
	"kernel.msgmax": true, "kernel.msgmnb": true, "kernel.msgmni": true, "kernel.sem": true, "kernel.shmall": true, "kernel.shmmax": true,
	"kernel.shmmni": true, "kernel.shm_rmid_forced": true, "kernel.domainname": true,
}
