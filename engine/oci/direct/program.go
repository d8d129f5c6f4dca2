package direct

import (
	"encoding/binary"
	"fmt"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// arg is an argument of a step: a value, or a register that holds one when the step runs.
type arg uintptr

// regTag marks an arg as the number of a register. No address, descriptor or flag word has these top bits.
const regTag arg = 0x4242 << 48

const regTagMask arg = 0xffff << 48

// mode says what the child makes of a step.
type mode uint8

const (
	// modeCall is a system call. An errno that is not passed over ends the child.
	modeCall mode = iota
	// modeSkip goes on after pass[0].skip further steps.
	modeSkip
	// modeGoto goes on at the step args[0].
	modeGoto
	// modeStore writes args[0] to the four bytes at mem.
	modeStore
	// modeEqual demands that args[0], a register, is args[1]; else the errno is args[2].
	modeEqual
	// modeByte demands that the byte at mem is args[0]; else the errno is args[1].
	modeByte
	// modeWord demands that the eight bytes at mem are args[0]; else the errno is args[1].
	modeWord
	// modeSignals gives all signals their default action.
	modeSignals
	// modeFork goes on in a child that this process's parent may wait for; this process ends.
	modeFork
)

// step is one step of a program.
type step struct {
	nr   uintptr
	args [6]uintptr
	mem  unsafe.Pointer // of modeStore, modeByte, modeWord
	refs uint8          // bit i: args[i] is the number of a register
	mode mode
	out  uint16 // 1 + the register that takes the result; 0: none
	// pass are errnos that do not end the child, and how many steps are skipped then.
	pass [2]struct{ errno, skip uint16 }
}

// what describes a step in an error: "mount proc on", "/proc".
type what struct{ verb, object string }

// program is a flat list of system calls that a child runs. The child neither allocates nor returns. With
// CLONE_VM it shares this memory with its parent, and what it writes here is its report.
type program struct {
	first unsafe.Pointer // *step
	count uintptr
	regs  unsafe.Pointer // *uintptr, as many as any step names
	// failed is 1 + the index of the step that ended the child, and errno why. A child that has executed
	// its command leaves them 0.
	failed uintptr
	errno  uintptr
	// report, where not nil, is shared memory that takes failed and errno as well: for a child without CLONE_VM.
	report *report
}

// report is what a child without CLONE_VM tells.
type report struct {
	failed, errno uintptr
	pid           uintptr // written as an int, by the kernel
}

// builder makes a program. Its memory stays where it is until it is released: the program's arguments are
// addresses within it.
type builder struct {
	program
	steps  []step
	whats  []what
	regv   []uintptr
	chunk  []byte
	chunks [][]byte // full ones
	keep   []any    // what is not in the chunks, and the steps point to
	regN   int
	now    what // describes the steps that are added
}

// chunkSize is the size of a builder's pieces of memory, in bytes.
const chunkSize = 32 << 10

// builders are for use again: a program is some 60 KiB.
type builders struct{ pool sync.Pool }

func (p *builders) take() *builder {
	b, ok := p.pool.Get().(*builder)
	if !ok {
		b = &builder{steps: make([]step, 0, 320), whats: make([]what, 0, 320), chunk: make([]byte, 0, chunkSize)}
	}
	// The first step goes to what prologue adds at the end.
	b.doing("begin", "")
	b.add(modeGoto, 0)
	return b
}

// give takes b back; nothing of it may be in use.
func (p *builders) give(b *builder) {
	clear(b.chunk)
	*b = builder{steps: b.steps[:0], whats: b.whats[:0], regv: b.regv[:0], chunk: b.chunk[:0]}
	p.pool.Put(b)
}

// alloc returns n zero bytes, aligned to 8.
func (b *builder) alloc(n int) []byte {
	start := (len(b.chunk) + 7) &^ 7
	if start+n > cap(b.chunk) {
		b.chunks = append(b.chunks, b.chunk)
		b.chunk = make([]byte, 0, max(chunkSize, n))
		start = 0
	}
	b.chunk = b.chunk[:start+n]
	return b.chunk[start : start+n : start+n]
}

// str is the address of s with a final zero.
func (b *builder) str(s string) arg {
	m := b.alloc(len(s) + 1)
	copy(m, s)
	return address(m)
}

// strv is the address of an array of the strings' addresses, with a final nil.
func (b *builder) strv(ss []string) arg {
	v := b.alloc(8 * (len(ss) + 1))
	for i, s := range ss {
		binary.NativeEndian.PutUint64(v[8*i:], uint64(b.str(s)))
	}
	return address(v)
}

// obj is the address of a copy of v. What v points to the builder must hold by other means: to the garbage
// collector the copy is mere bytes.
func obj[T any](b *builder, v T) arg {
	m := b.alloc(int(unsafe.Sizeof(v)))
	*(*T)(unsafe.Pointer(unsafe.SliceData(m))) = v
	return address(m)
}

func address(m []byte) arg { return arg(uintptr(unsafe.Pointer(unsafe.SliceData(m)))) }

// reg is a register that nothing else uses.
func (b *builder) reg() arg {
	b.regN++
	return regTag | arg(b.regN-1)
}

// doing describes the steps that follow.
func (b *builder) doing(verb, object string) { b.now = what{verb, object} }

// add adds a step.
func (b *builder) add(m mode, nr uintptr, args ...arg) *step {
	b.steps = append(b.steps, step{nr: nr, mode: m})
	b.whats = append(b.whats, b.now)
	s := &b.steps[len(b.steps)-1]
	for i, a := range args {
		if a&regTagMask == regTag {
			s.refs |= 1 << i
			a &^= regTagMask
		}
		s.args[i] = uintptr(a)
	}
	return s
}

// call adds a system call.
func (b *builder) call(nr uintptr, args ...arg) *step { return b.add(modeCall, nr, args...) }

// check adds a demand on what an earlier step has written to mem.
func (b *builder) check(m mode, mem []byte, want arg, errno syscall.Errno) {
	b.add(m, 0, want, arg(errno)).mem = unsafe.Pointer(unsafe.SliceData(mem))
}

// open adds a system call whose result goes to a new register.
func (b *builder) open(nr uintptr, args ...arg) arg {
	r := b.reg()
	b.call(nr, args...).into(r)
	return r
}

func (s *step) into(r arg) { s.out = uint16(r&^regTagMask) + 1 }

// ok makes errno no failure.
func (s *step) ok(errno syscall.Errno) { s.okSkip(errno, 0) }

// okSkip makes errno no failure, and skips the n steps that follow.
func (s *step) okSkip(errno syscall.Errno, n int) {
	i := 0
	if s.pass[0].errno != 0 {
		i = 1
	}
	s.pass[i].errno, s.pass[i].skip = uint16(errno), uint16(n)
}

// here is the number of the next step, for to.
func (b *builder) here() int { return len(b.steps) }

// to makes the step at index from skip to the next step that will be added, when it ends with errno.
func (b *builder) to(from int, errno syscall.Errno) {
	b.steps[from].okSkip(errno, len(b.steps)-from-1)
}

// skip adds a jump whose end land sets.
func (b *builder) skip() int {
	b.add(modeSkip, 0)
	return len(b.steps) - 1
}

func (b *builder) land(skip int) { b.steps[skip].pass[0].skip = uint16(len(b.steps) - skip - 1) }

// prologue makes the steps that are added from now on the first that run.
func (b *builder) prologue() {
	b.call(unix.SYS_EXIT_GROUP, 127) // where the program ends
	b.steps[0].args[0] = uintptr(len(b.steps))
}

// finish makes the program ready to run.
func (b *builder) finish() *program {
	if b.steps[0].args[0] == 0 {
		b.prologue()
	}
	b.add(modeGoto, 0, 1)
	b.count = uintptr(len(b.steps))
	b.first = unsafe.Pointer(unsafe.SliceData(b.steps))
	b.regv = append(b.regv[:0], make([]uintptr, b.regN+1)...)
	b.regs = unsafe.Pointer(unsafe.SliceData(b.regv))
	return &b.program
}

// stepError is the step that failed.
type stepError struct {
	what
	errno syscall.Errno
}

func (e *stepError) Error() string {
	if e.object == "" {
		return e.verb + ": " + e.errno.Error()
	}
	return fmt.Sprintf("%s %s: %s", e.verb, e.object, e.errno)
}

func (e *stepError) Unwrap() error { return e.errno }

// failure is the error of the step with 1-based number failed; nil where that is 0.
func (b *builder) failure(failed, errno uintptr) error {
	if failed == 0 {
		return nil
	}
	return &stepError{b.whats[failed-1], syscall.Errno(errno)}
}

// minusOne is -1 as an argument.
const minusOne = ^arg(0)

// atCwd is AT_FDCWD as an argument.
const atCwd = ^arg(99)
