package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-project/berth"
)

// Usage is what the group's processes, and those that have ended, used up to now. What the host does not
// count is nil. Memory includes the page cache of files that they read and wrote, as the limit does.
func (g *Group) Usage() (berth.Usage, error) { return g.usage(true) }

// usage is Usage; without live only what Final says is read.
func (g *Group) usage(live bool) (berth.Usage, error) {
	if len(g.dirs()) == 0 {
		return berth.Usage{}, nil
	}
	u, err := g.peaks()
	errs := []error{err}
	now, err := g.count()
	errs = append(errs, err)
	if now.hasCPU {
		s := now.cpu - g.base.cpu
		u.CPUSeconds = &s
	}
	if now.hasIO {
		r, w := now.io.read-g.base.io.read, now.io.written-g.base.io.written
		u.BytesRead, u.BytesWritten = &r, &w
	}
	if live {
		errs = append(errs, g.current(&u))
	}
	return u, kind("usage of cgroup "+g.path, errors.Join(errs...))
}

// peaks are the highest figures up to now.
func (g *Group) peaks() (u berth.Usage, err error) {
	var errs [2]error
	if dir, v2 := g.dir(memory); dir != "" {
		file := "/memory.max_usage_in_bytes"
		if v2 {
			file = "/memory.peak"
		}
		u.PeakMemory, errs[0] = g.figure(dir + file)
	}
	if dir, _ := g.dir(pids); dir != "" {
		u.PeakPIDs, errs[1] = g.figure(dir + "/pids.peak")
	}
	return u, errors.Join(errs[:]...)
}

// current adds what only a running group has.
func (g *Group) current(u *berth.Usage) error {
	var errs [2]error
	if dir, v2 := g.dir(memory); dir != "" {
		file := "/memory.usage_in_bytes"
		if v2 {
			file = "/memory.current"
		}
		u.Memory, errs[0] = g.figure(dir + file)
	}
	if dir, _ := g.dir(pids); dir != "" {
		u.PIDs, errs[1] = g.figure(dir + "/pids.current")
	}
	return errors.Join(errs[:]...)
}

// figure reads a file that holds one number; nil where the kernel has no such file.
func (g *Group) figure(path string) (*int64, error) {
	n, err := g.readInt(path)
	if err != nil {
		return nil, optional(err)
	}
	return &n, nil
}

// Final is Usage without what only a running group has.
func (g *Group) Final() (berth.Usage, error) { return g.usage(false) }

// counters are what only ever grows: a group that is used again subtracts what they were.
type counters struct {
	cpu    float64 // seconds
	hasCPU bool
	io     moved
	hasIO  bool
	kills  int64
	forks  int64 // that were refused
}

func (g *Group) count() (c counters, err error) {
	var errs [2]error
	c.cpu, c.hasCPU, errs[0] = g.cpuSeconds()
	c.io, c.hasIO, errs[1] = g.ioBytes()
	return c, errors.Join(errs[:]...)
}

func (g *Group) cpuSeconds() (s float64, ok bool, err error) {
	if dir := g.v1[cpuacct]; dir != "" {
		ns, err := g.readInt(dir + "/cpuacct.usage")
		return float64(ns) / 1e9, err == nil, err
	}
	if g.v2 == "" {
		return 0, false, nil
	}
	us, ok, err := g.readKey(g.v2+"/cpu.stat", "usage_usec")
	return float64(us) / 1e6, ok, optional(err)
}

// ioBytes are the bytes that the group moved from and to disks, children included.
func (g *Group) ioBytes() (sum moved, ok bool, err error) {
	dir, v2 := g.dir(blkio)
	if dir == "" {
		return moved{}, false, nil
	}
	file, parse := dir+"/blkio.throttle.io_service_bytes_recursive", parseBlkio
	if v2 {
		file, parse = dir+"/io.stat", parseIOStat
	}
	b, err := g.read(file)
	if errors.Is(err, fs.ErrNotExist) && !v2 {
		b, err = g.read(dir + "/blkio.throttle.io_service_bytes")
	}
	if err != nil {
		return moved{}, false, optional(err)
	}
	devs := parse(b)
	if len(devs) == 0 && !v2 && !g.host.countsDisks() {
		return moved{}, false, nil
	}
	for dev, n := range devs {
		if !g.host.stacked(dev) {
			sum.read, sum.written = sum.read+n.read, sum.written+n.written
		}
	}
	return sum, true, nil
}

type moved struct{ read, written int64 } // bytes

// parseBlkio reads lines "8:0 Read 4096" of v1.
func parseBlkio(b []byte) map[string]moved {
	devs := map[string]moved{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) != 3 {
			continue
		}
		n, err := strconv.ParseInt(f[2], 10, 64)
		if err != nil {
			continue
		}
		m := devs[f[0]]
		switch f[1] {
		case "Read":
			m.read += n
		case "Write":
			m.written += n
		default:
			continue
		}
		devs[f[0]] = m
	}
	return devs
}

// parseIOStat reads lines "8:0 rbytes=4096 wbytes=0 rios=…" of v2.
func parseIOStat(b []byte) map[string]moved {
	devs := map[string]moved{}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		var m moved
		for i := 1; i < len(f); i++ {
			k, v, _ := strings.Cut(f[i], "=")
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				continue
			}
			switch k {
			case "rbytes":
				m.read = n
			case "wbytes":
				m.written = n
			}
		}
		if m != (moved{}) {
			devs[f[0]] = m
		}
	}
	return devs
}

// stacked reports whether what a block device ("254:0") moves is counted again at the devices that it is
// made of: device mapper, md. What was found is remembered for a while: a device's number may become another's.
func (h *Host) stacked(dev string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known, ok := h.stacks[dev]; ok && time.Since(h.stacksAt) < time.Minute {
		return known
	}
	if time.Since(h.stacksAt) >= time.Minute {
		h.stacks, h.stacksAt = map[string]bool{}, time.Now()
	}
	slaves, err := os.ReadDir("/sys/dev/block/" + filepath.Base(dev) + "/slaves")
	h.stacks[dev] = err == nil && len(slaves) > 0
	return h.stacks[dev]
}

// OOMKills is how many of the group's processes the kernel killed for want of memory.
func (g *Group) OOMKills() (int64, error) {
	n, err := g.kills()
	return n - g.base.kills, kind("kills in cgroup "+g.path, err)
}

func (g *Group) kills() (int64, error) {
	dir, v2 := g.dir(memory)
	if dir == "" {
		return 0, nil
	}
	if v2 { // counts children too
		n, _, err := g.readKey(dir+"/memory.events", "oom_kill")
		return n, err
	}
	total, _, err := g.readKey(dir+"/memory.oom_control", "oom_kill")
	if err != nil {
		return 0, err
	}
	err = g.walkBelow(dir, func(d string) error {
		n, err := readKey(d+"/memory.oom_control", "oom_kill")
		total += n
		return err
	})
	return total, err
}

// OOMDetail says in one line why the kernel killed the group's processes.
func (g *Group) OOMDetail() string {
	dir, v2 := g.dir(memory)
	if dir == "" {
		return ""
	}
	kills, _ := g.OOMKills()
	u, _ := g.Usage()
	limitFile := "/memory.limit_in_bytes"
	if v2 {
		limitFile = "/memory.max"
	}
	limit, err := readInt(dir + limitFile)
	var b strings.Builder
	if err == nil && u.PeakMemory != nil && *u.PeakMemory > limit-1<<20 || reached(dir, v2) {
		fmt.Fprintf(&b, "the memory limit of %s was reached", berth.SizeInWords(limit))
	} else {
		b.WriteString("the host, or a cgroup around berth's, was out of memory")
	}
	if u.PeakMemory != nil {
		fmt.Fprintf(&b, "; the peak was %s", berth.SizeInWords(*u.PeakMemory))
	}
	fmt.Fprintf(&b, "; the kernel killed %d of its processes", kills)
	return b.String()
}

// reached reports whether the kernel counted that the limit was in the way. Some v1 kernels never do.
func reached(dir string, v2 bool) bool {
	if v2 {
		n, _ := readKey(dir+"/memory.events", "max")
		return n > 0
	}
	n, _ := readInt(dir + "/memory.failcnt")
	swap, _ := readInt(dir + "/memory.memsw.failcnt")
	return n+swap > 0
}

// RefusedForks is how many processes and threads the kernel refused the group at its limit of them.
func (g *Group) RefusedForks() (int64, error) {
	n, err := g.forks()
	return n - g.base.forks, kind("refused forks in cgroup "+g.path, err)
}

func (g *Group) forks() (int64, error) {
	dir, _ := g.dir(pids)
	if dir == "" {
		return 0, nil
	}
	n, _, err := g.readKey(dir+"/pids.events", "max")
	return n, optional(err)
}

// PIDsDetail says in one line that the kernel refused the group processes; "" where it has not.
func (g *Group) PIDsDetail() string {
	n, err := g.RefusedForks()
	if err != nil || n <= 0 {
		return ""
	}
	dir, _ := g.dir(pids)
	limit, err := readInt(dir + "/pids.max")
	if err != nil { // "max": the limit is that of a cgroup around berth's
		return fmt.Sprintf("the kernel refused %d new processes or threads: a cgroup around berth's has no room for more", n)
	}
	return fmt.Sprintf("the limit of %d processes and threads was reached: the kernel refused %d", limit, n)
}
