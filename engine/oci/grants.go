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
			gids, err := groupsOf(b.lent.Nodes)
			if err == nil {
				keep, err = b.keepsGroups(gids)
			}
			if err != nil {
				return fmt.Errorf("lent devices: %w", err)
			}
			e = bound(e)
			e.AdditionalGIDs = gids
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

// groupsOf are the groups of lent nodes that this user namespace has, and lets be set. What a grant says of its groups are numbers of
// the host's, which here are others'.
func groupsOf(nodes []berth.Node) ([]uint32, error) {
	if setgroupsDenied() {
		return nil, nil
	}
	var names []string
	for _, n := range nodes {
		names = append(names, n.Host)
	}
	return groups.Of(names)
}

// keepsGroups says whether the step's user opens the lent nodes by groups of this process alone, for which its user namespace
// has no name: gids are those that it has. It is to keep them then, and can have no others. The error says why it cannot open a node. In a
// user namespace where groups cannot be set, every process keeps them.
func (b *builder) keepsGroups(gids []uint32) (bool, error) {
	nodes, u := b.lent.Needed, &b.spec.Process.User
	who := groups.Person{UID: u.UID, GID: u.GID, Groups: slices.Concat(u.AdditionalGids, gids), Keep: setgroupsDenied()}
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
