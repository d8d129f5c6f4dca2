package monitor

import (
	"debug/elf"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// trimAfter is how long the monitor has been left alone when it gives back memory.
const trimAfter = time.Second

// trimAbove is how much of this process may be in memory, bytes, before it gives some back while it is busy. The
// goal is 12 MiB.
const trimAbove = 10 << 20

// trimEvery bounds how often a busy monitor gives back memory: to take a page again costs starts their time.
const trimEvery = 5 * time.Second

// trim gives memory back: once in each quiet time, of which *last is the last one's begin, and now and then while the
// monitor is busy, if it has grown. It is called about once a second, by one goroutine.
func (m *Monitor) trim(last *time.Time) {
	m.mu.Lock()
	quiet := m.quietFrom
	m.mu.Unlock()
	switch {
	case quiet.Equal(*last):
		return
	case time.Since(quiet) >= trimAfter:
		*last = quiet
	case time.Since(m.trimmed) < trimEvery || resident() <= trimAbove:
		return
	default:
		m.trimmed = time.Now()
	}
	debug.FreeOSMemory()
	dropProgram()
}

// resident is how much of this process is in memory, bytes; 0 if that cannot be read.
func resident() int64 {
	raw, err := os.ReadFile("/proc/self/statm") // proc_pid_statm(5): pages; the second is the resident set
	if err != nil {
		return 0
	}
	f := strings.Fields(string(raw))
	if len(f) < 2 {
		return 0
	}
	n, err := strconv.ParseInt(f[1], 10, 64)
	if err != nil {
		return 0
	}
	return n * int64(os.Getpagesize())
}

// dropProgram takes the program's own code and constants out of this process's memory. Most of what was ever
// touched belongs to the start of a program of which the monitor is a small part; what is needed again comes from
// the page cache.
func dropProgram() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil || relocated() {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range strings.Lines(string(maps)) {
		if begin, end, ok := readOnlyPart(line, exe); ok {
			// Clean pages of a file: nothing is lost. An error leaves them where they are.
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_DONTNEED)
		}
	}
}

// relocated reports whether the program was changed when it was loaded: then parts of it that can only be read hold
// addresses that its file does not have.
func relocated() bool {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return true
	}
	defer func() { _ = f.Close() }()
	return f.Type != elf.ET_EXEC || slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == gnuRelro })
}

// gnuRelro is PT_GNU_RELRO.
const gnuRelro = 0x6474e552

// readOnlyPart reads a line of /proc/PID/maps (proc_pid_maps(5)), and reports whether it is of a private mapping
// of the file that nobody can have written to.
func readOnlyPart(line, file string) (begin, end uintptr, ok bool) {
	f := strings.Fields(line)
	if len(f) < 6 || f[1][1] != '-' || f[1][3] != 'p' || !strings.HasSuffix(strings.TrimSuffix(line, "\n"), " "+file) {
		return 0, 0, false
	}
	from, to, found := strings.Cut(f[0], "-")
	b, err1 := strconv.ParseUint(from, 16, 64)
	e, err2 := strconv.ParseUint(to, 16, 64)
	if !found || err1 != nil || err2 != nil || e <= b {
		return 0, 0, false
	}
	return uintptr(b), uintptr(e), true
}
