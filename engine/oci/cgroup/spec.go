package cgroup

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
)

// DefaultPIDs is how many processes and threads a group may hold where its limits say nothing.
const DefaultPIDs = 4096

// Spec describes a group. A field of 0 is no limit, but for PIDs.
type Spec struct {
	// Path is "INSTANCE/ID": whose it is, and its name among those. Both match [a-z0-9][a-z0-9._-]*.
	Path string
	// Parent is the cgroup below which the group is made; "" is the host's own place for berth. On v1 that is
	// so in each hierarchy that has the parent; ErrNotFound if none has. What is made between the two goes with the last group.
	Parent string
	Limits
	// Devices are allowed beside DefaultDevices, in the words of the OCI runtime spec. A rule that denies
	// everything may come first; then the list is complete, and the default devices are not added. No other
	// rule that denies is supported.
	Devices []specs.LinuxDeviceCgroup
}

// Limits bound what the processes of a group use together.
type Limits struct {
	CPU    float64 // cores, at least 0.01; 0 is no limit
	Memory int64   // bytes, and no swap beside; 0 is no limit
	PIDs   int64   // processes and threads; 0 is DefaultPIDs, -1 no limit
}

func (s *Spec) check() error {
	instance, id, ok := strings.Cut(s.Path, "/")
	if !ok || !plain(instance) || !plain(id) {
		return fmt.Errorf("cgroup %q: %w: a path is INSTANCE/ID, both of a-z, 0-9, '.', '_' and '-'", s.Path, berth.ErrInvalid)
	}
	if s.Parent != "" && (path.Clean("/"+s.Parent) != s.Parent || strings.Contains(s.Parent, "/..")) {
		return fmt.Errorf("cgroup parent %q: %w: a parent is an absolute clean path", s.Parent, berth.ErrInvalid)
	}
	return s.Limits.check()
}

func (l *Limits) check() error {
	switch {
	case math.IsNaN(l.CPU), l.CPU < 0, l.CPU > 0 && l.CPU < 0.01, l.CPU > 1e5:
		return fmt.Errorf("CPU limit %v: %w: it is at least 0.01 cores", l.CPU, berth.ErrInvalid)
	case l.Memory < 0:
		return fmt.Errorf("memory limit %d: %w: it is a number of bytes", l.Memory, berth.ErrInvalid)
	case l.PIDs < -1:
		return fmt.Errorf("pids limit %d: %w: it is a number of processes, or -1 for none", l.PIDs, berth.ErrInvalid)
	case l.PIDs > berth.MaxPIDs:
		return fmt.Errorf("pids limit %d: %w: Linux takes %d at most; -1 is no limit", l.PIDs, berth.ErrInvalid, berth.MaxPIDs)
	}
	return nil
}

// plain reports whether name can be a cgroup of a user's: names of our own begin with an underscore.
func plain(name string) bool {
	if name == "" || len(name) > 128 || strings.ContainsRune("._-", rune(name[0])) {
		return false
	}
	return !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && !strings.ContainsRune("._-", r)
	})
}

// quota is a CPU limit in microseconds of CPU time a period. Of the usual periods it takes the first that
// expresses the cores exactly; the shorter it is, the more evenly the time is spread.
func quota(cores float64) (quotaUS, periodUS int64) {
	for _, periodUS = range []int64{100_000, 200_000, 250_000, 500_000, 1_000_000} {
		exact := cores * float64(periodUS)
		if q := math.Round(exact); math.Abs(exact-q) < 1e-6 {
			return max(int64(q), 1000), periodUS
		}
	}
	return max(int64(math.Round(cores*100_000)), 1000), 100_000
}

func sorted(s []string) []string {
	slices.Sort(s)
	return s
}
