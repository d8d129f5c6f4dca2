package device

import (
	"context"

	specs "tags.cncf.io/container-device-interface/specs-go"

	"github.com/berth-project/berth/device/cdi"
)

// Injector is a Vendor that says what brings its devices into containers, in terms of CDI.
type Injector interface {
	Vendor
	// Names are the qualified names that CDI specs of others have for a unit, the surest first.
	Names(u Unit) []string
	// Common is what a container with devices of the vendor gets once; nil for nothing. Stamp names all that it
	// depends on: while the stamp is the same, so is it. "" says that it is made too quickly to be kept.
	Common(ctx context.Context) (*cdi.Edits, error)
	Stamp() string
	// Edits is what a unit brings beside that: its own nodes, and no other unit's.
	Edits(u Unit) (*cdi.Edits, error)
	// Nodes are the nodes of Edits, which are found though all else may be missing.
	Nodes(u Unit) ([]*specs.DeviceNode, error)
	// Env is what depends on all units of a container: the vendor's masks, whose indices begin at 0 there.
	Env(units []Unit) []string
}

// Requirer is an Injector whose drivers images ask something of, by their environment. The error, of a unit that
// does not meet it, shows both sides.
type Requirer interface {
	Require(u Unit, env map[string]string) error
}
