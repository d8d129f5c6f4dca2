package docker

import (
	"errors"
	"testing"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/system"
)

// TestLimitsOf: what a daemon says that it does not keep is refused, and what it would leave out all the same.
func TestLimitsOf(t *testing.T) {
	all := system.Info{CPUCfsQuota: true, MemoryLimit: true, PidsLimit: true, CgroupVersion: "1"}
	v2 := all
	v2.CgroupVersion = "2"
	noPIDs := all
	noPIDs.PidsLimit = false
	for _, row := range []struct {
		name    string
		info    system.Info
		host    hostInfo
		refuses berth.Limits
	}{
		{"root's", all, hostInfo{}, berth.Limits{}},
		{"on a kernel without one", noPIDs, hostInfo{}, berth.Limits{PIDs: 1}},
		{"an ordinary user's, on v1", all, hostInfo{rootless: true}, berth.Limits{CPU: 1, Memory: 1, PIDs: 1}},
		{"an ordinary user's, on v2", v2, hostInfo{rootless: true}, berth.Limits{}},
		{"Podman, which says nothing true", system.Info{}, hostInfo{podman: true}, berth.Limits{}},
		{"an ordinary user's Podman, on v1", all, hostInfo{podman: true, rootless: true}, berth.Limits{CPU: 1, Memory: 1, PIDs: 1}},
	} {
		keeps := limitsOf(row.info, &row.host)
		for what, l := range map[string]struct{ asked, refused berth.Limits }{
			"CPU":       {berth.Limits{CPU: 1}, berth.Limits{CPU: row.refuses.CPU}},
			"memory":    {berth.Limits{Memory: 1}, berth.Limits{Memory: row.refuses.Memory}},
			"processes": {berth.Limits{PIDs: 1}, berth.Limits{PIDs: row.refuses.PIDs}},
		} {
			if err := keeps.refuse(l.asked); errors.Is(err, berth.ErrUnsupported) != (l.refused == l.asked) {
				t.Errorf("%s, a limit of %s: %v", row.name, what, err)
			}
		}
		if err := keeps.refuse(berth.Limits{PIDs: -1}); err != nil {
			t.Errorf("%s, no limit: %v", row.name, err)
		}
	}
}
