package direct

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// childMain runs a program in the child and does not return. The child shares the memory of its parent, or
// has a copy whose other threads stand still, so it must not allocate, grow its stack, take a lock or touch
// the Go scheduler.
//
//go:nosplit
//go:norace
//go:nocheckptr
func childMain(p *program) {
	i := uintptr(0)
	for i < p.count {
		s := (*step)(unsafe.Add(p.first, i*unsafe.Sizeof(step{})))
		var a [6]uintptr
		for k := range a {
			a[k] = s.args[k]
			if s.refs&(1<<k) != 0 {
				a[k] = *(*uintptr)(unsafe.Add(p.regs, a[k]*unsafe.Sizeof(uintptr(0))))
			}
		}
		i++
		errno := uintptr(0)
		switch s.mode {
		case modeCall:
			r, _, e := syscall.RawSyscall6(s.nr, a[0], a[1], a[2], a[3], a[4], a[5])
			if e != 0 {
				passed := false
				for k := range s.pass {
					if s.pass[k].errno != 0 && s.pass[k].errno == uint16(e) {
						i += uintptr(s.pass[k].skip)
						passed = true
						break
					}
				}
				if !passed {
					errno = uintptr(e)
				}
			} else if s.out != 0 {
				*(*uintptr)(unsafe.Add(p.regs, uintptr(s.out-1)*unsafe.Sizeof(uintptr(0)))) = r
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
			// CLONE_PARENT: the process that asked for this one is the child's parent, too.
			pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, unix.CLONE_PARENT|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
			if e != 0 {
				errno = uintptr(e)
			} else if pid != 0 {
				p.report.pid = pid
				syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 0, 0, 0, 0, 0, 0)
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
	for {
		syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 127, 0, 0, 0, 0, 0)
	}
}

// resetSignals gives every signal its default action: those that this program ignores would be ignored by
// the command, too.
//
//go:nosplit
//go:norace
func resetSignals() {
	var def [4]uintptr // struct sigaction of zeros: SIG_DFL
	for sig := uintptr(1); sig <= 64; sig++ {
		syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&def)), 0, 8, 0, 0)
	}
}
