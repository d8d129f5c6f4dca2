//go:build !cgo

package nvml

import (
	"fmt"
	"io"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// Built says whether this build can ask the library.
const Built = false

// Main answers for the process that Asker.Command starts; this build has nothing to answer with.
func Main(_ *device.Host, _ io.Writer) error {
	return fmt.Errorf("NVIDIA's management library: %w: this berth was built without cgo", berth.ErrUnsupported)
}

// Gauges make no gauges in this build.
type Gauges struct{ reason string }

// OpenGauges says why there are none.
func OpenGauges(h *device.Host) *Gauges {
	if h.Root() != "/" {
		return &Gauges{reason: notHere}
	}
	return &Gauges{reason: "this berth was built without cgo, and cannot ask NVIDIA's management library"}
}

// Gauge measures nothing, and says so.
func (g *Gauges) Gauge(device.Gauged) device.Gauge { return device.Deaf(g.reason) }
