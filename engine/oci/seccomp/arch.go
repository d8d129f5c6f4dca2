package seccomp

//go:generate go run ./gen

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// arch is a system call interface: what a process of that architecture calls by which number.
type arch int

const (
	amd64 arch = iota
	x86
	x32
	arm64
	arm
	archs
)

// x32Bit marks the system call numbers of x32, which otherwise looks like amd64 to a filter.
const x32Bit = 1 << 30

type call struct {
	name    string
	numbers [archs]int32
}

// number returns the number of a system call, and whether the architecture has it.
func (a arch) number(name string) (nr uint32, ok bool) {
	i, found := slices.BinarySearchFunc(calls[:], name, func(c call, n string) int { return cmp.Compare(c.name, n) })
	if !found || calls[i].numbers[a] < 0 {
		return 0, false
	}
	return uint32(calls[i].numbers[a]), true
}

// narrow reports whether system call arguments have 32 bits.
func (a arch) narrow() bool { return a == x86 || a == x32 || a == arm }

// multiplexed says through which call, and by which first argument, 32-bit x86 reaches the same function as
// by the call of that name: connect is socketcall(3, …) too.
func (a arch) multiplexed(name string) (through string, selector uint32, ok bool) {
	if a != x86 {
		return "", 0, false
	}
	if i := slices.Index(socketcalls, name); i >= 0 {
		return "socketcall", uint32(i + 1), true
	}
	switch name {
	case "semop", "semget", "semctl", "semtimedop":
		return "ipc", 1 + uint32(slices.Index([]string{"semop", "semget", "semctl", "semtimedop"}, name)), true
	case "msgsnd", "msgrcv", "msgget", "msgctl":
		return "ipc", 11 + uint32(slices.Index([]string{"msgsnd", "msgrcv", "msgget", "msgctl"}, name)), true
	case "shmat", "shmdt", "shmget", "shmctl":
		return "ipc", 21 + uint32(slices.Index([]string{"shmat", "shmdt", "shmget", "shmctl"}, name)), true
	}
	return "", 0, false
}

// socketcalls are the functions of socketcall, the first of which is number 1.
var socketcalls = []string{
	"socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv",
	"sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg", "sendmmsg",
}

// machine is a kernel's architecture with those that it runs beside its own.
type machine struct {
	own   arch
	audit []section // in the order in which a filter tries them
}

// section is what a filter sees as one architecture: x32 shares amd64's.
type section struct {
	audit uint32
	archs []arch
}

func machineOf(goarch string) (machine, error) {
	switch goarch {
	case "amd64":
		return machine{amd64, []section{{unix.AUDIT_ARCH_X86_64, []arch{amd64, x32}}, {unix.AUDIT_ARCH_I386, []arch{x86}}}}, nil
	case "arm64":
		return machine{arm64, []section{{unix.AUDIT_ARCH_AARCH64, []arch{arm64}}, {unix.AUDIT_ARCH_ARM, []arch{arm}}}}, nil
	}
	return machine{}, fmt.Errorf("seccomp on %s: %w", goarch, berth.ErrUnsupported)
}

var ociArchs = map[specs.Arch]arch{
	specs.ArchX86_64: amd64, specs.ArchX86: x86, specs.ArchX32: x32, specs.ArchAARCH64: arm64, specs.ArchARM: arm,
}

// foreignArchs are known and never seen by a filter on the machines that berth runs on.
var foreignArchs = []specs.Arch{
	specs.ArchMIPS, specs.ArchMIPS64, specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32,
	specs.ArchPPC, specs.ArchPPC64, specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64,
	specs.ArchRISCV64, specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB,
}

// listed returns the architectures that a profile names, with the machine's own, which is always in.
func (m machine) listed(names []specs.Arch) ([]arch, error) {
	in := []arch{m.own}
	for _, n := range names {
		a, ok := ociArchs[n]
		if !ok && !slices.Contains(foreignArchs, n) {
			return nil, fmt.Errorf("architecture %q: %w", n, berth.ErrInvalid)
		}
		if ok && !slices.Contains(in, a) {
			in = append(in, a)
		}
	}
	return in, nil
}
