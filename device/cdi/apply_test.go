package cdi

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	oci "github.com/opencontainers/runtime-spec/specs-go"
	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth"
)

func busyEdits() *Edits {
	return &Edits{
		Env:            []string{"GPU=new", "MORE=1"},
		DeviceNodes:    []*specs.DeviceNode{{Path: "/dev/gpu0"}},
		Mounts:         []*specs.Mount{{HostPath: "/lib/x", ContainerPath: "/x"}},
		Hooks:          []*specs.Hook{{HookName: "poststop", Path: "/new"}, {HookName: "createContainer", Path: "/c"}},
		NetDevices:     []*specs.LinuxNetDevice{{HostInterfaceName: "eth7", Name: "new"}},
		IntelRdt:       &specs.IntelRdt{ClosID: "c"},
		AdditionalGIDs: []uint32{0, 5, 44},
	}
}

func TestApplyCommitsWholeOrNothing(t *testing.T) {
	host := Host{Node: nodes{"/dev/gpu0": {Type: "c", Major: 195, Mode: 0o660}}.find}
	spec := busySpec()
	before := asJSON(t, spec)
	parts := *spec // what others hold of the spec

	edits := busyEdits()
	edits.DeviceNodes = append(edits.DeviceNodes, &specs.DeviceNode{Path: "/dev/gone"})
	if err := Apply(spec, edits, host); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("a node that is not there: %v", err)
	}
	if diff := cmp.Diff(before, asJSON(t, spec)); diff != "" {
		t.Errorf("edited, although it failed: %s", diff)
	}

	edits = busyEdits()
	said := asJSON(t, edits)
	if err := Apply(spec, edits, host); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, asJSON(t, parts)); diff != "" {
		t.Errorf("edited in place: %s", diff)
	}
	uid, gid, mode := uint32(1000), uint32(100), os.FileMode(0o660)
	major, minor := int64(195), int64(0)
	want := &oci.Spec{
		Process: &oci.Process{Env: []string{"PATH=/bin", "GPU=new", "MORE=1"}, User: oci.User{UID: 1000, GID: 100, AdditionalGids: []uint32{5, 44}}},
		Mounts:  []oci.Mount{{Source: "/lib/x", Destination: "/x"}, {Destination: "/data/deep"}},
		Hooks:   &oci.Hooks{Poststop: []oci.Hook{{Path: "/old"}, {Path: "/new"}}, CreateContainer: []oci.Hook{{Path: "/c"}}},
		Linux: &oci.Linux{
			Devices: []oci.LinuxDevice{{Path: "/dev/gpu0", Type: "c", Major: 195, FileMode: &mode, UID: &uid, GID: &gid}},
			Resources: &oci.LinuxResources{Devices: []oci.LinuxDeviceCgroup{
				{Access: "rwm"}, {Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rwm"},
			}},
			NetDevices: map[string]oci.LinuxNetDevice{"eth7": {Name: "new"}},
			IntelRdt:   &oci.LinuxIntelRdt{ClosID: "c"},
		},
	}
	if diff := cmp.Diff(want, spec); diff != "" {
		t.Error(diff)
	}

	// Nothing of the edits is shared with the spec, in either direction.
	spec.Linux.Devices[0].Major = 1
	*spec.Linux.Devices[0].FileMode = 0
	*spec.Linux.Devices[0].UID = 1
	if diff := cmp.Diff(said, asJSON(t, edits)); diff != "" {
		t.Errorf("the edits were changed: %s", diff)
	}
	if spec.Process.User.UID != 1000 {
		t.Error("the owner of a node is the user of the process itself")
	}
}

func TestApplyRefuses(t *testing.T) {
	host := Host{Node: nodes{"/dev/x": {Type: "b", Major: 8}, "/dev/link": {}}.find}
	for _, c := range []struct {
		name string
		node specs.DeviceNode
		want error
	}{
		{"another type", specs.DeviceNode{Path: "/dev/x", Type: "c"}, berth.ErrConflict},
		{"no node", specs.DeviceNode{Path: "/dev/link"}, berth.ErrNotFound},
		{"hostPath counts", specs.DeviceNode{Path: "/dev/x", HostPath: "/dev/y"}, berth.ErrNotFound},
		{"invalid", specs.DeviceNode{}, berth.ErrInvalid},
	} {
		if err := Apply(&oci.Spec{}, &Edits{DeviceNodes: []*specs.DeviceNode{&c.node}}, host); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
	if Apply(nil, &Edits{}, Host{}) == nil {
		t.Error("no OCI spec: no error")
	}
}

func TestAppendCopies(t *testing.T) {
	from := busyEdits()
	from.DeviceNodes[0].UID = new(uint32)
	from.Mounts[0].Options = []string{"ro"}
	from.Hooks[0].Args = []string{"a"}
	said := asJSON(t, from)
	into := Append(nil, from, nil)
	*into.DeviceNodes[0].UID = 7
	into.Mounts[0].Options[0], into.Hooks[0].Args[0], into.IntelRdt.ClosID = "rw", "b", "d"
	into.NetDevices[0].Name = "z"
	if diff := cmp.Diff(said, asJSON(t, from)); diff != "" {
		t.Error(diff)
	}
}
