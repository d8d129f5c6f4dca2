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

// trimIfQuiet gives memory back, once in each quiet time: *last is the quiet time of the last call.
func (m *Monitor) trimIfQuiet(last *time.Time) {
	m.mu.Lock()
	quiet := m.quietFrom
	m.mu.Unlock()
	if quiet.Equal(*last) || time.Since(quiet) < trimAfter {
		return
	}
	*last = quiet
	debug.FreeOSMemory()
	dropProgram()
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
