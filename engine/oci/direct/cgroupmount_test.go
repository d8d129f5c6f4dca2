package direct

import (
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/engine/oci/bundle"
)

// TestClonedHierarchies: a v1 hierarchy that is cloned is as one that is mounted, whatever its options.
func TestClonedHierarchies(t *testing.T) {
	s := testStarter(t)
	found, err := s.cgroups.get()
	if err != nil {
		t.Fatal(err)
	}
	if len(found) == 0 {
		t.Skip("this host has no v1 hierarchies")
	}
	cg, name := newFakeCgroup(t)
	defer func() {
		if cloned := len(s.roots.mounts) == 3*len(found); cloned != since(6, 15) {
			t.Errorf("%d hierarchies can be cloned", len(s.roots.mounts))
		}
	}()
	for _, options := range []string{"ro,nosuid,noexec,nodev", "nosuid", "ro,noatime"} {
		var seen [2]string
		for i, known := range []bool{false, true} {
			cg.known = known
			// Of a mount: its root, place, options, propagation, type, source and those of the file system.
			const script = `awk '$5 ~ "^/sys/fs/cgroup" { $1 = $2 = $3 = ""; print }' /proc/self/mountinfo
				cd /sys/fs/cgroup; ls -l . | awk '{ print $1, $9, $10, $11 }'; ls -d */tasks; cat /proc/self/cgroup; touch memory/tasks 2>&1`
			got := run(t, s, script, func(b *bundle.Bundle) {
				b.Cgroup = cg
				b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: strings.Split(options, ",")})
			})
			seen[i] = got.stdout + got.stderr
		}
		if seen[0] != seen[1] {
			t.Errorf("%s: cloned:\n%s\nmounted:\n%s", options, seen[1], seen[0])
		}
		if !strings.Contains(seen[1], " / /sys/fs/cgroup/memory ") || strings.Contains(seen[1], name) {
			t.Errorf("%s: the container's own cgroup is not the root of what it sees:\n%s", options, seen[1])
		}
	}
}
