package amd

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
)

// Injector brings AMD's devices into containers.
type Injector struct {
	*Driver

	mu   sync.Mutex
	gpus []GPU // as Devices found them last
}

var _ device.Injector = (*Injector)(nil)

// Devices are the driver's.
func (i *Injector) Devices(ctx context.Context) ([]device.Device, error) {
	gpus, err := i.find(true)
	if errors.Is(err, berth.ErrNotFound) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	return i.devices(ctx, gpus)
}

// find finds the GPUs once, or anew.
func (i *Injector) find(anew bool) (gpus []GPU, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if anew || i.gpus == nil {
		i.gpus, err = Find(i.host)
	}
	return i.gpus, err
}

// Names are by index, as ROCm's generator writes them.
func (i *Injector) Names(u device.Unit) []string {
	return []string{Kind + "=" + strconv.Itoa(u.Device.Index)}
}

func (i *Injector) generator() Generator { return Generator{Host: i.host, Groups: true} }

// Common is the node that all GPUs share.
func (i *Injector) Common(context.Context) (*cdi.Edits, error) { return i.generator().Edits(nil) }

// Stamp is "": Common looks at one node.
func (i *Injector) Stamp() string { return "" }

// Edits is the nodes of a GPU, or of a partition of one.
func (i *Injector) Edits(u device.Unit) (*cdi.Edits, error) {
	gpus, err := i.find(false)
	if err != nil {
		return nil, err
	}
	for k, uuid := range UUIDs(gpus) {
		if uuid != u.UUID() {
			continue
		}
		edits, err := i.generator().Edits(gpus[k].DRM)
		if err != nil {
			return nil, err
		}
		edits.DeviceNodes = without(edits.DeviceNodes, kfd)
		return edits, nil
	}
	return nil, fmt.Errorf("%s: %w: it is not there any more", u, berth.ErrUnavailable)
}

func without(nodes []*specs.DeviceNode, name string) (rest []*specs.DeviceNode) {
	for _, n := range nodes {
		if n.Path != name {
			rest = append(rest, n)
		}
	}
	return rest
}

// Nodes are the nodes of a GPU.
func (i *Injector) Nodes(u device.Unit) ([]*specs.DeviceNode, error) {
	edits, err := i.Edits(u)
	if err != nil {
		return nil, err
	}
	return edits.DeviceNodes, nil
}

// Env renumbers what ROCm sees from 0. It applies its own mask first, and then those of HIP.
func (i *Injector) Env(units []device.Unit) []string {
	all := device.FromZero(len(units))
	return []string{"ROCR_VISIBLE_DEVICES=" + all, "HIP_VISIBLE_DEVICES=" + all}
}
