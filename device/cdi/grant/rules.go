package grant

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth"
)

// ErrNoRules says that a process has no device rules of cgroup v1.
var ErrNoRules = errors.New("no device rules of cgroup v1")

// RulesOf reads the device rules of a process's cgroup of v1. ErrNoRules where it has none.
func RulesOf(pid int) ([]string, error) { return new(Hierarchies).RulesOf(pid) }

// RulesOf is the function of that name. Where what is known of the hierarchies no longer leads to the rules, it looks anew.
func (h *Hierarchies) RulesOf(pid int) ([]string, error) {
	rules, err := h.rulesOf(pid)
	if err != nil && !errors.Is(err, ErrNoRules) {
		h.forget()
		rules, err = h.rulesOf(pid)
	}
	return rules, err
}

func (h *Hierarchies) rulesOf(pid int) ([]string, error) {
	g, err := h.groupOf(pid)
	if errors.Is(err, ErrNoGroup) || err == nil && g.V2 {
		return nil, ErrNoRules
	}
	if err != nil {
		return nil, fmt.Errorf("device rules of process %d: %w", pid, err)
	}
	data, err := os.ReadFile(filepath.Join(g.Dir, "devices.list"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("device rules of process %d: %w: it has left its cgroup %s", pid, berth.ErrNotFound, g.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("device rules of process %d: %w", pid, err)
	}
	return strings.FieldsFunc(string(data), func(r rune) bool { return r == '\n' }), nil
}
