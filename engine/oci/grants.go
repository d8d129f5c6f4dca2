package oci

import (
	"cmp"
	"fmt"

	"github.com/moby/sys/userns"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/engine/oci/wire"
)

// grants brings what the sandbox was lent into the container, if this host is still as it was then; and has the
// environment ask for no other device.
func (b *builder) grants() error {
	if e := b.lent.Edits; e != nil {
		if err := b.lent.Fits(b.place); err != nil {
			return err
		}
		if err := checkGIDs(e.AdditionalGIDs); err != nil {
			return err
		}
		if userns.RunningInUserNS() {
			e = bound(e)
		}
		if err := cdi.Apply(b.spec, grant.Fold(e), cdi.Host{}); err != nil {
			return fmt.Errorf("lent devices: %w", err)
		}
	}
	b.spec.Process.Env = grant.Void(b.spec.Process.Env)
	return nil
}

// place notes where something that was lent is mounted.
func (b *builder) place(m *cdispecs.Mount, dir bool) {
	wire.AddPlace(&b.places, m.ContainerPath, dir)
}

// bound are edits whose device nodes are bind mounts of the host's: in a user namespace nobody can make nodes.
func bound(e *cdi.Edits) *cdi.Edits {
	e = cdi.Append(nil, e)
	nodes := e.DeviceNodes
	e.DeviceNodes = nil
	for _, d := range nodes {
		e.Mounts = append(e.Mounts, &cdispecs.Mount{HostPath: cmp.Or(d.HostPath, d.Path), ContainerPath: d.Path, Options: []string{"bind", "nosuid", "noexec", "rprivate"}})
	}
	return e
}

// overflowID is what an id of the host is shown as that a user namespace does not have.
const overflowID = 65534

// checkGIDs refuses groups that a user namespace does not have: without them a command could not open its device.
func checkGIDs(gids []uint32) error {
	if !userns.RunningInUserNS() {
		return nil
	}
	for _, gid := range gids {
		if gid == 0 || gid != overflowID && mapped(0, int(gid)) == nil && !setgroupsDenied() {
			continue
		}
		return fmt.Errorf("lent devices: %w for an ordinary user: their nodes are a group's that its user namespace does not have; run berth as root, or have udev give the nodes to everybody (mode 0666)", berth.ErrUnsupported)
	}
	return nil
}
