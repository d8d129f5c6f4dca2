package device

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
)

// Number is what the kernel knows a device node by, whatever path it has.
type Number struct{ Major, Minor uint32 }

// Number returns a node's number.
func (n Node) Number() Number { return Number{n.Major, n.Minor} }

// Process is one that has a device node open.
type Process struct {
	PID     int    `json:"pid"`
	UID     uint32 `json:"uid"`
	Command string `json:"command"` // as the kernel has it: 15 bytes at most, any that the process has chosen

	// asks is that it is a user's berth which asks a driver's library, for longer than one question takes.
	asks bool
}

func (p Process) String() string { return fmt.Sprintf("%q (process %d)", p.Command, p.PID) }

// Openers are the processes that have device nodes open.
type Openers struct {
	Of map[Number][]Process // in the order of process ids
	// Hidden counts the processes that this one may not look at: another user's, unless this is root. Where the kernel does
	// not even list those, they are one.
	Hidden int
}

// FindOpeners looks through the open files of all processes that this one sees for character devices with these
// numbers. Services of the administrator that hold devices open and do not use them are left out, and berth as it asks
// drivers' libraries. It takes some ten milliseconds on a busy machine, and waits for no file system.
func FindOpeners(ctx context.Context, numbers []Number) (Openers, error) {
	return findOpeners(ctx, numbers, func(st *unix.Statx_t) (Number, bool) {
		n := Number{st.Rdev_major, st.Rdev_minor}
		return n, slices.Contains(numbers, n)
	})
}

// openers is FindOpeners of nodes of this host. On a host with another root than this machine's they are only those
// files: other nodes with their numbers are of devices of this machine.
func (h *Host) openers(ctx context.Context, nodes map[string]Number) (Openers, error) {
	numbers := slices.Collect(maps.Values(nodes))
	if h.root == "/" {
		return FindOpeners(ctx, numbers)
	}
	type file struct {
		major, minor uint32
		ino          uint64
	}
	files := map[file]Number{}
	for name, n := range nodes {
		var st unix.Statx_t
		if err := unix.Statx(unix.AT_FDCWD, name, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_INO, &st); err == nil {
			files[file{st.Dev_major, st.Dev_minor, st.Ino}] = n
		}
	}
	return findOpeners(ctx, numbers, func(st *unix.Statx_t) (Number, bool) {
		n, ok := files[file{st.Dev_major, st.Dev_minor, st.Ino}]
		return n, ok
	})
}

func findOpeners(ctx context.Context, numbers []Number, match func(*unix.Statx_t) (Number, bool)) (Openers, error) {
	found := Openers{Of: map[Number][]Process{}}
	if len(numbers) == 0 {
		return found, nil
	}
	proc, err := os.Open("/proc")
	if err != nil {
		return found, fmt.Errorf("look for processes that use devices: %w: %w", berth.ErrUnavailable, err)
	}
	defer proc.Close()
	names, err := proc.Readdirnames(-1)
	if err != nil {
		return found, fmt.Errorf("look for processes that use devices: %w: %w", berth.ErrUnavailable, err)
	}
	programs := berthPrograms()
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		if err := ctx.Err(); err != nil {
			return found, context.Cause(ctx)
		}
		has, err := opened(pid, match)
		switch {
		case errors.Is(err, fs.ErrPermission):
			if !kernelThread(pid) {
				found.Hidden++
			}
			continue
		case err != nil, len(has) == 0:
			continue // it has ended
		}
		st, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
		if err != nil {
			continue // it has ended
		}
		p := Process{PID: pid, UID: owner(st), Command: command(pid)}
		if p.idles(user.LookupId) {
			continue
		}
		asks, always := p.asking(programs)
		if always {
			continue
		}
		p.asks = asks
		for _, n := range has {
			found.Of[n] = append(found.Of[n], p)
		}
	}
	if _, err := os.Stat("/proc/1"); err != nil && found.Hidden == 0 {
		found.Hidden = 1 // /proc is mounted with hidepid
	}
	for _, processes := range found.Of {
		slices.SortFunc(processes, func(a, b Process) int { return cmp.Compare(a.PID, b.PID) })
	}
	return found, nil
}

// kernelThread reports whether a process is the kernel's own, which opens no device.
func kernelThread(pid int) bool {
	const flagsField, isKernels = 6, 0x00200000 // after the name; PF_KTHREAD
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) <= flagsField {
		return false
	}
	flags, _ := strconv.ParseUint(fields[flagsField], 10, 64)
	return flags&isKernels != 0
}

// opened returns the numbers of the nodes that a process has open and that match.
func opened(pid int, match func(*unix.Statx_t) (Number, bool)) ([]Number, error) {
	dir, err := os.Open(fmt.Sprintf("/proc/%d/fd", pid))
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var has []Number
	for _, name := range names {
		var st unix.Statx_t
		// DONT_SYNC: a file on a network file system that does not answer must not stop the search.
		err := unix.Statx(int(dir.Fd()), name, unix.AT_STATX_DONT_SYNC|unix.AT_NO_AUTOMOUNT, unix.STATX_TYPE|unix.STATX_INO, &st)
		if err != nil || st.Mode&unix.S_IFMT != unix.S_IFCHR {
			continue
		}
		if n, ok := match(&st); ok && !slices.Contains(has, n) {
			has = append(has, n)
		}
	}
	return has, nil
}

func owner(st fs.FileInfo) uint32 {
	if s, ok := st.Sys().(*syscall.Stat_t); ok {
		return s.Uid
	}
	return 0
}

func command(pid int) string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "?"
	}
	return strings.TrimSuffix(string(data), "\n")
}

// Descends reports whether a process is one of roots or was started below one of them. All processes of a
// container descend from its first, which takes over those whose parents end.
func (p Process) Descends(roots []int) bool {
	for pid, depth := p.PID, 0; pid > 1 && depth < 1000; depth++ {
		if slices.Contains(roots, pid) {
			return true
		}
		pid = parent(pid)
	}
	return false
}

// parent returns the parent of a process; 0 if it has ended.
func parent(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	// The command in parentheses may hold anything.
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	if len(fields) < 2 {
		return 0
	}
	n, _ := strconv.Atoi(fields[1])
	return n
}
