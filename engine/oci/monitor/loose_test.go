package monitor

import (
	"slices"
	"testing"

	"github.com/berth-project/berth"
)

// Who could take files out of a quota has none.
func TestLooseHasNoQuota(t *testing.T) {
	for _, loose := range []bool{false, true} {
		sb := &sandbox{m: &Monitor{}}
		sb.rec.Spec = berth.SandboxSpec{Limits: berth.Limits{Disk: 1 << 30}, Loose: loose}
		cfg := sb.scratchConfig()
		if (cfg.Prefer == nil || slices.Contains(cfg.Prefer, berth.DiskQuota)) == loose || cfg.Thin != loose {
			t.Errorf("loose %v: %q, thin %v", loose, cfg.Prefer, cfg.Thin)
		}
	}
}
