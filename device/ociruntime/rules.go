package ociruntime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
)

// allow lets a container's processes open device nodes, by the device rules of its cgroup. On v1 it reads back what
// it wrote. On v2 it puts, in place of each program that bounds the cgroup's devices, one that asks first for these
// nodes; programs of cgroups further up go on to bound them.
func allow(pid int, nodes []berth.Node) error {
	g, err := grant.GroupOf(pid)
	if err != nil {
		return fmt.Errorf("device rules: %w: %w", berth.ErrUnsupported, err)
	}
	if own, ok := ownGroup(pid); !ok {
		return fmt.Errorf("device rules: %w: the container is in the cgroup %s of its engine, and what it may open others may too", berth.ErrUnsupported, own.Dir)
	}
	if g.V2 {
		err = allowV2(g.Dir, nodes)
	} else {
		err = allowV1(g.Dir, nodes)
	}
	if err != nil {
		return fmt.Errorf("device rules of %s: %w", g.Dir, err)
	}
	return nil
}

// rule is a node as v1 writes it.
func rule(n berth.Node) string {
	return fmt.Sprintf("%s %d:%d %s", n.Type, n.Major, n.Minor, n.Permissions)
}

func allowV1(dir string, nodes []berth.Node) error {
	for _, n := range nodes {
		if err := os.WriteFile(filepath.Join(dir, "devices.allow"), []byte(rule(n)), 0); err != nil {
			return fmt.Errorf("allow %s: %w", n.Host, err)
		}
	}
	list, err := os.ReadFile(filepath.Join(dir, "devices.list"))
	if err != nil {
		return err
	}
	have := strings.Split(string(list), "\n")
	for _, n := range nodes {
		if !contains(have, rule(n)) {
			return fmt.Errorf("allow %s: %w: the kernel has not taken the rule %q", n.Host, berth.ErrUnavailable, rule(n))
		}
	}
	return nil
}

// contains reports whether the rules of a group let it do all that a rule says. The kernel joins those for one device.
func contains(list []string, rule string) bool {
	end := strings.LastIndexByte(rule, ' ')
	for _, l := range list {
		have, ok := strings.CutPrefix(l, rule[:end+1])
		if l == "a *:* rwm" || ok && strings.Trim(rule[end+1:], have) == "" {
			return true
		}
	}
	return false
}
