// Package direct starts containers from Go: no runtime binary, no re-execution, no cgo. See README.md for the
// method and what the kernel must have.
//
// It makes neither cgroups nor network namespaces, stores nothing, and keeps no logs: a bundle.Bundle brings
// what the container needs.
package direct

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/hook"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/direct/trampoline"
	"github.com/berth-project/berth/engine/oci/groups"
	"github.com/berth-project/berth/engine/oci/initbin"
	"github.com/berth-project/berth/engine/oci/rootfs"
	"github.com/berth-project/berth/engine/oci/seccomp"
)

// Config configures a Starter. The zero value works.
type Config struct {
	// Threads is how many containers may be in the course of being started at once; 0 is twice the CPUs,
	// at least 4. A thread is made when it is needed first.
	Threads int
}

// Starter starts containers. All methods may be called concurrently; but Close comes last, after every call of
// its own and of its processes.
type Starter struct {
	plain    *threads
	usual    *threads
	revealed *threads
	sealed   *threads
	hosted   *threads
	proc     int      // a mount of procfs that nothing else sees
	self     int      // pidfd of this process
	init     *os.File // berth's init
	jump     *os.File // the trampoline
	caps     capSet
	lastCap  int
	inUserNS bool
	hasKcore bool
	// noSetgroups: this user namespace forbids setgroups(2).
	noSetgroups bool
	// canShareFiles: close_range(2) makes a whole table of descriptors of one that is shared. Before Linux 6.11 it left marks of
	// those that were not copied (CVE-2024-45025), and before 5.18 too few of those that were.
	canShareFiles bool
	// hasAppArmor: profiles can be set. SELinux labels are refused by name.
	hasAppArmor bool
	filters     seccomp.Cache
	cgroups     hierarchies
	roots       roots
	builders    builders
	known       *known // fields of a spec
	programs    programs
	kept        hook.Kept
	params      func() (name string, contents []byte, ok bool, err error) // hook.Params
}

var _ bundle.Starter = (*Starter)(nil)

// New makes a Starter. ErrUnsupported: the kernel is too old, or this process may not make namespaces; the
// error says which.
func New(c Config) (*Starter, error) {
	if c.Threads == 0 {
		c.Threads = max(4, 2*runtime.NumCPU())
	}
	s := &Starter{plain: newThreads(c.Threads, kindPlain), usual: newThreads(c.Threads, kindUsual), revealed: newThreads(c.Threads, kindRevealed), sealed: newThreads(c.Threads, kindSealed), hosted: newThreads(c.Threads, kindHosted), proc: -1, self: -1, known: knownFields(supported), params: hook.Params}
	if err := s.open(); err != nil {
		s.closeFiles()
		return nil, fmt.Errorf("direct start: %w", err)
	}
	return s, nil
}

func (s *Starter) open() error {
	var err error
	if err := probe(); err != nil {
		return err
	}
	if err := s.openSelf(); err != nil {
		return err
	}
	if s.init, err = initbin.Memfd(); err != nil {
		return err
	}
	if s.jump, err = trampoline.Memfd(); err != nil {
		return err
	}
	if s.inUserNS, err = inUserNamespace(); err != nil {
		return err
	}
	if s.proc, err = openProc(); err != nil {
		return err
	}
	if s.caps, err = ownCaps(); err != nil {
		return err
	}
	if s.lastCap, err = readInt("/proc/sys/kernel/cap_last_cap"); err != nil {
		return err
	}
	_, err = os.Stat("/proc/kcore")
	s.hasKcore = err == nil
	s.hasAppArmor = hasAppArmor()
	s.noSetgroups = groups.Fixed()
	s.canShareFiles = since(6, 12)
	return nil
}

// openSelf opens the pidfd by which a child sees that this process lives.
func (s *Starter) openSelf() error {
	fd, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return fmt.Errorf("%w: pidfd_open: %w", berth.ErrUnsupported, err)
	}
	s.self, err = raise(fd)
	return err
}

// raise gives a descriptor a number that no command begins with, as a child keeps it until it executes its command.
func raise(fd int) (int, error) {
	defer func() { _ = unix.Close(fd) }()
	return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, highFd)
}

// probe reports which of the calls that every start needs this kernel lacks.
func probe() error {
	for _, c := range []struct {
		name  string
		nr    uintptr
		since string
	}{
		{"clone3", unix.SYS_CLONE3, "5.3"},
		{"openat2", unix.SYS_OPENAT2, "5.6"},
		{"close_range", unix.SYS_CLOSE_RANGE, "5.9"},
		{"mount_setattr", unix.SYS_MOUNT_SETATTR, "5.12"},
	} {
		// Arguments that make no sense: nothing happens, but for the errno.
		_, _, errno := syscall.RawSyscall6(c.nr, ^uintptr(0), 0, ^uintptr(0), ^uintptr(0), ^uintptr(0), 0)
		if errno == unix.ENOSYS {
			return fmt.Errorf("%w: the kernel has no %s; Linux %s has", berth.ErrUnsupported, c.name, c.since)
		}
	}
	return nil
}

// since reports whether the kernel is of that version or a later one.
func since(major, minor int) bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var a, b int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &a, &b); n != 2 {
		return false
	}
	return a > major || a == major && b >= minor
}

// openProc mounts procfs for this process alone; where that is not allowed, it takes /proc.
func openProc() (int, error) {
	if fs, err := unix.Fsopen("proc", unix.FSOPEN_CLOEXEC); err == nil {
		defer func() { _ = unix.Close(fs) }()
		if err := unix.FsconfigCreate(fs); err == nil {
			if fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NODEV); err == nil {
				return raise(fd)
			}
		}
	}
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, fmt.Errorf("open /proc: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil || int64(st.Type) != unix.PROC_SUPER_MAGIC {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("%w: /proc is no procfs", berth.ErrUnsupported)
	}
	return raise(fd)
}

// inUserNamespace reports whether this process is in a user namespace other than the first.
func inUserNamespace() (bool, error) {
	data, err := os.ReadFile("/proc/self/uid_map")
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return !slices.Equal(strings.Fields(string(data)), []string{"0", "0", "4294967295"}), nil
}

// Name is "direct".
func (s *Starter) Name() string { return "direct" }

// Start implements bundle.Starter. It blocks for some milliseconds and as long as hooks take, which end with ctx;
// otherwise it does not look at ctx once the child is made. Whatever it returns, the caller may close the files of b.
func (s *Starter) Start(ctx context.Context, b *bundle.Bundle) (bundle.Process, error) {
	if err := context.Cause(ctx); err != nil {
		return nil, err
	}
	filter, err := s.check(b.Spec)
	if err != nil {
		return nil, err
	}
	p := &plan{filter: filter, bundle: b, early: cloneEarly(b), inside: s.canInside(b.Spec)}
	defer p.early.close()
	proc, err := s.rootAndStart(ctx, p)
	if errors.Is(err, hook.ErrTooMuch) {
		// Overlay refuses to mount what was volatile before, as it could have lost something in a crash.
		if err := os.RemoveAll(filepath.Join(b.Root.Work, "work/incompat")); err != nil {
			return nil, err
		}
		b.Plain = nil // hooks have written to it
		return s.rootAndStart(ctx, &plan{filter: filter, bundle: b})
	}
	return proc, err
}

func (s *Starter) rootAndStart(ctx context.Context, p *plan) (bundle.Process, error) {
	mount := func() (*os.File, error) { return rootfs.Overlay(p.bundle.Root) }
	if p.bundle.Mount != nil {
		mount, p.bundle.Mount = p.bundle.Mount, nil
	}
	root, err := mount()
	if err != nil {
		return nil, err
	}
	proc, err := s.start(ctx, p, root)
	if err != nil {
		_ = root.Close()
		return nil, err
	}
	return proc, nil
}

func (s *Starter) start(ctx context.Context, p *plan, root *os.File) (*Process, error) {
	p.s, p.spec, p.b, p.dirs, p.threadNet = s, p.bundle.Spec, s.builders.take(), map[string]arg{}, -1
	defer p.close()
	report, w, err := pipe()
	if err != nil {
		return nil, err
	}
	r := &request{pin: true, netns: -1}
	err = s.prepare(ctx, p, r, w, root)
	if err == nil {
		err = s.make(p, r)
	}
	_ = w.Close()
	if err != nil {
		_ = report.Close()
		return nil, err
	}
	return s.started(p, r, root, report)
}

// prepare makes the program of the start.
func (s *Starter) prepare(ctx context.Context, p *plan, r *request, report, root *os.File) error {
	b := p.bundle
	p.report, p.image = int(report.Fd()), int(s.jump.Fd())
	if b.Init {
		p.image = int(s.init.Fd())
	}
	for _, ns := range b.Spec.Linux.Namespaces {
		p.flags |= namespaceFlags[ns.Type]
	}
	if ns, _ := namespace(b.Spec, specs.NetworkNamespace); b.NetNS != nil || ns.Path != "" {
		p.flags &^= unix.CLONE_NEWNET
	}
	p.userNS = p.flags&unix.CLONE_NEWUSER != 0
	p.sharesFiles = s.canShareFiles
	p.keepGroups = s.inUserNS && !p.userNS && b.Spec.Annotations[groups.Keep] != ""
	if p.hosted = hasHooks(b.Spec.Hooks) && !p.inside; p.hosted {
		if err := makeBundle(b); err != nil {
			return err
		}
	}
	if err := p.start(ctx, root); err != nil {
		return err
	}
	r.args.flags = p.flags | unix.CLONE_VM
	if p.sharesFiles {
		r.args.flags |= unix.CLONE_FILES
	}
	if b.Cgroup != nil {
		if dir := b.Cgroup.DirV2(); dir != nil {
			r.args.flags |= unix.CLONE_INTO_CGROUP
			r.args.cgroup = uint64(dir.Fd())
		}
	}
	r.netns = p.threadNet
	r.prog = p.b.finish()
	return nil
}

// Close ends every container that still runs, and frees what the starter holds.
func (s *Starter) Close() error {
	s.plain.close()
	s.usual.close()
	s.revealed.close()
	s.sealed.close()
	s.hosted.close()
	s.roots.close()
	s.closeFiles()
	return nil
}

func (s *Starter) closeFiles() {
	for _, f := range []*os.File{s.init, s.jump} {
		if f != nil {
			_ = f.Close()
		}
	}
	for _, fd := range []int{s.proc, s.self} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
}
