// Package seccomp compiles the seccomp profile of an OCI runtime spec to the classic BPF program that the
// kernel runs before each system call, in pure Go and well under a millisecond. A program decides each call
// as the one that runc builds with libseccomp does.
//
// It does not install programs: the starter of a container does, between setting its capabilities and
// executing its command. SCMP_ACT_NOTIFY, which needs a supervisor, is refused.
package seccomp

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"sync"
	"weak"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Filter is a compiled profile, as seccomp(SECCOMP_SET_MODE_FILTER, Flags, Program) takes it. It is shared:
// do not change it.
type Filter struct {
	Program []unix.SockFilter // 1 to 4096 instructions
	Flags   uintptr           // SECCOMP_FILTER_FLAG_*
}

// Compile compiles a profile for this machine. ErrInvalid: the profile makes no sense, or is too long for the
// kernel; ErrUnsupported: it wants what berth does not do. A system call that no kernel known here has is
// passed over, as runc does.
func Compile(profile *specs.LinuxSeccomp) (*Filter, error) {
	return CompileFor(runtime.GOARCH, profile)
}

// CompileFor is Compile for a machine of another architecture, by Go's name: "amd64" or "arm64".
func CompileFor(goarch string, profile *specs.LinuxSeccomp) (*Filter, error) {
	m, err := machineOf(goarch)
	if err != nil {
		return nil, err
	}
	p, err := decide(m, profile)
	if err != nil {
		return nil, fmt.Errorf("seccomp profile: %w", err)
	}
	var a assembler
	a.program(p)
	if len(a.reversed) > unix.BPF_MAXINSNS {
		return nil, fmt.Errorf("seccomp profile: %w: it compiles to %d instructions, and the kernel takes %d; name fewer system calls with arguments",
			berth.ErrInvalid, len(a.reversed), unix.BPF_MAXINSNS)
	}
	return &Filter{Program: a.finish(), Flags: p.flags}, nil
}

// Cache compiles each profile once. The zero value is ready; it may be used concurrently, and must not be
// copied.
type Cache struct {
	mu      sync.Mutex
	filters map[string]*Filter
	seen    map[weak.Pointer[specs.LinuxSeccomp]]*Filter // whose content need not be looked at again
}

// cacheMax bounds what a user who sends ever other profiles can make a cache hold.
const cacheMax = 64

// Compile is the function Compile, remembered by the content of the profile. A profile that was compiled is not
// changed any more.
func (c *Cache) Compile(profile *specs.LinuxSeccomp) (*Filter, error) {
	if profile == nil {
		return Compile(nil)
	}
	at := weak.Make(profile)
	c.mu.Lock()
	f := c.seen[at]
	c.mu.Unlock()
	if f != nil {
		return f, nil
	}
	key := keyOf(profile)
	c.mu.Lock()
	f = c.filters[key]
	c.mu.Unlock()
	if f == nil {
		var err error
		if f, err = Compile(profile); err != nil {
			return nil, err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.filters == nil || len(c.filters) >= cacheMax {
		c.filters = map[string]*Filter{}
	}
	c.filters[key] = f
	if c.seen == nil || len(c.seen) >= cacheMax {
		c.seen = map[weak.Pointer[specs.LinuxSeccomp]]*Filter{}
	}
	c.seen[at] = f
	return f, nil
}

// keyOf is all of a profile that a filter hangs on. Each text is followed by a zero, and each list by its length.
func keyOf(p *specs.LinuxSeccomp) string {
	b := make([]byte, 0, 16<<10)
	text := func(s string) { b = append(append(b, s...), 0) }
	number := func(n uint64) { b = binary.LittleEndian.AppendUint64(b, n) }
	errno := func(e *uint) {
		if e == nil {
			number(^uint64(0))
			return
		}
		number(uint64(*e))
	}
	text(string(p.DefaultAction))
	errno(p.DefaultErrnoRet)
	for _, a := range p.Architectures {
		text(string(a))
	}
	number(uint64(len(p.Architectures)))
	for _, f := range p.Flags {
		text(string(f))
	}
	number(uint64(len(p.Flags)))
	for _, s := range p.Syscalls {
		text(string(s.Action))
		errno(s.ErrnoRet)
		for _, n := range s.Names {
			text(n)
		}
		number(uint64(len(s.Names)))
		for _, a := range s.Args {
			number(uint64(a.Index))
			number(a.Value)
			number(a.ValueTwo)
			text(string(a.Op))
		}
		number(uint64(len(s.Args)))
	}
	return string(b)
}
