package seccomp_test

import (
	"bufio"
	"bytes"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/seccomp"
)

// oracle is libseccomp, driven as runc drives it, with runc's stub for system calls that are too new for a profile.
type oracle struct{ binary string }

func newOracle(t *testing.T) *oracle {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "oracle")
	out, err := exec.CommandContext(t.Context(), "gcc", "-O1", "-o", binary, "testdata/oracle.c", "-lseccomp").CombinedOutput()
	if err != nil {
		t.Fatalf("the oracle needs gcc and libseccomp-dev: %v\n%s", err, out)
	}
	return &oracle{binary}
}

// judge is what the oracle says about one profile.
type judge struct {
	numbers map[number]int32
	largest map[string]uint32 // system call number a profile knows, by libseccomp's name of the architecture
	program []unix.SockFilter
	stub    bool
}

// number names a system call on an architecture, by libseccomp's name of that.
type number struct{ arch, name string }

var (
	archNames = map[specs.Arch]string{
		specs.ArchX86_64: "x86_64", specs.ArchX86: "x86", specs.ArchX32: "x32", specs.ArchAARCH64: "aarch64", specs.ArchARM: "arm",
	}
	natives   = map[string]string{"amd64": "x86_64", "arm64": "aarch64"}
	operators = []specs.LinuxSeccompOperator{
		specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual,
	}
)

// action is what libseccomp and runc make of an action.
func action(a specs.LinuxSeccompAction, errno *uint) uint32 {
	e := uint32(unix.EPERM)
	if errno != nil {
		e = uint32(*errno)
	}
	switch a {
	case specs.ActKillProcess:
		return 0x80000000
	case specs.ActKill, specs.ActKillThread:
		return 0
	case specs.ActTrap:
		return 0x00030000
	case specs.ActErrno:
		return 0x00050000 | e
	case specs.ActTrace:
		return 0x7ff00000 | e
	case specs.ActLog:
		return 0x7ffc0000
	case specs.ActAllow:
		return 0x7fff0000
	case specs.ActNotify:
	}
	panic(a)
}

// write puts a profile in the oracle's terms, rule by rule as runc's libcontainer does.
func write(b *bytes.Buffer, goarch string, p *specs.LinuxSeccomp) {
	def := action(p.DefaultAction, p.DefaultErrnoRet)
	names := 0
	for _, s := range p.Syscalls {
		names += len(s.Names)
	}
	fmt.Fprintf(b, "profile %s %d %d\n", natives[goarch], def, names)
	for _, a := range p.Architectures {
		fmt.Fprintf(b, "arch %s\n", archNames[a])
	}
	for _, s := range p.Syscalls {
		for _, name := range s.Names {
			if action(s.Action, s.ErrnoRet) == def {
				fmt.Fprintf(b, "name %s\n", name)
				continue
			}
			var conditions []string
			var count [6]int
			apart := false
			for _, a := range s.Args {
				conditions = append(conditions, fmt.Sprintf(" %d %d %d %d", a.Index, slices.Index(operators, a.Op)+1, a.Value, a.ValueTwo))
				count[a.Index]++
				apart = apart || count[a.Index] > 1
			}
			if !apart {
				fmt.Fprintf(b, "rule %d %s %d%s\n", action(s.Action, s.ErrnoRet), name, len(conditions), strings.Join(conditions, ""))
				continue
			}
			for _, c := range conditions {
				fmt.Fprintf(b, "rule %d %s 1%s\n", action(s.Action, s.ErrnoRet), name, c)
			}
		}
	}
	b.WriteString("end\n")
}

func (o *oracle) judge(t *testing.T, goarch string, profiles ...*specs.LinuxSeccomp) []judge {
	t.Helper()
	var in, stderr bytes.Buffer
	for _, p := range profiles {
		write(&in, goarch, p)
	}
	cmd := exec.CommandContext(t.Context(), o.binary)
	cmd.Stdin, cmd.Stderr = &in, &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("oracle: %v: %s", err, stderr.String())
	}
	var judges []judge
	j := judge{numbers: map[number]int32{}, largest: map[string]uint32{}}
	for s := bufio.NewScanner(bytes.NewReader(out)); s.Scan(); {
		var name, arch string
		var n int64
		var i unix.SockFilter
		switch line := s.Text(); {
		case strings.HasPrefix(line, "number "):
			if _, err := fmt.Sscanf(line, "number %s %s %d", &arch, &name, &n); err != nil {
				t.Fatal(err)
			}
			j.numbers[number{arch, name}] = int32(n)
		case strings.HasPrefix(line, "largest "):
			if _, err := fmt.Sscanf(line, "largest %s %d", &name, &n); err != nil {
				t.Fatal(err)
			}
			j.largest[name] = uint32(n)
		case strings.HasPrefix(line, "insn "):
			if _, err := fmt.Sscanf(line, "insn %d %d %d %d", &i.Code, &i.Jt, &i.Jf, &i.K); err != nil {
				t.Fatal(err)
			}
			j.program = append(j.program, i)
		case line == "end":
			switch profiles[len(judges)].DefaultAction {
			case specs.ActAllow, specs.ActLog, specs.ActTrace:
			default:
				j.stub = true
			}
			judges = append(judges, j)
			j = judge{numbers: map[number]int32{}, largest: map[string]uint32{}}
		}
	}
	if len(judges) != len(profiles) {
		t.Fatalf("the oracle judged %d of %d profiles", len(judges), len(profiles))
	}
	return judges
}

// unknown are the names that an older libseccomp does not know on all architectures on which we do.
func (j judge) unknown() []string {
	var names []string
	for n, nr := range j.numbers {
		if _, ok := seccomp.Number(archOf(n.arch), n.name); ok && nr < 0 && !seccomp.Multiplexed(archOf(n.arch), n.name) {
			names = append(names, n.name)
		}
	}
	return names
}

// broken reports whether libseccomp (2.5.4 does, with some profiles of several architectures) forgot to load the
// system call number before it compares it.
func (j judge) broken() bool {
	for pc, i := range j.program {
		if i.Code != unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K || i.K != unix.AUDIT_ARCH_X86_64 && i.K != unix.AUDIT_ARCH_I386 && i.K != unix.AUDIT_ARCH_AARCH64 && i.K != unix.AUDIT_ARCH_ARM {
			continue
		}
		next := j.program[pc+1+int(i.Jt)]
		if next.Code != unix.BPF_LD|unix.BPF_W|unix.BPF_ABS && next.Code != unix.BPF_RET|unix.BPF_K {
			return true
		}
	}
	return false
}

func archOf(name string) specs.Arch {
	for a, n := range archNames {
		if n == name {
			return a
		}
	}
	panic(name)
}

const noSys = 0x00050000 | uint32(unix.ENOSYS)

// answer is the stub of runc (libcontainer/seccomp/patchbpf) before the program of libseccomp.
func (j judge) answer(d *data) uint32 {
	if j.stub {
		name := map[uint32]string{unix.AUDIT_ARCH_I386: "x86", unix.AUDIT_ARCH_AARCH64: "aarch64", unix.AUDIT_ARCH_ARM: "arm"}[d.arch]
		if d.arch == unix.AUDIT_ARCH_X86_64 {
			name = "x86_64"
			if d.nr&(1<<30) != 0 {
				name = "x32"
			}
		}
		if largest := j.largest[name]; largest != 0 && d.nr > largest {
			return noSys
		}
	}
	return run(j.program, d)
}

// data is struct seccomp_data.
type data struct {
	nr, arch uint32
	args     [6]uint64
}

func (d *data) word(offset uint32) uint32 {
	switch {
	case offset == 0:
		return d.nr
	case offset == 4:
		return d.arch
	case offset >= 16 && offset < 64 && offset%4 == 0:
		return uint32(d.args[(offset-16)/8] >> (offset % 8 * 8))
	}
	panic(fmt.Sprintf("load of offset %d", offset))
}

// run interprets a program as the kernel does. It panics over what the kernel would refuse.
func run(program []unix.SockFilter, d *data) uint32 {
	var acc, x uint32
	var mem [16]uint32
	for pc := 0; ; pc++ {
		i := program[pc]
		var yes bool
		switch i.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			acc = d.word(i.K)
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			acc &= i.K
			continue
		case unix.BPF_ALU | unix.BPF_RSH | unix.BPF_X:
			if x > 31 {
				panic(fmt.Sprintf("instruction %d shifts by %d", pc, x))
			}
			acc >>= x
			continue
		case unix.BPF_MISC | unix.BPF_TAX:
			x = acc
			continue
		case unix.BPF_LD | unix.BPF_IMM:
			acc = i.K
			continue
		case unix.BPF_ST:
			mem[i.K] = acc
			continue
		case unix.BPF_LD | unix.BPF_MEM:
			acc = mem[i.K]
			continue
		case unix.BPF_RET | unix.BPF_K:
			return i.K
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(i.K)
			continue
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			yes = acc == i.K
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			yes = acc > i.K
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			yes = acc >= i.K
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			yes = acc&i.K != 0
		default:
			panic(fmt.Sprintf("instruction %d: code %#x", pc, i.Code))
		}
		if yes {
			pc += int(i.Jt)
		} else {
			pc += int(i.Jf)
		}
	}
}
