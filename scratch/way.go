package scratch

import (
	"fmt"
	"os"

	"github.com/berth-project/berth"
)

// Way is how limits are most likely to be kept in dir, and why not in a better way.
func Way(dir string) (berth.DiskEnforcement, error) {
	q, err := openQuotas(dir)
	if err == nil {
		q.close()
		return berth.DiskQuota, nil
	}
	if os.Geteuid() != 0 || !initialUserNS() {
		return berth.DiskSampled, fmt.Errorf("project quotas and loop devices need root%.0w", berth.ErrUnsupported)
	}
	if _, lerr := os.Stat("/dev/loop-control"); lerr != nil {
		return berth.DiskSampled, fmt.Errorf("%w; no loop devices: %w", err, lerr)
	}
	if _, merr := findMkfs(""); merr != nil {
		return berth.DiskSampled, fmt.Errorf("%w; %w", err, merr)
	}
	return berth.DiskLoop, err
}
