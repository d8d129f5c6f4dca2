package amd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// TrackerFile is the ledger of amd-ctk gpu-tracker.
const TrackerFile = "/var/log/gpu-tracker.json"

// Tracker says which containers have which GPUs, by index. It is the ledger of ROCm's toolkit, which only
// containers know that were started by its runtime.
type Tracker map[int]Tracked

// Tracked is one GPU of a Tracker.
type Tracked struct {
	Exclusive  bool // for one container at a time
	Containers []string
}

// Reserve gives a container the GPUs that a value of AMD_VISIBLE_DEVICES names: all of them, or none if one is
// exclusive and another container's, which is ErrUnavailable. The tracker is changed only on success.
func (t Tracker) Reserve(container, value string, ids map[string][]int) ([]int, error) {
	granted := slices.Compact(ParseVisible(value, len(t), ids).Indices)
	for _, i := range granted {
		if g := t[i]; g.Exclusive && len(g.Containers) > 0 {
			return nil, fmt.Errorf("AMD GPU %d: %w: it is exclusive, and container %s has it", i, berth.ErrUnavailable, g.Containers[0])
		}
	}
	for _, i := range granted {
		g := t[i]
		if !slices.Contains(g.Containers, container) {
			g.Containers = append(slices.Clip(g.Containers), container)
		}
		t[i] = g
	}
	return granted, nil
}

// Release takes all GPUs from a container.
func (t Tracker) Release(container string) {
	for i, g := range t {
		g.Containers = slices.DeleteFunc(slices.Clone(g.Containers), func(c string) bool { return c == container })
		t[i] = g
	}
}

// ReadTracker reads the ledger of a host. It is nil where there is none, or where it is switched off.
func ReadTracker(h *device.Host) (Tracker, error) {
	data, err := h.ReadFile(TrackerFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var file struct {
		Enabled bool
		GPUs    map[int]struct {
			Accessibility int // 0 is shared, 1 exclusive
			ContainerIDs  []string
		} `json:"gpusStatus"`
	}
	if err == nil {
		err = json.Unmarshal(data, &file)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w; write it anew with: amd-ctk gpu-tracker reset", TrackerFile, berth.ErrUnavailable, err)
	}
	if !file.Enabled {
		return nil, nil
	}
	t := Tracker{}
	for i, g := range file.GPUs {
		t[i] = Tracked{Exclusive: g.Accessibility == 1, Containers: g.ContainerIDs}
	}
	return t, nil
}
