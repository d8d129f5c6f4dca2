package cgroup

import (
	"errors"
	"io/fs"
	"strconv"

	"golang.org/x/sys/unix"
)

// set changes the limits from what they are to what they shall be. g.mu is held, or g is not shared yet.
func (g *Group) set(from, to Limits) error {
	if from.Memory != to.Memory {
		if err := g.setMemory(to.Memory); err != nil {
			return err
		}
	}
	if from.CPU != to.CPU {
		if err := g.setCPU(from.CPU, to.CPU); err != nil {
			return err
		}
	}
	if from.PIDs != to.PIDs {
		return g.setPIDs(to.PIDs)
	}
	return nil
}

// setMemory limits memory and keeps the group from swapping.
func (g *Group) setMemory(bytes int64) error {
	dir, v2 := g.dir(memory)
	switch {
	case dir == "":
		return nil
	case !v2:
		return setMemoryV1(dir, bytes)
	case bytes == 0:
		if err := write(dir+"/memory.max", "max"); err != nil {
			return err
		}
		return optional(write(dir+"/memory.swap.max", "max"))
	}
	if err := write(dir+"/memory.max", strconv.FormatInt(bytes, 10)); err != nil {
		return err
	}
	// Not there in a kernel without swap.
	return optional(write(dir+"/memory.swap.max", "0"))
}

// setMemoryV1 sets memory, and memory with swap to the same. The latter can never be the lower of the two,
// so the order depends on what they were.
func setMemoryV1(dir string, bytes int64) error {
	value := strconv.FormatInt(bytes, 10)
	if bytes == 0 {
		value = "-1"
		if err := optional(write(dir+"/memory.memsw.limit_in_bytes", value)); err != nil {
			return err
		}
		return write(dir+"/memory.limit_in_bytes", value)
	}
	err := write(dir+"/memory.limit_in_bytes", value)
	if errors.Is(err, unix.EINVAL) {
		if err := write(dir+"/memory.memsw.limit_in_bytes", value); err != nil {
			return err
		}
		err = write(dir+"/memory.limit_in_bytes", value)
	}
	if err != nil {
		return err
	}
	err = write(dir+"/memory.memsw.limit_in_bytes", value)
	if errors.Is(err, fs.ErrNotExist) {
		return write(dir+"/memory.swappiness", "0")
	}
	return err
}

func (g *Group) setCPU(from, cores float64) error {
	dir, v2 := g.dir(cpu)
	q, period := quota(cores)
	limit := strconv.FormatInt(q, 10)
	switch {
	case dir == "":
		return nil
	case v2 && cores == 0:
		return write(dir+"/cpu.max", "max 100000")
	case v2:
		return write(dir+"/cpu.max", limit+" "+strconv.FormatInt(period, 10))
	case cores == 0:
		return write(dir+"/cpu.cfs_quota_us", "-1")
	}
	if _, old := quota(from); period != old {
		// The new period with the old quota may be more than the group may have, or less than there is.
		if err := write(dir+"/cpu.cfs_quota_us", "-1"); err != nil {
			return err
		}
		if err := write(dir+"/cpu.cfs_period_us", strconv.FormatInt(period, 10)); err != nil {
			return err
		}
	}
	return write(dir+"/cpu.cfs_quota_us", limit)
}

func (g *Group) setPIDs(n int64) error {
	dir, _ := g.dir(pids)
	if dir == "" {
		return nil
	}
	value := strconv.FormatInt(n, 10)
	switch n {
	case 0:
		value = strconv.Itoa(DefaultPIDs)
	case -1:
		value = "max"
	}
	return write(dir+"/pids.max", value)
}

// dir is where a controller's files of the group are; "" where nowhere.
func (g *Group) dir(c controller) (dir string, v2 bool) {
	if d := g.v1[c]; d != "" {
		return d, false
	}
	if g.v2 != "" && g.host.v2has[c] {
		return g.v2, true
	}
	return "", false
}

// optional ignores a file that the kernel does not have.
func optional(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
