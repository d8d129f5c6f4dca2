package monitor

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestReadOnlyPart(t *testing.T) {
	for _, tc := range []struct {
		what, line string
		begin, end uintptr
		ok         bool
	}{
		{"code", "00400000-00c00000 r-xp 00000000 fe:00 123    /usr/bin/berth\n", 0x400000, 0xc00000, true},
		{"constants", "00c00000-01400000 r--p 00800000 fe:00 123    /usr/bin/berth\n", 0xc00000, 0x1400000, true},
		{"data", "01400000-01500000 rw-p 01000000 fe:00 123    /usr/bin/berth\n", 0, 0, false},
		{"shared", "01400000-01500000 r--s 01000000 fe:00 123    /usr/bin/berth\n", 0, 0, false},
		{"another file", "7f000000-7f100000 r-xp 00000000 fe:00 9    /lib/usr/bin/berth.so\n", 0, 0, false},
		{"memory", "c000000000-c000400000 rw-p 00000000 00:00 0 \n", 0, 0, false},
		{"read-only memory", "c000000000-c000400000 r--p 00000000 00:00 0 \n", 0, 0, false},
	} {
		t.Run(tc.what, func(t *testing.T) {
			begin, end, ok := readOnlyPart(tc.line, "/usr/bin/berth")
			if begin != tc.begin || end != tc.end || ok != tc.ok {
				t.Errorf("readOnlyPart = %#x, %#x, %v; want %#x, %#x, %v", begin, end, ok, tc.begin, tc.end, tc.ok)
			}
		})
	}
}

func TestDropProgram(t *testing.T) {
	before := fileMemory(t)
	dropProgram()
	// A position-independent program keeps all of its pages, and lives.
	if after := fileMemory(t); after >= before && !relocated() {
		t.Errorf("%d KiB of the program were in memory, and %d KiB afterwards", before, after)
	}
}

func TestTrim(t *testing.T) {
	if relocated() {
		t.Skip("a position-independent program keeps its pages")
	}
	page := int64(os.Getpagesize())
	ballast := make([]byte, trimAbove)
	for i := int64(0); i < int64(len(ballast)); i += page {
		ballast[i] = 1
	}
	runtime.KeepAlive(ballast)
	before := resident()
	if before <= trimAbove {
		t.Fatalf("%d bytes are resident, with %d of them just written", before, trimAbove)
	}
	m, last := &Monitor{quietFrom: time.Now()}, time.Time{}
	m.trim(&last)
	if after := resident(); after > before-trimAbove/2 {
		t.Errorf("busy: %d bytes were resident, and %d afterwards", before, after)
	}
	if !last.IsZero() {
		t.Error("busy: the quiet time counts as trimmed")
	}
	m.quietFrom = time.Now().Add(-trimAfter)
	if m.trim(&last); !last.Equal(m.quietFrom) {
		t.Error("quiet: not trimmed")
	}
}

// fileMemory is how much of this process's memory is of files, in KiB.
func fileMemory(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "RssFile:" {
			n, err := strconv.Atoi(f[1])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatal("no RssFile")
	return 0
}
