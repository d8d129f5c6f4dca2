package direct

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// cloneArgs is struct clone_args of clone3(2), up to the field cgroup (Linux 5.7).
type cloneArgs struct {
	flags, pidfd, childTid, parentTid, exitSignal, stack, stackSize, tls, setTid, setTidSize, cgroup uint64 //nolint:unused // the kernel's layout
}

// cloneClearSighand gives the child the default action of every signal that its parent handles.
const cloneClearSighand = 0x100000000

// stackSize is what a child has, in bytes; the interpreter uses less than 2 KiB.
const stackSize = 64 << 10

// cloneChild runs clone3; the child executes p on its own stack.
func cloneChild(args *cloneArgs, size uintptr, p *program) (result uintptr)

// The runtime is told that this thread blocks, so that its processor serves other goroutines, and the garbage
// collector does not wait for a child. gVisor links to the same functions.
//
//go:linkname enterSyscallBlock runtime.entersyscallblock
func enterSyscallBlock()

//go:linkname exitSyscall runtime.exitsyscall
func exitSyscall()

// sigset is the kernel's set of signals.
type sigset [8]byte

// clone makes the child and waits until it has executed its command or ended, where flags hold CLONE_VFORK.
// All signals are blocked meanwhile: a handler of this program must not run in the child, which shares its
// memory. The caller's goroutine is locked to its thread.
//
// It is what syscall.forkExec does with the runtime's hooks for a fork, but for one thing: those forbid the
// goroutine to let go of its processor, and would stop the whole program for as long as a start takes.
//
//go:nosplit
//go:norace
func clone(args *cloneArgs, p *program) (pid int, errno syscall.Errno) {
	all := sigset{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	var old sigset
	block := [6]uintptr{unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), unsafe.Sizeof(all)}
	if e := errnoOf(rawCall(unix.SYS_RT_SIGPROCMASK, &block)); e != 0 {
		return 0, syscall.Errno(e)
	}
	enterSyscallBlock()
	r := cloneChild(args, unsafe.Sizeof(*args), p)
	exitSyscall()
	unblock := [6]uintptr{unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, unsafe.Sizeof(old)}
	rawCall(unix.SYS_RT_SIGPROCMASK, &unblock)
	if e := errnoOf(r); e != 0 {
		return 0, syscall.Errno(e)
	}
	return int(r), 0
}

// newStack maps a stack for children. One child at a time uses it.
func newStack() ([]byte, error) {
	s, err := unix.Mmap(-1, 0, stackSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map stack: %w", err)
	}
	return s, nil
}

// useStack makes the child begin at the top of s, below a little room for the arguments of its first call.
func (a *cloneArgs) useStack(s []byte) {
	a.stack = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(s))))
	a.stackSize = uint64(len(s) - 128)
}
