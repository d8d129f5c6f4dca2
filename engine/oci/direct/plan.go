package direct

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/fds"
	"github.com/berth-project/berth/engine/oci/seccomp"
)

// plan turns a bundle into a program. It opens what lies on the host, and owns those descriptors until the
// child was made.
type plan struct {
	s      *Starter
	spec   *specs.Spec
	bundle *bundle.Bundle
	b      *builder
	view   *view
	root   arg // the container's root mount
	small  arg // of a hosted container: what hides masked paths; 0 is the forking thread's own root
	flags  uint64
	filter *seccomp.Filter
	userNS bool // the container has a user namespace of its own
	admin  bool // the container may mount and unmount
	notes  []string
	hosted bool // it has hooks: until they have run, its mount namespace shows the host's files
	inside bool // it has hooks that are run in this process
	usual  bool // its bounding set is part of usualCaps, and so is that of the thread that makes it
	// keepGroups: its processes have the supplementary groups of this process.
	keepGroups bool
	later      []func() // what comes after all mounts and devices

	early       *early               // clones of bind mounts
	sources     map[int]*unix.Stat_t // by index in spec.Mounts: what is mounted there
	threadNet   int                  // network namespace that the forking thread joins for the moment; -1 is none
	report      int                  // write end of the report pipe
	image       int                  // of berth's init, or the trampoline
	meetings    []meeting            // where the child waits for this process
	oom         string               // oom_score_adj that mapIDs sets
	tty         arg                  // the terminal; 0 is none
	consoleSock int                  // brings its master
	dirs        map[string]arg       // directories of the container that the child has open, by canonical path
	unusedMount arg
	hows        []unix.OpenHow
	howAt       []arg
	inherited   []int // descriptors that the child begins with
	sharesFiles bool  // it begins with those of this process itself: see leaveFiles
	owned       []int // those that are closed here afterwards
}

// own makes close close fd.
func (p *plan) own(fd int) { p.owned = append(p.owned, fd) }

func (p *plan) close() {
	p.closeOwned()
	if p.view != nil {
		p.view.forget()
	}
	for _, m := range p.meetings {
		_ = m.conn.Close()
	}
	p.s.builders.give(p.b)
}

func (p *plan) closeOwned() {
	for _, fd := range p.owned {
		_ = unix.Close(fd)
	}
	p.owned = nil
}

// note says something that is not as the spec wants it, and is allowed to be so.
func (p *plan) note(text string) { p.notes = append(p.notes, text) }

// inherit lets the child keep the descriptor.
func (p *plan) inherit(fd int) arg {
	if !slices.Contains(p.inherited, fd) {
		p.inherited = append(p.inherited, fd)
	}
	return arg(fd)
}

// near lets the child keep the descriptor, or a copy of it among the first ones where it copies all up to the last that it keeps.
func (p *plan) near(fd int) arg {
	if p.sharesFiles && fd >= fds.First {
		if first, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
			p.own(first)
			fd = first
		}
	}
	return p.inherit(fd)
}

// namespaceFlags are the flags of clone3 for new namespaces. A cgroup namespace is made by the child itself,
// after it has joined its cgroup.
var namespaceFlags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.MountNamespace: unix.CLONE_NEWNS, specs.IPCNamespace: unix.CLONE_NEWIPC,
	specs.UTSNamespace: unix.CLONE_NEWUTS, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.UserNamespace: unix.CLONE_NEWUSER,
}

// namespace finds a namespace of the spec.
func namespace(spec *specs.Spec, t specs.LinuxNamespaceType) (specs.LinuxNamespace, bool) {
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == t {
			return ns, true
		}
	}
	return specs.LinuxNamespace{}, false
}

// start plans the start of a container whose root is the mount root.
func (p *plan) start(ctx context.Context, rootFile *os.File) error {
	b, root := p.b, int(rootFile.Fd())
	caps, err := parseCapabilities(p.spec.Process.Capabilities)
	if err != nil {
		return err
	}
	p.admin = caps.any().has(capSysAdmin)
	p.root = p.inherit(root)
	p.view = &view{root: root, owner: -1, group: -1, b: b}
	if p.userNS {
		p.view.owner, p.view.group = int(p.hostUID(0)), int(p.hostGID(0))
	}
	if err := p.streamsFirst(); err != nil {
		return err
	}
	p.joinCgroups()
	if err := p.oomScore(p.spec.Process.OOMScoreAdj); err != nil {
		return err
	}
	if err := p.userNamespace(); err != nil {
		return err
	}
	if err := p.namespaces(); err != nil {
		return err
	}
	b.doing("begin session", "")
	b.call(unix.SYS_SETSID)
	p.keyring()
	b.doing("set umask", "")
	b.call(unix.SYS_UMASK, 0)
	if err := p.mountRoot(); err != nil {
		return err
	}
	if err := p.mounts(); err != nil {
		return err
	}
	if err := p.hookMounts(); err != nil {
		return err
	}
	if err := p.devices(); err != nil {
		return err
	}
	if err := p.terminal(p.root, p.spec.Process); err != nil {
		return err
	}
	if err := p.consoleMount(); err != nil {
		return err
	}
	if err := p.ready(ctx, rootFile); err != nil {
		return err
	}
	for _, f := range p.later {
		f()
	}
	p.names()
	if err := p.sysctls(); err != nil {
		return err
	}
	if cwd := p.spec.Process.Cwd; cwd != "" && cwd != "/" {
		// runc makes a working directory that is not there.
		if _, _, err := p.view.target(cwd, true); err != nil {
			return fmt.Errorf("working directory %w", err)
		}
	}
	p.readonlyPaths()
	p.maskedPaths()
	p.changeRoot()
	if err := p.streams(); err != nil {
		return err
	}
	p.control()
	if err := p.person(p.spec.Process); err != nil {
		return err
	}
	p.signals()
	p.command(p.spec.Process, p.bundle.Init)
	p.begin()
	return nil
}

// mountRoot adds the steps that mount the container's root.
func (p *plan) mountRoot() error {
	if p.hosted {
		return p.mountHosted()
	}
	p.b.doing("mount", "root")
	p.b.call(unix.SYS_MOVE_MOUNT, p.root, p.b.str(""), atCwd, p.b.str("/"), unix.MOVE_MOUNT_F_EMPTY_PATH)
	return nil
}

// begin adds what the child does first: it closes every descriptor that the program does not name.
func (p *plan) begin() {
	b := p.b
	b.prologue()
	b.doing("ask to die with berth", "")
	b.call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, arg(unix.SIGKILL), 0, 0, 0)
	b.doing("close berth's descriptors", "")
	slices.Sort(p.inherited)
	if p.sharesFiles {
		b.leaveFiles(p.inherited)
	}
	b.closeAllBut(0, p.inherited)
}

// leaveFiles adds the step with which a child that was made with CLONE_FILES gets descriptors of its own: no more than up
// to the last of those in keep, which are sorted. A monitor with many containers has hundreds, and to copy and close each
// would take as long as some mounts.
func (b *builder) leaveFiles(keep []int) {
	from := 0
	if len(keep) > 0 {
		from = keep[len(keep)-1] + 1
	}
	b.call(unix.SYS_CLOSE_RANGE, arg(from), arg(^uint32(0)), unix.CLOSE_RANGE_UNSHARE)
}

// closeAllBut adds the steps that close every descriptor from first on but those in keep, which are sorted.
func (b *builder) closeAllBut(first int, keep []int) {
	next := first
	for _, fd := range keep {
		if fd > next {
			b.call(unix.SYS_CLOSE_RANGE, arg(next), arg(fd-1), 0)
		}
		next = max(next, fd+1)
	}
	b.call(unix.SYS_CLOSE_RANGE, arg(next), arg(^uint32(0)), 0)
}

// keyring gives the child a session keyring of its own, so that berth's cannot be reached.
func (p *plan) keyring() {
	p.b.doing("join new session keyring", "")
	p.b.call(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, 0).ok(unix.ENOSYS)
}

// joinCgroups joins those of v1; that of v2 was joined by clone3.
func (p *plan) joinCgroups() {
	cg := p.bundle.Cgroup
	if cg == nil {
		return
	}
	zero := p.b.str("0")
	for _, f := range cg.JoinV1() {
		p.b.doing("join cgroup", f.Name())
		p.b.call(unix.SYS_WRITE, p.near(int(f.Fd())), zero, 1)
	}
}

// namespaces makes or joins the namespaces that clone3 has not made.
func (p *plan) namespaces() error {
	b := p.b
	if _, ok := namespace(p.spec, specs.CgroupNamespace); ok {
		b.doing("make cgroup namespace", "")
		b.call(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
	net, err := p.netNS()
	if err != nil {
		return err
	}
	switch {
	case p.flags&unix.CLONE_NEWNET != 0:
		p.loopback()
	case net < 0:
	case p.userNS:
		// The child has no power over a namespace from outside its user namespace: the thread that makes the
		// child joins it beforehand.
		p.threadNet = net
	default:
		b.doing("join network namespace", "")
		b.call(unix.SYS_SETNS, p.near(net), unix.CLONE_NEWNET)
	}
	return nil
}

// netNS is a descriptor of the network namespace to join; -1 where there is none.
func (p *plan) netNS() (int, error) {
	if p.bundle.NetNS != nil {
		return int(p.bundle.NetNS.Fd()), nil
	}
	ns, _ := namespace(p.spec, specs.NetworkNamespace)
	if ns.Path == "" {
		return -1, nil
	}
	fd, err := unix.Open(ns.Path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("network namespace %s: %w", ns.Path, err)
	}
	p.own(fd)
	return fd, nil
}

// loopback brings the loopback interface of a new network namespace up.
func (p *plan) loopback() {
	b := p.b
	b.doing("bring up", "lo")
	s := b.open(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	req := b.alloc(40) // struct ifreq
	copy(req, "lo")
	req[16] = unix.IFF_UP
	b.call(unix.SYS_IOCTL, s, unix.SIOCSIFFLAGS, address(req))
	b.call(unix.SYS_CLOSE, s)
}

// names sets the host and domain name.
func (p *plan) names() {
	b := p.b
	if h := p.spec.Hostname; h != "" {
		b.doing("set hostname", h)
		b.call(unix.SYS_SETHOSTNAME, b.str(h), arg(len(h)))
	}
	if d := p.spec.Domainname; d != "" {
		b.doing("set domain name", d)
		b.call(unix.SYS_SETDOMAINNAME, b.str(d), arg(len(d)))
	}
}

// sysctls sets kernel parameters, in the child's namespaces.
func (p *plan) sysctls() error {
	for _, key := range slices.Sorted(maps.Keys(p.spec.Linux.Sysctl)) {
		name, err := sysctlPath(key)
		if err != nil {
			return err
		}
		p.writeProc("set sysctl", "sys/"+name, p.spec.Linux.Sysctl[key], false)
	}
	return nil
}

// sysctlPath is the path of a kernel parameter below /proc/sys. Like sysctl(8): dots separate, and where
// slashes do, dots are part of a name.
func sysctlPath(key string) (string, error) {
	name := key
	if dot, slash := strings.IndexByte(key, '.'), strings.IndexByte(key, '/'); dot >= 0 && (slash < 0 || dot < slash) {
		name = strings.Map(func(r rune) rune {
			switch r {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return r
		}, key)
	}
	for c := range strings.SplitSeq(name, "/") {
		if c == "" || c == "." || c == ".." {
			return "", fmt.Errorf("sysctl %q: %w", key, berth.ErrInvalid)
		}
	}
	return name, nil
}

// changeRoot makes the container's root the child's. It is mounted upon the root of the mount namespace, so
// that every path that begins at a root, and every setns(2), comes to it; what lies under it is the forking
// thread's file system, and under that the machine's initial ramdisk.
//
// This is how an initial ramdisk is left. It is enough for a container that may not unmount: who has no
// CAP_SYS_ADMIN in the user namespace that owns the mounts cannot take the root off, and in a user namespace
// that it makes for itself the kernel locks all mounts. pivot_root(2) looks at every thread of the host, and
// detaching the old root afterwards waits for RCU: together a tenth of a start.
//
// A container that can have CAP_SYS_ADMIN gets pivot_root(2): it takes the thread's file system out of the
// container's mounts, and hands the lock, by which that lay upon the initial ramdisk, on to the new root. So does
// one with hooks, whose mount namespace has shown the host's files until now.
func (p *plan) changeRoot() {
	b := p.b
	b.doing("enter", "root")
	b.call(unix.SYS_FCHDIR, p.root)
	if p.admin || p.hosted {
		b.doing("pivot to", "root")
		dot := b.str(".")
		b.call(unix.SYS_PIVOT_ROOT, dot, dot)
		b.doing("detach", "thread's root")
		b.call(unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	} else {
		b.call(unix.SYS_CHROOT, b.str("."))
	}
	b.doing("enter", "/")
	b.call(unix.SYS_CHDIR, b.str("/"))
	if prop := p.spec.Linux.RootfsPropagation; prop == "shared" || prop == "unbindable" {
		b.doing("set propagation of", "root")
		attr := obj(b, unix.MountAttr{Propagation: propagations[prop]})
		b.call(unix.SYS_MOUNT_SETATTR, p.root, b.str(""), unix.AT_EMPTY_PATH, attr, sizeofMountAttr)
	}
	if p.spec.Root != nil && p.spec.Root.Readonly {
		p.makeReadOnly(p.root, "root")
	}
}

// signals gives the command the default actions and no blocked signals.
func (p *plan) signals() {
	b := p.b
	b.doing("reset signals", "")
	b.add(modeSignals, 0)
	b.call(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, obj(b, sigset{}), 0, arg(len(sigset{})))
}
