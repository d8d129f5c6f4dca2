package direct

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// rawCall is a system call; the result is -errno where it failed. It is not syscall.RawSyscall6 because the
// frames of that, in a build without optimization, are too large for functions that may not grow their stack.
//
//go:noescape
func rawCall(nr uintptr, args *[6]uintptr) (result uintptr)

// errnoOf is the errno in a result of rawCall; 0 where the call did not fail.
//
//go:nosplit
//go:norace
func errnoOf(result uintptr) uintptr {
	if result > ^uintptr(4095) {
		return -result
	}
	return 0
}

// childMain runs a program in the child and does not return. The child shares the memory of its parent, or
// has a copy whose other threads stand still, so it must not allocate, grow its stack, take a lock or touch
// the Go scheduler.
//
//go:nosplit
//go:norace
//go:nocheckptr
func childMain(p *program) { //nolint:unused // the assembly calls it
	i := uintptr(0)
	for i < p.count {
		s := (*step)(unsafe.Add(p.first, i*unsafe.Sizeof(step{})))
		a := s.args
		for k := range a {
			if s.refs&(1<<k) != 0 {
				a[k] = *(*uintptr)(unsafe.Add(p.regs, a[k]*unsafe.Sizeof(uintptr(0))))
			}
		}
		i++
		errno := uintptr(0)
		switch s.mode {
		case modeCall:
			r := rawCall(s.nr, &a)
			errno = errnoOf(r)
			// openat2(2): within a root, a link with ".." is to be tried again when something was mounted or renamed
			// anywhere on the host meanwhile.
			for try := 0; errno == uintptr(unix.EAGAIN) && s.nr == unix.SYS_OPENAT2 && try < openTries; try++ {
				r = rawCall(s.nr, &a)
				errno = errnoOf(r)
			}
			switch {
			case errno == 0:
				if s.out != 0 {
					*(*uintptr)(unsafe.Add(p.regs, uintptr(s.out-1)*unsafe.Sizeof(uintptr(0)))) = r
				}
			case uintptr(s.pass[0].errno) == errno:
				i += uintptr(s.pass[0].skip)
				errno = 0
			case uintptr(s.pass[1].errno) == errno:
				i += uintptr(s.pass[1].skip)
				errno = 0
			}
		case modeSkip:
			i += uintptr(s.pass[0].skip)
		case modeGoto:
			i = a[0]
		case modeStore:
			*(*int32)(s.mem) = int32(a[0])
		case modeEqual:
			if a[0] != a[1] {
				errno = a[2]
			}
		case modeByte:
			if uintptr(*(*byte)(s.mem)) != a[0] {
				errno = a[1]
			}
		case modeWord:
			if uintptr(*(*uint64)(s.mem)) != a[0] {
				errno = a[1]
			}
		case modeSignals:
			resetSignals()
		case modeFork:
			// CLONE_PARENT: the process that asked for this one is the child's parent, too. The kernel tells it which that is: this
			// one may be killed before it comes to do so, and a child that nobody waits for keeps its pid namespace from ending.
			// That is written to before, so that the page is there.
			p.report.pid = 0
			a = [6]uintptr{unix.CLONE_PARENT | unix.CLONE_PARENT_SETTID | uintptr(unix.SIGCHLD), 0, uintptr(unsafe.Pointer(&p.report.pid))}
			pid := rawCall(unix.SYS_CLONE, &a)
			errno = errnoOf(pid)
			if errno == 0 && pid != 0 {
				exit(0)
			}
		}
		if errno != 0 {
			p.errno = errno
			p.failed = i
			if p.report != nil {
				p.report.errno = errno
				p.report.failed = i
			}
			break
		}
	}
	exit(127)
}

// openTries bounds how often a file is opened again: EAGAIN may have other reasons.
const openTries = 1000 //nolint:unused // childMain is

// exit ends the process.
//
//go:nosplit
//go:norace
func exit(code uintptr) { //nolint:unused // childMain is
	a := [6]uintptr{code}
	for {
		rawCall(unix.SYS_EXIT_GROUP, &a)
	}
}

// resetSignals gives every signal its default action: those that this program ignores would be ignored by
// the command, too.
//
//go:nosplit
//go:norace
func resetSignals() { //nolint:unused // childMain is
	var def [4]uintptr // struct sigaction of zeros: SIG_DFL
	for sig := uintptr(1); sig <= 64; sig++ {
		a := [6]uintptr{sig, uintptr(unsafe.Pointer(&def)), 0, 8}
		rawCall(unix.SYS_RT_SIGACTION, &a)
	}
}
