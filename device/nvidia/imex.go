package nvidia

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

const (
	channelNode = "/dev/nvidia-caps-imex-channels/channel"
	maxChannel  = 1<<20 - 1 // a minor number
)

// Channels returns the IMEX channels that names mean: numbers, with "channel" before them or not, or all. Each
// must have its node on the host.
func Channels(h *device.Host, names ...string) ([]string, error) {
	var channels []string
	for _, name := range names {
		id := strings.TrimPrefix(name, "channel")
		if id == "all" {
			channels = nil
			for _, node := range h.Glob(channelNode + "*") {
				channels = append(channels, strings.TrimPrefix(path.Base(node), "channel"))
			}
			return channels, nil
		}
		n, err := strconv.ParseUint(id, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("IMEX channel %q: %w: it is not a number", name, berth.ErrInvalid)
		}
		if n > maxChannel {
			return nil, fmt.Errorf("IMEX channel %s: %w: it must be in the range [0, %d]", name, berth.ErrInvalid, maxChannel)
		}
		channels = append(channels, id)
	}
	for _, id := range channels {
		if _, err := h.Node(channelNode + id); err != nil {
			return nil, fmt.Errorf("IMEX channel %s: %w: its node is not found: %w", id, berth.ErrNotFound, err)
		}
	}
	return channels, nil
}
