package enginetest

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
)

// limits are the checks that limits are enforced, and that a breach is named.
func limits() []Check {
	return []Check{
		check("out of memory", outOfMemory, MemoryLimit),
		check("out of memory in a child", outOfMemoryInChild, MemoryLimit),
		check("out of memory survived", outOfMemorySurvived, MemoryLimit),
		check("killed is not out of memory", killedIsNotOutOfMemory, MemoryLimit),
		check("memory limit of the sandbox", memoryOfSandbox, MemoryLimit),
		check("no swap", noSwap, MemoryLimit),
		check("too little memory to start", tooLittleMemory, MemoryLimit),
		check("cpu limit", cpuLimit, CPULimit, UsageOf),
		check("pids limit", pidsLimit, PIDsLimit),
		check("below the pids limit", pidsMany, PIDsLimit),
		check("pids are limited by default", pidsDefault, PIDsLimit),
		check("out of disk", outOfDisk, DiskLimit),
		check("out of disk in a volume", outOfDiskInVolume, DiskLimit),
		check("below the disk limit", belowDiskLimit, DiskLimit),
		check("out of disk survived", outOfDiskSurvived, DiskLimit),
		check("size of a volume", volumeSize, DiskLimit),
		check("usage at the end", usage, UsageOf),
		check("usage while it runs", stats, UsageOf),
	}
}

const memory = 48 << 20

// hog takes 200 MB of memory, if it may.
const hog = "dd if=/dev/zero of=/dev/null bs=200M count=1"

// seen is a script that begins when the engine sees that the memory is out.
func (t *trial) seen(script string) string {
	if t.env.Blind == 0 {
		return script
	}
	return fmt.Sprintf("sleep %g; %s", t.env.Blind.Seconds(), script)
}

func isOutOfMemory(o outcome) error {
	if o.Reason != berth.OutOfMemory || o.Code == 0 || !strings.Contains(o.Detail, "48") && !strings.Contains(o.Detail, strconv.Itoa(memory)) {
		return fmt.Errorf("over its memory limit of 48 MiB it ended with %s; want OutOfMemory, a code that is not 0, and a detail with the limit", o)
	}
	return nil
}

func outOfMemory(t *trial) error {
	o, err := t.sh(t.seen("echo before; exec "+hog), limited(berth.Limits{Memory: memory}))
	if err != nil {
		return err
	}
	if err := errors.Join(isOutOfMemory(o), same("its output", o.Out, "before\n")); err != nil {
		return err
	}
	return nil
}

func outOfMemoryInChild(t *trial) error {
	o, err := t.sh(t.seen(hog+" 2>/dev/null; "+t.seen("exit 3")), limited(berth.Limits{Memory: memory}))
	if err != nil {
		return err
	}
	return errors.Join(isOutOfMemory(o), same("its code", o.Code, 3))
}

// outOfMemorySurvived: a child was killed, and the command made do without it; which is told all the same.
func outOfMemorySurvived(t *trial) error {
	o, err := t.sh(t.seen(hog+" 2>/dev/null; "+t.seen("exit 0")), limited(berth.Limits{Memory: memory}))
	if err != nil {
		return err
	}
	if !strings.Contains(o.Detail, "the memory limit of 48 MiB was reached") {
		err = fmt.Errorf("a child was killed at the memory limit of 48 MiB, and the detail is %q", o.Detail)
	}
	return errors.Join(o.exited(0), err)
}

func killedIsNotOutOfMemory(t *trial) error {
	o, err := t.sh("exit 137", limited(berth.Limits{Memory: memory}))
	if err != nil {
		return err
	}
	return o.exited(137)
}

func memoryOfSandbox(t *trial) error {
	o, err := t.sh(t.seen(hog+" || exit 3; exit 4"), sandbox(func(s *berth.SandboxSpec) { s.Limits.Memory = memory }))
	if err != nil {
		return err
	}
	return isOutOfMemory(o)
}

// noSwap: with a limit on memory, no memory beyond it is had on disk.
func noSwap(t *trial) error {
	o, err := t.sh(t.seen("dd if=/dev/zero of=/dev/shm/big bs=1M count=150 || exit 3; exit 4"), limited(berth.Limits{Memory: memory}),
		step(func(s *berth.StepSpec) { s.ShmSize = 200 << 20 }))
	if err != nil {
		return err
	}
	return isOutOfMemory(o)
}

// cpuLimit looks at the limit, too: on a machine that is busy, two loops may not get more than it anyway.
func cpuLimit(t *trial) error {
	o, err := t.sh(`timeout 2 sh -c 'while :; do :; done' & timeout 2 sh -c 'while :; do :; done' & wait
		cd /sys/fs/cgroup; if [ -e cpu.max ]; then cat cpu.max; else echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us); fi`, limited(berth.Limits{CPU: 0.5}))
	if err != nil {
		return err
	}
	var quota, period int64
	if _, err := fmt.Sscan(o.Out, &quota, &period); err != nil || quota*2 != period {
		return fmt.Errorf("limited to half a core, its cgroup has a quota and period of %s", quoted(o.Out))
	}
	if o.Usage.CPUSeconds == nil {
		return errors.New("the CPU time is not known")
	}
	// On a busy machine the loops last longer than they were told.
	if used, lasted := *o.Usage.CPUSeconds, max(2, o.Ended.Sub(o.Started).Seconds()); used > 0.75*lasted {
		return fmt.Errorf("limited to half a core, two loops of 2 s used %.2f s of CPU in %.2f s", used, lasted)
	}
	return nil
}

func pidsLimit(t *trial) error {
	o, err := t.sh("i=0; while [ $i -lt 60 ]; do sleep 100 & i=$((i+1)); done; echo all", limited(berth.Limits{PIDs: 20}))
	if err != nil {
		return err
	}
	if o.Out == "all\n" && o.Code == 0 {
		return fmt.Errorf("limited to 20 processes it started 60: %s", o)
	}
	if o.Code != 0 && !strings.Contains(o.Detail, "the limit of 20 processes and threads was reached") {
		return fmt.Errorf("refused more than 20 processes, it ended with %s; want the limit in the detail", o)
	}
	return nil
}

// pidsMany: who stays below the limit is told nothing.
func pidsMany(t *trial) error {
	o, err := t.sh("for i in 1 2 3 4 5 6 7 8; do sleep 0.3 & done; wait; exit 3", limited(berth.Limits{PIDs: 20}))
	if err != nil {
		return err
	}
	return errors.Join(o.exited(3), same("its detail", o.Detail, ""))
}

func pidsDefault(t *trial) error {
	o, err := t.sh("cat /sys/fs/cgroup/pids.max /sys/fs/cgroup/pids/pids.max 2>/dev/null")
	if err != nil {
		return err
	}
	if n, err := strconv.Atoi(strings.TrimSpace(o.Out)); err != nil || n < 1 {
		return fmt.Errorf("the container's limit of processes reads %s", quoted(o.Out))
	}
	return nil
}

const disk = 16 << 20

func isOutOfDisk(o outcome) error {
	if o.Reason != berth.OutOfDisk || o.Code == 0 || o.Detail == "" {
		return fmt.Errorf("over its disk limit it ended with %s; want OutOfDisk, a code that is not 0, and a detail", o)
	}
	return nil
}

// fill writes 64 MiB, slowly enough for a limit that is looked at each second.
const fill = "for i in 1 2 3 4 5 6 7 8; do dd if=/dev/zero of=%[1]s/$i bs=1M count=8 conv=fsync 2>/dev/null || exit 3; sleep 0.4; done"

func diskLimit(s *berth.SandboxSpec, _ *berth.StepSpec) { s.Limits.Disk = disk }

func outOfDisk(t *trial) error {
	o, err := t.sh("mkdir /fill; "+fmt.Sprintf(fill, "/fill"), diskLimit)
	if err != nil {
		return err
	}
	return isOutOfDisk(o)
}

func outOfDiskInVolume(t *trial) error {
	s, err := t.sandbox(shared, diskLimit)
	if err != nil {
		return err
	}
	if s.DiskEnforcement() == berth.DiskNone {
		return errors.New("with a disk limit, DiskEnforcement says none")
	}
	o, err := t.in(s, fmt.Sprintf(fill, "/vol"))
	if err != nil {
		return err
	}
	return isOutOfDisk(o)
}

func belowDiskLimit(t *trial) error {
	o, err := t.sh("dd if=/dev/zero of=/file bs=1M count=4 2>/dev/null && dd if=/dev/zero of=/vol/file bs=1M count=4 2>/dev/null && sleep 1.2; exit 5", shared, diskLimit)
	if err != nil {
		return err
	}
	return o.exited(5)
}

// outOfDiskSurvived: a write was refused, and the command made do without it; which is told all the same. Where the limit
// is sampled nothing is refused.
func outOfDiskSurvived(t *trial) error {
	s, err := t.sandbox(diskLimit)
	if err != nil || s.DiskEnforcement() == berth.DiskSampled {
		return err
	}
	o, err := t.in(s, "dd if=/dev/zero of=/room bs=1k count=24 2>/dev/null; dd if=/dev/zero of=/f bs=1M count=20 2>/dev/null; rm /room; exit 0")
	if err != nil {
		return err
	}
	if !strings.Contains(o.Detail, "the disk limit of 16 MiB was full") {
		err = fmt.Errorf("20 MiB were written within a disk limit of 16 MiB, and the detail is %q", o.Detail)
	}
	if err := errors.Join(o.exited(0), err); err != nil {
		return err
	}
	// A step after it is not told to have filled what it has found full.
	if o, err = t.in(s, "exit 0"); err != nil {
		return err
	}
	if strings.Contains(o.Detail, "full, or all but full") {
		err = fmt.Errorf("it has written nothing after a step that has filled the disk, and the detail is %q", o.Detail)
	}
	if err := errors.Join(o.exited(0), err); err != nil {
		return err
	}
	// Nor is the disk below it blamed where there is no room at all to start it.
	if o, err = t.in(s, "dd if=/dev/zero of=/rest bs=1k count=400 2>/dev/null; exit 0"); err == nil {
		o, err = t.in(s, "exit 0")
	}
	if err != nil || o.Reason == berth.OutOfDisk && strings.Contains(o.Detail, "the disk limit of 16 MiB is full") {
		return err
	}
	return o.exited(0)
}

func volumeSize(t *trial) error {
	o, err := t.sh(fmt.Sprintf(fill, "/sized"), sandbox(func(s *berth.SandboxSpec) { s.Volumes = []berth.Volume{{Path: "/sized", Size: disk}} }))
	if err != nil {
		return err
	}
	return isOutOfDisk(o)
}

// work uses 0.5 s of CPU, however long that takes here, and then has 6 processes at once.
const work = `while read -r x </proc/$$/stat && set -- $x && [ $((${14}+${15})) -lt 50 ]; do :; done
	for i in 1 2 3 4 5; do sleep 0.3 & done; wait`

func usage(t *trial) error {
	// It says itself what it and its children used, in hundredths: on a slow or loaded machine dd alone takes seconds.
	o, err := t.sh("dd if=/dev/zero of=/dev/null bs=40M count=1 2>/dev/null; " + work + `
	read -r x </proc/$$/stat && set -- $x && echo $((${14}+${15}+${16}+${17}))`)
	if err != nil {
		return err
	}
	if err := o.exited(0); err != nil {
		return err
	}
	used, err := strconv.Atoi(strings.TrimSpace(o.Out))
	if err != nil || used < 50 {
		return fmt.Errorf("the command says that it used %q hundredths of a CPU second; want 50 and more", o.Out)
	}
	own := float64(used) / 100
	u := o.Usage
	switch {
	case u.CPUSeconds == nil || *u.CPUSeconds < own-0.02 || *u.CPUSeconds > own+2.5: // what started the container may count, too
		return fmt.Errorf("CPU seconds %s of a command that used %.2f", show(u.CPUSeconds), own)
	case u.PeakMemory == nil || *u.PeakMemory < 40<<20 || *u.PeakMemory > 120<<20:
		return fmt.Errorf("peak memory %s of a command that held 40 MiB", show(u.PeakMemory))
	case u.PeakPIDs != nil && (*u.PeakPIDs < 6 || *u.PeakPIDs > 40):
		return fmt.Errorf("peak pids %s of a command that had 6 processes", show(u.PeakPIDs))
	case u.Memory != nil || u.PIDs != nil:
		return fmt.Errorf("an ended container has memory %s and pids %s now", show(u.Memory), show(u.PIDs))
	}
	return nil
}

// tooLittleMemory: a limit in which nothing can start is an error or an end with a reason, and leaves nothing.
func tooLittleMemory(t *trial) error {
	s, err := t.sandbox()
	if err != nil {
		return err
	}
	c, err := s.Start(t.ctx, t.script("true", limited(berth.Limits{Memory: 8192})))
	if err != nil {
		if !errors.Is(err, berth.ErrInvalid) && !errors.Is(err, berth.ErrExhausted) {
			return fmt.Errorf("start with 8 KiB of memory: error %w is neither ErrInvalid nor ErrExhausted", err)
		}
		all, lerr := t.statuses(s.ID())
		if lerr == nil && len(all) != 1 {
			lerr = fmt.Errorf("after a start that was refused the list holds %+v", all)
		}
		return lerr
	}
	o, err := t.end(c)
	if err == nil && o.OK() {
		err = fmt.Errorf("with 8 KiB of memory it ended with %s", o)
	}
	return err
}

func show[T any](p *T) string {
	if p == nil {
		return "unknown"
	}
	return fmt.Sprint(*p)
}

func stats(t *trial) error {
	_, c, err := t.start("sleep 1000 & sleep 1000 & echo ready; wait")
	if err != nil {
		return err
	}
	s, ok := c.(berth.Statser)
	if !ok {
		return errors.New("the container is no berth.Statser")
	}
	if err := t.ready(c); err != nil {
		return err
	}
	if err := t.eventually("three processes and their memory are seen", func() (bool, error) {
		u, err := s.Stats(t.ctx)
		return err == nil && u.PIDs != nil && *u.PIDs >= 3 && *u.PIDs < 10 && u.Memory != nil && *u.Memory > 0 && u.CPUSeconds != nil, err
	}); err != nil {
		return err
	}
	if _, err := t.stopped(c, 0); err != nil {
		return err
	}
	_, err = s.Stats(t.ctx)
	return kind("usage of an ended container", err, berth.ErrConflict)
}
