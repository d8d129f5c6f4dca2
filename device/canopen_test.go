package device

import (
	"errors"
	"testing"

	specs "tags.cncf.io/container-device-interface/specs-go"
)

// noNodes is a vendor whose devices have no nodes that could be opened.
type noNodes struct{ Injector }

func (noNodes) Name() string { return "nvidia" }

func (noNodes) Nodes(Unit) ([]*specs.DeviceNode, error) { return nil, errors.New("no node") }

// A device that works in slices alone, and has none, can be opened no sooner than others: masks count what can be.
func TestCanOpen(t *testing.T) {
	h, err := OpenHost("/")
	if err != nil {
		t.Fatal(err)
	}
	canOpen := NewPool(PoolConfig{Host: h, Vendors: []Injector{noNodes{}}}).canOpen()
	for _, d := range []Device{{}, {MIG: true}, {MIG: true, Slices: []Slice{{UUID: "MIG-1"}}}} {
		if d.Vendor = "nvidia"; canOpen(d) {
			t.Errorf("%+v can be opened", d)
		}
	}
}
