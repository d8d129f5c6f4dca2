package direct

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
)

// cgroupMount plans a mount of type cgroup.
func (p *plan) cgroupMount(m *specs.Mount, o *mountOptions) error {
	return fmt.Errorf("type %q: %w", m.Type, berth.ErrUnsupported)
}
