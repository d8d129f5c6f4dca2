package ociruntime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
)

// allow lets a container's processes open device nodes, by the device rules of its cgroup. On v1 it reads back what
// it wrote. On v2 it puts, in place of each program that bounds the cgroup's devices, one that asks first for these
// nodes; programs of cgroups further up go on to bound them.
func allow(pid int, nodes []oci.LinuxDevice) error {
	g, err := groupOf(pid)
	if err != nil {
		return fmt.Errorf("device rules: %w: %w", berth.ErrUnsupported, err)
	}
	if own, ok := ownGroup(pid); !ok {
		return fmt.Errorf("device rules: %w: the container is in the cgroup %s of its engine, and what it may open others may too", berth.ErrUnsupported, own.dir)
	}
	if g.v2 {
		err = allowV2(g.dir, nodes)
	} else {
		err = allowV1(g.dir, nodes)
	}
	if err != nil {
		return fmt.Errorf("device rules of %s: %w", g.dir, err)
	}
	return nil
}

// rule is a node as v1 writes it.
func rule(n oci.LinuxDevice) string { return fmt.Sprintf("%s %d:%d rwm", n.Type, n.Major, n.Minor) }

func allowV1(dir string, nodes []oci.LinuxDevice) error {
	for _, n := range nodes {
		if err := os.WriteFile(filepath.Join(dir, "devices.allow"), []byte(rule(n)), 0); err != nil {
			return fmt.Errorf("allow %s: %w", n.Path, err)
		}
	}
	list, err := os.ReadFile(filepath.Join(dir, "devices.list"))
	if err != nil {
		return err
	}
	have := strings.Split(string(list), "\n")
	for _, n := range nodes {
		if !contains(have, rule(n)) {
			return fmt.Errorf("allow %s: %w: the kernel has not taken the rule %q", n.Path, berth.ErrUnavailable, rule(n))
		}
	}
	return nil
}

func contains(list []string, rule string) bool {
	for _, l := range list {
		if l == rule || l == "a *:* rwm" {
			return true
		}
	}
	return false
}
