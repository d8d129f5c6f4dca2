package oci

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/moby/sys/userns"
	cdispecs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/engine/oci/groups"
	"github.com/berth-project/berth/engine/oci/wire"
)

// grants brings what the sandbox was lent into the container, if this host is still as it was then; and has the
// environment ask for no other device.
func (b *builder) grants() error {
	if e := b.lent.Edits; e != nil {
		if err := b.lent.Fits(b.place); err != nil {
			return err
		}
		keep := false
		if userns.RunningInUserNS() {
			var err error
			if keep, err = b.keepsGroups(e); err != nil {
				return fmt.Errorf("lent devices: %w", err)
			}
			e = bound(e)
			e.AdditionalGIDs = named(e.AdditionalGIDs)
		}
		if err := cdi.Apply(b.spec, grant.Fold(e), cdi.Host{}); err != nil {
			return fmt.Errorf("lent devices: %w", err)
		}
		if keep {
			b.spec.Process.User.AdditionalGids = nil
			b.spec.Annotations = map[string]string{groups.Keep: "1"}
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

// named are the groups of these that this user namespace has, and lets be set.
func named(gids []uint32) (have []uint32) {
	for _, gid := range gids {
		if gid != 0 && gid != overflowID && mapped(0, int(gid)) == nil && !setgroupsDenied() {
			have = append(have, gid)
		}
	}
	return have
}

// keepsGroups says whether the step's user opens the lent nodes by groups of this process alone, for which its user namespace
// has no name. It is to keep them then, and can have no others. The error says why it cannot open a node. In a user namespace
// where groups cannot be set, every process keeps them.
func (b *builder) keepsGroups(e *cdi.Edits) (bool, error) {
	var nodes []string
	for _, d := range e.DeviceNodes {
		nodes = append(nodes, cmp.Or(d.HostPath, d.Path))
	}
	u := &b.spec.Process.User
	who := groups.Person{UID: u.UID, GID: u.GID, Groups: slices.Concat(u.AdditionalGids, named(e.AdditionalGIDs)), Keep: setgroupsDenied()}
	private, err := who.Closed(nodes)
	if err != nil || private == "" {
		return false, err
	}
	closed := private
	if !who.Keep {
		who.Keep = true
		if closed, err = who.Closed(nodes); err != nil {
			return false, err
		}
	}
	switch {
	case closed != "":
		return false, fmt.Errorf("%w: %s does not open for an ordinary user who is not of its group; as root: usermod --append --groups \"$(stat -c %%G %[2]s)\" USER, who then logs in again, or have udev give it to everybody (mode 0666)", berth.ErrDenied, closed)
	case len(b.step.Groups) > 0:
		return false, fmt.Errorf("%s: %w beside further groups (--group-add): only groups that the user namespace has can be had together; as root: usermod --add-subgids \"$(stat -c %%g-%%g %[1]s)\" USER", private, berth.ErrUnsupported)
	}
	return true, nil
}
