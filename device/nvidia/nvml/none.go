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
