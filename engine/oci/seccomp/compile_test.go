package seccomp_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/seccomp"
)

// audits are what the kernels of two machines report as a call's architecture, and one that neither does.
var audits = map[string][]uint32{
	"amd64": {unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_S390X},
	"arm64": {unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_S390X},
}

// numbers are every system call number there is, those beside, and the odd ones.
func numbers() []uint32 {
	var ns []uint32
	for _, base := range []uint32{0, 1 << 30, 1 << 31, 3 << 30} {
		for n := range uint32(600) {
			ns = append(ns, base+n)
		}
	}
	for n := range uint32(16) {
		ns = append(ns, 0xf0000+n, ^uint32(0)-n)
	}
	return ns
}

// grid is every argument at every value of interest, the others 0, and some random ones.
func grid(p *specs.LinuxSeccomp, r *rand.Rand) [][6]uint64 {
	values := []uint64{0, 1, 2, ^uint64(0), 1 << 31, 1 << 32, 0xffffffff}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				values = append(values, v, v-1, v+1, v|1<<32, v^1<<40, uint64(uint32(v)))
			}
		}
	}
	slices.Sort(values)
	values = slices.Compact(values)
	g := [][6]uint64{{}}
	for i := range 6 {
		for _, v := range values {
			var args [6]uint64
			args[i] = v
			g = append(g, args)
		}
	}
	for range 200 {
		var args [6]uint64
		for i := range args {
			args[i] = values[r.IntN(len(values))]
		}
		g = append(g, args)
	}
	return g
}

// same compares our program with the oracle's, call by call.
func same(t *testing.T, goarch string, p *specs.LinuxSeccomp, j judge) {
	t.Helper()
	f, err := seccomp.CompileFor(goarch, p)
	if err != nil {
		t.Fatal(err)
	}
	verify(t, f.Program)
	r := rand.New(rand.NewPCG(1, 2))
	all := grid(p, r)
	ruled := map[uint32]bool{102: true, 117: true} // socketcall and ipc of x86
	for _, s := range p.Syscalls {
		for a := range archNames {
			if nr, ok := seccomp.Number(a, s.Names[0]); ok && len(s.Args) > 0 {
				ruled[nr] = true
			}
		}
	}
	for _, arch := range audits[goarch] {
		for _, nr := range numbers() {
			args := all
			if !ruled[nr] {
				args = all[len(all)-2:]
			}
			for _, a := range args {
				d := &data{nr, arch, a}
				if got, want := run(f.Program, d), j.answer(d); got != want {
					t.Fatalf("%s: arch %#x, call %d (%#x), args %#x: answers %#x, libseccomp %#x\nprofile %s", goarch, arch, nr, nr, a, got, want, brief(p))
				}
			}
		}
	}
}

// brief is a profile for a message, cut where it is long.
func brief(p *specs.LinuxSeccomp) string {
	s := fmt.Sprintf("%+v", *p)
	return s[:min(len(s), 30000)]
}

// verify checks what the kernel checks when a filter is installed.
func verify(t *testing.T, program []unix.SockFilter) {
	t.Helper()
	for i, in := range program {
		left := len(program) - i - 1
		switch in.Code & 7 {
		case unix.BPF_JMP:
			if in.Code&0xf0 == unix.BPF_JA && int(in.K) >= left || in.Code&0xf0 != unix.BPF_JA && max(int(in.Jt), int(in.Jf)) >= left {
				t.Fatalf("instruction %d jumps out of the program", i)
			}
		case unix.BPF_RET:
		default:
			if left == 0 {
				t.Fatal("the last instruction is no return")
			}
		}
	}
	if len(program) > unix.BPF_MAXINSNS {
		t.Fatalf("%d instructions", len(program))
	}
}

// without returns the profile without the names that libseccomp does not know.
func without(p *specs.LinuxSeccomp, unknown []string) *specs.LinuxSeccomp {
	q := *p
	q.Syscalls = slices.Clone(p.Syscalls)
	for i := range q.Syscalls {
		q.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(q.Syscalls[i].Names), func(n string) bool { return slices.Contains(unknown, n) })
	}
	return &q
}

var capabilitySets = map[string][]string{
	"none":    nil,
	"docker":  {"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"},
	"admin":   {"CAP_SYS_ADMIN"},
	"various": {"CAP_SYS_PTRACE", "CAP_SYS_TIME", "CAP_SYS_NICE", "CAP_SYSLOG", "CAP_BPF", "CAP_DAC_READ_SEARCH", "CAP_SYS_MODULE", "CAP_SYS_RAWIO"},
}

func TestDefaultProfileDecidesAsLibseccomp(t *testing.T) {
	o := newOracle(t)
	for name, caps := range capabilitySets {
		for _, goarch := range []string{"amd64", "arm64"} {
			t.Run(name+"/"+goarch, func(t *testing.T) {
				t.Parallel()
				p, err := seccomp.Default(caps)
				if err != nil {
					t.Fatal(err)
				}
				if goarch == "arm64" {
					p.Architectures = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
				}
				j := o.judge(t, goarch, p)[0]
				p = without(p, j.unknown())
				same(t, goarch, p, o.judge(t, goarch, p)[0])
			})
		}
	}
}

func TestRandomProfilesDecideAsLibseccomp(t *testing.T) {
	o := newOracle(t)
	r := rand.New(rand.NewPCG(3, 4))
	for _, goarch := range []string{"amd64", "arm64"} {
		var profiles []*specs.LinuxSeccomp
		for range 40 {
			profiles = append(profiles, randomProfile(r, goarch, true))
		}
		broken := 0
		for i, j := range o.judge(t, goarch, profiles...) {
			if j.broken() {
				broken++
				continue
			}
			if len(j.unknown()) > 0 {
				t.Fatalf("libseccomp does not know %v", j.unknown())
			}
			same(t, goarch, profiles[i], j)
		}
		t.Logf("%s: libseccomp made %d broken programs of %d", goarch, broken, len(profiles))
		if broken > len(profiles)/4 {
			t.Errorf("too few programs were compared")
		}
	}
}

// randomProfile makes a profile. One for libseccomp has what libseccomp decides as its manual says: for each
// call, conditions joined by and, or one argument that equals one of several values. With other rules for one
// call it does not go on to the next when the second half of a comparison fails, and answers as if no rule were.
func randomProfile(r *rand.Rand, goarch string, libseccomp bool) *specs.LinuxSeccomp {
	p := &specs.LinuxSeccomp{}
	p.DefaultAction, p.DefaultErrnoRet = randomAction(r)
	archs := []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	if goarch == "arm64" {
		archs = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	}
	r.Shuffle(len(archs), func(i, j int) { archs[i], archs[j] = archs[j], archs[i] })
	p.Architectures = archs[:r.IntN(len(archs)+1)]
	values := []uint64{0, 1, 2, 38, 40, 0x7e020000, 0xffffffff, 1 << 32, 1<<32 | 1, 1 << 63, ^uint64(0)}
	names := []string{
		"read", "write", "clone", "socket", "connect", "accept", "recv", "sendto", "shmget", "semop", "msgctl", "socketcall", "ipc", "ioctl", "personality",
		"execve", "openat", "mmap", "mmap2", "fadvise64_64", "arm_fadvise64_64", "umount2", "faccessat2", "set_tls", "stat", "pwritev2", "preadv", "futex_time64", "uname",
	}
	r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	for _, name := range names[:r.IntN(len(names))] {
		s := specs.LinuxSyscall{Names: []string{name}}
		s.Action, s.ErrnoRet = randomAction(r)
		argument := func(index uint, op specs.LinuxSeccompOperator) specs.LinuxSeccompArg {
			return specs.LinuxSeccompArg{Index: index, Op: op, Value: values[r.IntN(len(values))], ValueTwo: values[r.IntN(len(values))]}
		}
		multiplexer := name == "socketcall" || name == "ipc"
		switch kind := r.IntN(4); {
		case !libseccomp:
			for range 1 + r.IntN(4) {
				for range r.IntN(4) {
					s.Args = append(s.Args, argument(uint(r.IntN(6)), operators[r.IntN(len(operators))]))
				}
				p.Syscalls = append(p.Syscalls, s)
				s.Args = nil
				s.Action, s.ErrnoRet = randomAction(r)
			}
			continue
		case kind == 0 || multiplexer:
		case kind == 1:
			i := uint(r.IntN(6))
			for range 1 + r.IntN(5) {
				s.Args = append(s.Args, argument(i, specs.OpEqualTo))
			}
		default:
			for _, i := range r.Perm(6)[:1+r.IntN(4)] {
				s.Args = append(s.Args, argument(uint(i), operators[r.IntN(len(operators))]))
			}
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

func randomAction(r *rand.Rand) (specs.LinuxSeccompAction, *uint) {
	actions := []specs.LinuxSeccompAction{
		specs.ActAllow, specs.ActAllow, specs.ActErrno, specs.ActErrno, specs.ActTrap, specs.ActLog, specs.ActTrace, specs.ActKillProcess, specs.ActKill, specs.ActKillThread,
	}
	a := actions[r.IntN(len(actions))]
	if e := uint(r.IntN(40)); e > 20 && (a == specs.ActErrno || a == specs.ActTrace) {
		return a, &e
	}
	return a, nil
}

// TestRandomRulesDecideAsDefined compares programs with the definition of a profile, for rules of any form.
func TestRandomRulesDecideAsDefined(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 100 {
		p := randomProfile(r, "amd64", false)
		p.Architectures = nil
		f, err := seccomp.CompileFor("amd64", p)
		if err != nil {
			t.Fatal(err)
		}
		verify(t, f.Program)
		args := grid(p, r)
		for _, s := range p.Syscalls {
			nr, ok := seccomp.Number(specs.ArchX86_64, s.Names[0])
			if !ok {
				continue
			}
			for _, a := range args {
				if got, want := run(f.Program, &data{nr, unix.AUDIT_ARCH_X86_64, a}), defined(p, s.Names[0], a); got != want {
					t.Fatalf("%s %#x: answers %#x, want %#x\nprofile %s", s.Names[0], a, got, want, brief(p))
				}
			}
		}
	}
}

// defined is the definition: the first rule without conditions; else of those that hold, the strictest; else the default.
func defined(p *specs.LinuxSeccomp, name string, args [6]uint64) uint32 {
	strictness := []uint32{0x80000000, 0, 0x30000, 0x50000, 0x7ff00000, 0x7ffc0000, 0x7fff0000}
	rank := func(a uint32) int { return slices.Index(strictness, a&0xffff0000) }
	def := action(p.DefaultAction, p.DefaultErrnoRet)
	answer, found := def, false
	for _, s := range p.Syscalls {
		act := action(s.Action, s.ErrnoRet)
		if s.Names[0] != name || act == def {
			continue
		}
		var count [6]int
		all, some, apart, trivial := true, false, false, true
		anyTrivial := false
		for _, a := range s.Args {
			count[a.Index]++
			apart = apart || count[a.Index] > 1
			ok := holds(a, args[a.Index])
			all, some = all && ok, some || ok
			none := a.Op == specs.OpMaskedEqual && a.Value == 0
			trivial, anyTrivial = trivial && none, anyTrivial || none
		}
		if !apart && trivial || apart && anyTrivial {
			return act
		}
		if (apart && some || !apart && all) && (!found || rank(act) < rank(answer)) {
			answer, found = act, true
		}
	}
	return answer
}

func holds(a specs.LinuxSeccompArg, v uint64) bool {
	switch a.Op {
	case specs.OpEqualTo:
		return v == a.Value
	case specs.OpNotEqual:
		return v != a.Value
	case specs.OpLessThan:
		return v < a.Value
	case specs.OpLessEqual:
		return v <= a.Value
	case specs.OpGreaterEqual:
		return v >= a.Value
	case specs.OpGreaterThan:
		return v > a.Value
	case specs.OpMaskedEqual:
		return v&a.Value == a.ValueTwo&a.Value
	}
	panic(a.Op)
}

// TestNumbers compares our tables with libseccomp's, where that knows a name.
func TestNumbers(t *testing.T) {
	o := newOracle(t)
	profile := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: seccomp.Names(), Action: specs.ActAllow}}}
	seen := 0
	for goarch, archs := range map[string][]specs.Arch{"amd64": {specs.ArchX86, specs.ArchX32}, "arm64": {specs.ArchARM}} {
		profile.Architectures = archs
		for n, theirs := range o.judge(t, goarch, profile)[0].numbers {
			if theirs < 0 {
				continue
			}
			seen++
			if ours, ok := seccomp.Number(archOf(n.arch), n.name); !ok || ours != uint32(theirs) {
				t.Errorf("%s on %s: %d (known: %v), libseccomp %d", n.name, n.arch, ours, ok, theirs)
			}
		}
	}
	if seen < 1500 {
		t.Errorf("libseccomp knew %d numbers; the test saw too few", seen)
	}
}

func TestNewCallsAreKnown(t *testing.T) {
	p, err := seccomp.Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	f, err := seccomp.CompileFor("amd64", p)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		nr   uint32
		want uint32
	}{
		{"read", 0, unix.SECCOMP_RET_ALLOW},
		{"futex_wake", 454, unix.SECCOMP_RET_ALLOW},
		{"mseal", 462, unix.SECCOMP_RET_ALLOW},
		{"clone3", 435, noSys},
		{"mount", 165, unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{"a call of the future", 600, noSys},
		{"socket(AF_VSOCK)", 41, unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
	} {
		if got := run(f.Program, &data{nr: c.nr, arch: unix.AUDIT_ARCH_X86_64, args: [6]uint64{40}}); got != c.want {
			t.Errorf("%s: answers %#x, want %#x", c.name, got, c.want)
		}
	}
}

func TestRulesThatContradictAnswerAsTheStrictest(t *testing.T) {
	is := func(v uint64) []specs.LinuxSeccompArg {
		return []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpGreaterEqual, Value: v}}
	}
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"close"}, Action: specs.ActLog, Args: is(1)},
		{Names: []string{"close"}, Action: specs.ActErrno, Args: is(2)},
		{Names: []string{"close"}, Action: specs.ActKillProcess, Args: is(3)},
		{Names: []string{"close"}, Action: specs.ActTrap, Args: is(3)},
	}}
	f, err := seccomp.CompileFor("amd64", p)
	if err != nil {
		t.Fatal(err)
	}
	for arg, want := range []uint32{unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_LOG, unix.SECCOMP_RET_ERRNO | 1, unix.SECCOMP_RET_KILL_PROCESS} {
		if got := run(f.Program, &data{nr: unix.SYS_CLOSE, arch: unix.AUDIT_ARCH_X86_64, args: [6]uint64{uint64(arg)}}); got != want {
			t.Errorf("close(%d): answers %#x, want %#x", arg, got, want)
		}
	}
}

// TestLongPrograms compiles rules until the program is too long, so that all jump distances occur.
func TestLongPrograms(t *testing.T) {
	o := newOracle(t)
	for _, n := range []int{20, 40, 60, 100, 200, 300} {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		for i := range n {
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{
				Names: []string{[]string{"ioctl", "fcntl", "prctl", "read"}[i%4]}, Action: specs.ActAllow,
				Args: []specs.LinuxSeccompArg{{Index: 1, Op: specs.OpEqualTo, Value: uint64(i)<<32 | uint64(i)}},
			})
		}
		same(t, "amd64", p, o.judge(t, "amd64", p)[0])
	}
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range 2000 {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{
			Names: []string{"ioctl"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 1, Op: specs.OpEqualTo, Value: uint64(i)}},
		})
	}
	if _, err := seccomp.Compile(p); !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "the kernel takes 4096") {
		t.Errorf("a program of over 4096 instructions: %v", err)
	}
}

func TestRefused(t *testing.T) {
	e := func(n uint) *uint { return &n }
	for name, c := range map[string]struct {
		profile *specs.LinuxSeccomp
		kind    error
		says    string
	}{
		"none":              {nil, berth.ErrInvalid, "there is none"},
		"no default":        {&specs.LinuxSeccomp{}, berth.ErrInvalid, "defaultAction"},
		"notify":            {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"open"}, Action: specs.ActNotify}}}, berth.ErrUnsupported, "syscalls[0]: action SCMP_ACT_NOTIFY"},
		"notify by default": {&specs.LinuxSeccomp{DefaultAction: specs.ActNotify}, berth.ErrUnsupported, "SCMP_ACT_NOTIFY"},
		"action":            {&specs.LinuxSeccomp{DefaultAction: "ALLOW"}, berth.ErrInvalid, `"ALLOW"`},
		"architecture":      {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"x86"}}, berth.ErrInvalid, `"x86"`},
		"flag":              {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"LOG"}}, berth.ErrInvalid, `"LOG"`},
		"wait killable":     {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}}, berth.ErrUnsupported, "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"},
		"errno":             {&specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: e(4096)}, berth.ErrInvalid, "errnoRet 4096"},
		"errno of a trace":  {&specs.LinuxSeccomp{DefaultAction: specs.ActTrace, DefaultErrnoRet: e(65536)}, berth.ErrInvalid, "errnoRet 65536"},
		"empty name":        {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{""}, Action: specs.ActErrno}}}, berth.ErrInvalid, "syscalls[0]"},
		"argument 6":        {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"open"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}}, berth.ErrInvalid, "argument index 6"},
		"operator":          {&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"open"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "=="}}}}}, berth.ErrInvalid, `"=="`},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := seccomp.Compile(c.profile)
			if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.says) {
				t.Errorf("error %v; want one that is %q and says %s", err, c.kind, c.says)
			}
		})
	}
	if _, err := seccomp.CompileFor("riscv64", &specs.LinuxSeccomp{DefaultAction: specs.ActAllow}); !errors.Is(err, berth.ErrUnsupported) {
		t.Errorf("another machine: %v", err)
	}
}

func TestFlags(t *testing.T) {
	f, err := seccomp.Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{
		specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow, "SECCOMP_FILTER_FLAG_TSYNC",
	}})
	if err != nil || f.Flags != unix.SECCOMP_FILTER_FLAG_LOG|unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW {
		t.Errorf("flags %+v, error %v", f, err)
	}
}

func TestCacheAndSpeed(t *testing.T) {
	var c seccomp.Cache
	p, err := seccomp.Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	best := time.Hour
	for range 20 {
		start := time.Now()
		if _, err := seccomp.Compile(p); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(start))
	}
	t.Logf("compiled in %v", best)
	if best > 2*time.Millisecond {
		t.Errorf("Docker's default profile took %v to compile; at most 2 ms", best)
	}
	a, err := c.Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	again, err := seccomp.Default(nil)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Compile(again)
	if err != nil || a != b {
		t.Errorf("the same profile was compiled again: %v", err)
	}
	t.Logf("%d instructions", len(a.Program))
	other, err := seccomp.Default([]string{"CAP_SYS_ADMIN"})
	if err != nil {
		t.Fatal(err)
	}
	if d, err := c.Compile(other); err != nil || d == a {
		t.Errorf("another profile has the same filter, or error %v", err)
	}
}
