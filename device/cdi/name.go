package cdi

import (
	"fmt"

	"tags.cncf.io/container-device-interface/pkg/parser"

	"github.com/berth-project/berth"
)

// Name is the qualified name of a device: VENDOR/CLASS=DEVICE.
type Name struct{ Vendor, Class, Device string }

func (n Name) String() string { return parser.QualifiedName(n.Vendor, n.Class, n.Device) }

// ParseName reads a qualified name. ErrInvalid if it is none.
func ParseName(s string) (Name, error) {
	vendor, class, device, err := parser.ParseQualifiedName(s)
	if err != nil {
		return Name{}, fmt.Errorf("%w CDI device name: %w; it is VENDOR/CLASS=DEVICE, as in nvidia.com/gpu=0", berth.ErrInvalid, err)
	}
	return Name{vendor, class, device}, nil
}

// IsQualified says whether s is a qualified name.
func IsQualified(s string) bool { return parser.IsQualifiedName(s) }

// SplitName takes a name apart without judging its parts. What is not of the form VENDOR/CLASS=DEVICE is all Device.
func SplitName(s string) Name {
	vendor, class, device := parser.ParseDevice(s)
	return Name{vendor, class, device}
}
