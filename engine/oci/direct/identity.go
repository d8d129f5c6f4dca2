package direct

import (
	"encoding/binary"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// rlimitTypes are the resource limits by their names.
var rlimitTypes = map[string]int{
	"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
	"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE,
	"RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS,
	"RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

// The numbers of capabilities.
const (
	capSetPCap     = 8
	capSysAdmin    = 21
	capSysResource = 24
)

// person adds the steps that turn the child into the process of the spec, in runc's order: the process-wide
// settings, the seccomp profile where it needs privilege, the bounding set, groups and user, the working
// directory, the other capabilities, and last, right before the command, no_new_privs' seccomp profile.
// What runs between changing the user and executing the command must not need privileges.
func (p *plan) person(proc *specs.Process) error {
	b := p.b
	if err := p.limits(proc); err != nil {
		return err
	}
	caps, err := parseCapabilities(proc.Capabilities)
	if err != nil {
		return err
	}
	if gone := caps.limit(p.s.caps); gone != "" && !p.userNS {
		p.note("capabilities that berth itself lacks are left out: " + gone)
	}
	if proc.NoNewPrivileges {
		b.doing("set no_new_privs", "")
		b.call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	} else {
		// Without no_new_privs a profile needs CAP_SYS_ADMIN, which is about to go.
		p.seccomp()
	}
	if a := apparmor(proc); a != "" {
		p.writeProc("set AppArmor profile "+a+" for the command at", p.s.execAttr(), "exec "+a, true)
	}
	// Who enters a user namespace has a full one there.
	p.usual = !p.userNS && !p.s.inUserNS && !p.admin && !p.hosted && p.s.caps.has(capSetPCap) && caps.bounding&^usualCaps == 0
	begun := allCaps
	if p.usual {
		begun = usualCaps
	}
	b.dropBounding(begun&^caps.bounding, p.s.lastCap)
	p.user(&proc.User)
	p.chdir(proc.Cwd)
	b.setCaps(&caps)
	b.doing("set umask", "")
	b.call(unix.SYS_UMASK, arg(umaskOf(&proc.User)))
	p.dieWithParent()
	if proc.NoNewPrivileges {
		p.seccomp()
	}
	return nil
}

// apparmor is the AppArmor profile that the process asks for; "" where there is none to set.
func apparmor(proc *specs.Process) string {
	if proc.ApparmorProfile == "unconfined" {
		return ""
	}
	return proc.ApparmorProfile
}

// umaskOf is the process's umask: 0022 unless it says otherwise, as in runc.
func umaskOf(u *specs.User) uint32 {
	if u.Umask != nil {
		return *u.Umask & 0o777
	}
	return 0o022
}

func (p *plan) user(u *specs.User) {
	b := p.b
	b.doing("keep capabilities over the change of user", "")
	b.call(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	groups := b.alloc(4 * (len(u.AdditionalGids) + 1)) // never empty, so that it has an address
	for i, g := range u.AdditionalGids {
		binary.NativeEndian.PutUint32(groups[4*i:], g)
	}
	if !p.s.noSetgroups && !p.keepGroups {
		b.doing("set supplementary groups", "")
		b.call(unix.SYS_SETGROUPS, arg(len(u.AdditionalGids)), address(groups))
	}
	b.doing("set group", strconv.FormatUint(uint64(u.GID), 10))
	b.call(unix.SYS_SETRESGID, arg(u.GID), arg(u.GID), arg(u.GID))
	b.doing("set user", strconv.FormatUint(uint64(u.UID), 10))
	b.call(unix.SYS_SETRESUID, arg(u.UID), arg(u.UID), arg(u.UID))
	// The child may share its parent's memory, or hold a copy of it. Until it executes its command, nobody
	// who happens to have the container's user is to look into it. The change of user does so, too, but as
	// /proc/sys/fs/suid_dumpable says; and until capabilities are dropped below, they protect.
	b.doing("forbid dumps", "")
	b.call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	b.doing("stop keeping capabilities", "")
	b.call(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0, 0, 0, 0)
}

// chdir enters the working directory as the container's user, and makes sure that it lies inside the root:
// getcwd(2) of a directory that does not begins with "(unreachable)".
func (p *plan) chdir(cwd string) {
	b := p.b
	if cwd == "" {
		cwd = "/"
	}
	b.doing("enter working directory", cwd)
	b.call(unix.SYS_CHDIR, b.str(cwd))
	buf := b.alloc(unix.PathMax)
	b.doing("find within the root working directory", cwd)
	b.call(unix.SYS_GETCWD, address(buf), arg(len(buf)))
	b.check(modeByte, buf, '/', unix.EXDEV)
}

// dieWithParent makes the child die with the thread that made it, and makes sure that it has not yet.
// A change of user or capabilities clears this setting.
func (p *plan) dieWithParent() {
	b := p.b
	b.doing("ask to die with berth", "")
	b.call(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, arg(unix.SIGKILL), 0, 0, 0)
	fds := unix.PollFd{Fd: int32(p.s.self), Events: unix.POLLIN}
	ready := b.open(unix.SYS_PPOLL, obj(b, fds), 1, obj(b, unix.Timespec{}), 0, 0)
	b.doing("find berth alive", "")
	b.add(modeEqual, 0, ready, 0, arg(unix.ESRCH))
}

// limits adds resource limits and the oom score. What this process may not set is set as far as it may, and
// noted.
func (p *plan) limits(proc *specs.Process) error {
	b := p.b
	may := p.s.caps.has(capSysResource) && !p.s.inUserNS && !p.userNS
	for _, l := range proc.Rlimits {
		kind, ok := rlimitTypes[l.Type]
		if !ok {
			return fmt.Errorf("resource limit %q: %w", l.Type, berth.ErrUnsupported)
		}
		want := unix.Rlimit{Cur: l.Soft, Max: l.Hard}
		if !may {
			var own unix.Rlimit
			if err := unix.Prlimit(0, kind, nil, &own); err != nil {
				return fmt.Errorf("resource limit %s: %w", l.Type, err)
			}
			if want.Max > own.Max {
				want.Max = own.Max
				want.Cur = min(want.Cur, own.Max)
				p.note(fmt.Sprintf("%s is %d:%d instead of %d:%d: raising it needs CAP_SYS_RESOURCE", l.Type, want.Cur, want.Max, l.Soft, l.Hard))
			}
		}
		b.doing("set resource limit", l.Type)
		b.call(unix.SYS_PRLIMIT64, 0, arg(kind), obj(b, want), 0)
	}
	return nil
}

// oomScore adds the steps that set the oom score.
func (p *plan) oomScore(score *int) error {
	if score == nil {
		return nil
	}
	want := *score
	if !p.s.caps.has(capSysResource) || p.s.inUserNS {
		own, err := readInt("/proc/self/oom_score_adj")
		if err != nil {
			return fmt.Errorf("read own oom_score_adj: %w", err)
		}
		if want < own {
			p.note(fmt.Sprintf("oom_score_adj is %d instead of %d: lowering it needs CAP_SYS_RESOURCE", own, want))
			want = own
		}
	}
	if p.userNS && p.flags&unix.CLONE_NEWUSER != 0 {
		// The child has no power over its own score; whoever maps its ids has.
		p.oom = strconv.Itoa(want)
		return nil
	}
	p.writeProc("set oom_score_adj", "self/oom_score_adj", strconv.Itoa(want), true)
	return nil
}

func readInt(name string) (int, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(data)))
}

// writeProc adds the steps that write a file of the host's /proc. It is opened below a descriptor of a proc
// file system that berth mounted for itself, so that nothing can be in its place, and is checked to be of
// procfs once more. self says that the name leads through the link "self".
func (p *plan) writeProc(verb, name, value string, self bool) {
	b := p.b
	b.doing(verb, name)
	h := unix.OpenHow{
		Flags:   unix.O_WRONLY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
	}
	if !self {
		h.Resolve |= unix.RESOLVE_NO_SYMLINKS
	}
	fd := b.open(unix.SYS_OPENAT2, p.inherit(p.s.proc), b.str(name), obj(b, h), unix.SizeofOpenHow)
	st := b.alloc(statfsSize)
	b.call(unix.SYS_FSTATFS, fd, address(st))
	b.check(modeWord, st, unix.PROC_SUPER_MAGIC, unix.EXDEV)
	b.call(unix.SYS_WRITE, fd, b.str(value), arg(len(value)))
	b.call(unix.SYS_CLOSE, fd)
}

// execAttr is the file of /proc that takes the AppArmor profile of the next command.
func (s *Starter) execAttr() string {
	if _, err := os.Stat("/proc/self/attr/apparmor/exec"); err == nil {
		return "thread-self/attr/apparmor/exec"
	}
	return "thread-self/attr/exec"
}

// statfsSize is at least the size of struct statfs, in bytes; its first eight are the type.
const statfsSize = 256

// seccomp adds the step that installs the profile.
func (p *plan) seccomp() {
	f := p.filter
	if f == nil {
		return
	}
	b := p.b
	prog := unix.SockFprog{Len: uint16(len(f.Program)), Filter: &f.Program[0]}
	b.keep = append(b.keep, f)
	b.doing("install seccomp profile", "")
	b.call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, arg(f.Flags), obj(b, prog))
}
