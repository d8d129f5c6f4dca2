package grant

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
)

// ErrNoRules says that a process has no device rules of cgroup v1.
var ErrNoRules = errors.New("no device rules of cgroup v1")

// RulesOf reads the device rules of a process's cgroup of v1. ErrNoRules where it has none.
func RulesOf(pid int) ([]string, error) {
	own, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
	if err != nil {
		return nil, fmt.Errorf("device rules of process %d: %w", pid, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("device rules of process %d: %w", pid, err)
	}
	dir := directory(string(own), string(mounts))
	if dir == "" {
		return nil, ErrNoRules
	}
	data, err := os.ReadFile(filepath.Join(dir, "devices.list"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("device rules of process %d: %w: it has left its cgroup %s", pid, berth.ErrNotFound, dir)
	}
	if err != nil {
		return nil, fmt.Errorf("device rules of process %d: %w", pid, err)
	}
	return strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' }), nil
}

// directory is where the hierarchy of v1 with the controller devices shows a process's cgroup; "" where it does not.
func directory(own, mounts string) string {
	const controller = "devices"
	cgroup := ""
	for line := range strings.Lines(own) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) == 3 && slices.Contains(strings.Split(f[1], ","), controller) {
			cgroup = f[2]
		}
	}
	if cgroup == "" {
		return ""
	}
	for line := range strings.Lines(mounts) {
		head, tail, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 5 || len(t) < 3 || t[0] != "cgroup" || !slices.Contains(strings.Split(t[2], ","), controller) {
			continue
		}
		if rel, err := filepath.Rel(h[3], cgroup); err == nil && rel != ".." && !strings.HasPrefix(rel, "../") {
			return filepath.Join(h[4], rel)
		}
	}
	return ""
}
