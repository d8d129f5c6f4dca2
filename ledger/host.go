package ledger

import (
	"fmt"
	"math"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Host finds what this process may use of this host: the CPUs of its affinity and cgroups, and the memory of
// the host or its cgroups, whichever is less. Disk is the size of the file system that holds dir, less what
// is reserved for root; dir is "" for none.
func Host(dir string) (Capacity, error) {
	var c Capacity
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		return c, fmt.Errorf("find capacity: %w", err)
	}
	c.CPU = float64(set.Count())
	memory, err := memTotal()
	if err != nil {
		return c, fmt.Errorf("find capacity: %w", err)
	}
	c.Memory = memory
	var pool []string
	if online := onlineCPUs(); online > set.Count() {
		pool = append(pool, "cpus "+cpuList(&set))
	}
	if cpu, where := cgroupCPU(); cpu < c.CPU {
		c.CPU = cpu
		pool = append(pool, where)
	}
	if memory, where := cgroupMemory(); memory < c.Memory {
		c.Memory = memory
		pool = append(pool, where)
	}
	c.Pool = strings.Join(pool, " ")
	if dir == "" {
		return c, nil
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return c, fmt.Errorf("find capacity: statfs %s: %w", dir, err)
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return c, fmt.Errorf("find capacity: stat %s: %w", dir, err)
	}
	c.Disk = int64(fs.Blocks-(fs.Bfree-fs.Bavail)) * fs.Bsize
	c.DiskOf = fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	return c, nil
}

func memTotal() (int64, error) {
	data, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		var kib int64
		if _, err := fmt.Sscanf(line, "MemTotal: %d kB", &kib); err == nil {
			return kib << 10, nil
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemTotal")
}

// onlineCPUs counts the CPUs of the host; 0 where it cannot.
func onlineCPUs() int {
	data, err := os.ReadFile("/sys/devices/system/cpu/online")
	if err != nil {
		return 0
	}
	n := 0
	for part := range strings.SplitSeq(strings.TrimSpace(string(data)), ",") {
		lo, hi, ok := strings.Cut(part, "-")
		if !ok {
			hi = lo
		}
		a, err1 := strconv.Atoi(lo)
		b, err2 := strconv.Atoi(hi)
		if err1 != nil || err2 != nil {
			return 0
		}
		n += b - a + 1
	}
	return n
}

func cpuList(set *unix.CPUSet) string {
	var parts []string
	for cpu := 0; cpu < 8192; cpu++ {
		if !set.IsSet(cpu) {
			continue
		}
		last := cpu
		for set.IsSet(last + 1) {
			last++
		}
		if last == cpu {
			parts = append(parts, strconv.Itoa(cpu))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", cpu, last))
		}
		cpu = last
	}
	return strings.Join(parts, ",")
}

// cgroupCPU is the least CPU quota, in cores, of this process's cgroup and those above it.
func cgroupCPU() (cores float64, where string) {
	cores = math.Inf(1)
	for dir := range cgroupDirs("cpu") {
		var q float64
		if quota, period, ok := strings.Cut(readLine(dir+"/cpu.max"), " "); ok {
			q = ratio(quota, period)
		} else {
			q = ratio(readLine(dir+"/cpu.cfs_quota_us"), readLine(dir+"/cpu.cfs_period_us"))
		}
		if q < cores {
			cores, where = q, dir
		}
	}
	return cores, where
}

func ratio(quota, period string) float64 {
	q, err1 := strconv.ParseFloat(quota, 64)
	p, err2 := strconv.ParseFloat(period, 64)
	if err1 != nil || err2 != nil || q <= 0 || p <= 0 {
		return math.Inf(1)
	}
	return q / p
}

// cgroupMemory is the least memory limit, in bytes, of this process's cgroup and those above it.
func cgroupMemory() (limit int64, where string) {
	limit = math.MaxInt64
	for dir := range cgroupDirs("memory") {
		for _, name := range []string{"/memory.max", "/memory.limit_in_bytes"} {
			n, err := strconv.ParseInt(readLine(dir+name), 10, 64)
			if err == nil && n < limit {
				limit, where = n, dir
			}
		}
	}
	return limit, where
}

// cgroupDirs yields the cgroup of this process that has the controller, and all above it.
func cgroupDirs(controller string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		data, err := os.ReadFile("/proc/self/cgroup")
		if err != nil {
			return
		}
		for line := range strings.Lines(string(data)) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(f) != 3 {
				continue
			}
			root := ""
			if f[1] == "" {
				root = strings.TrimSuffix(cgroupRoot, "/")
				if _, err := os.Stat(root + "/cgroup.controllers"); err != nil {
					root += "/unified"
				}
			}
			for name := range strings.SplitSeq(f[1], ",") {
				if name == controller {
					root = cgroupRoot + controller
				}
			}
			if root == "" {
				continue
			}
			for p := path.Clean("/" + f[2]); ; p = path.Dir(p) {
				if !yield(path.Clean(root + p)) {
					return
				}
				if p == "/" {
					break
				}
			}
		}
	}
}

func readLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}
