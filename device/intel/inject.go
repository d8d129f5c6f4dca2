package intel

import (
	"context"
	"fmt"
	"sync"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
)

// Injector brings Intel's devices into containers.
type Injector struct {
	*Driver

	mu   sync.Mutex
	gpus []GPU // as Devices found them last
}

var _ device.Injector = (*Injector)(nil)

// Devices are the driver's.
func (i *Injector) Devices(ctx context.Context) ([]device.Device, error) {
	i.find(true)
	return i.Driver.Devices(ctx)
}

// find finds the GPUs once, or anew.
func (i *Injector) find(anew bool) []GPU {
	i.mu.Lock()
	defer i.mu.Unlock()
	if anew || i.gpus == nil {
		i.gpus = Find(i.host)
	}
	return i.gpus
}

// Names are by UID, as Intel's generators write them.
func (i *Injector) Names(u device.Unit) []string { return []string{Kind + "=" + u.UUID()} }

// Common is nothing: Intel's GPUs share no nodes, and their libraries are the image's.
func (i *Injector) Common(context.Context) (*cdi.Edits, error) { return nil, nil } //nolint:nilnil // nothing

// Stamp is "": Common is nothing.
func (i *Injector) Stamp() string { return "" }

// Edits is the nodes of a GPU.
func (i *Injector) Edits(u device.Unit) (*cdi.Edits, error) {
	for _, g := range i.find(false) {
		if g.UID == u.UUID() {
			return Generator{Host: i.host, Groups: true}.Edits(g)
		}
	}
	return nil, fmt.Errorf("%s: %w: it is not there any more", u, berth.ErrUnavailable)
}

// Nodes are the nodes of a GPU.
func (i *Injector) Nodes(u device.Unit) ([]*specs.DeviceNode, error) {
	edits, err := i.Edits(u)
	if err != nil {
		return nil, err
	}
	return edits.DeviceNodes, nil
}

// Env renumbers what oneAPI sees from 0.
func (i *Injector) Env(units []device.Unit) []string {
	return []string{"ZE_AFFINITY_MASK=" + device.FromZero(len(units))}
}
