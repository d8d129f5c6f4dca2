package nvidia

import (
	"fmt"
	"slices"
	"strings"

	"github.com/berth-project/berth"
)

// Capabilities are parts of the driver that a container may use, sorted and each once. "all" stands for every
// one.
type Capabilities []string

// AllCapabilities are the parts that there are.
var AllCapabilities = Capabilities{"compat32", "compute", "display", "graphics", "ngx", "utility", "video"}

// DefaultCapabilities are those of an image that names none.
var DefaultCapabilities = Capabilities{"compute", "utility"}

// ParseCapabilities reads lists separated by commas, such as NVIDIA_DRIVER_CAPABILITIES. Names are not checked.
func ParseCapabilities(lists ...string) Capabilities {
	var c Capabilities
	for _, list := range lists {
		for name := range strings.SplitSeq(list, ",") {
			if name = strings.TrimSpace(name); name != "" {
				c = append(c, name)
			}
		}
	}
	slices.Sort(c)
	return slices.Compact(c)
}

// All reports whether every part is meant.
func (c Capabilities) All() bool { return slices.Contains(c, "all") }

// Intersect returns the parts that are in both.
func (c Capabilities) Intersect(with Capabilities) Capabilities {
	switch {
	case with.All():
		return c
	case c.All():
		return with
	}
	var both Capabilities
	for _, name := range c {
		if slices.Contains(with, name) {
			both = append(both, name)
		}
	}
	return both
}

// Has reports whether c holds all of some others.
func (c Capabilities) Has(some Capabilities) bool {
	return c.All() || !slices.ContainsFunc(some, func(name string) bool { return !slices.Contains(c, name) })
}

func (c Capabilities) String() string {
	if c.All() {
		return "all"
	}
	return strings.Join(c, ",")
}

// CapabilitiesOf returns the parts of the driver for a container, as Request does.
func (cfg Config) CapabilitiesOf(c Container) (Capabilities, error) {
	return c.effective(ParseCapabilities(cfg.SupportedCapabilities))
}

// Capabilities returns the parts of the driver for a container of berth's own, where every part is supported.
func (c Container) Capabilities() (Capabilities, error) { return c.effective(AllCapabilities) }

// effective returns the parts of the driver for a container: what its NVIDIA_DRIVER_CAPABILITIES name, within
// what is supported here.
func (c Container) effective(supported Capabilities) (Capabilities, error) {
	value, set := c.Env[envCapabilities]
	switch {
	case !set && c.Legacy():
		return supported, nil
	case value == "":
		return supported.Intersect(DefaultCapabilities), nil
	}
	named := ParseCapabilities(value)
	if !named.All() && !supported.Has(named) {
		return nil, fmt.Errorf("%w: %s=%s: supported are %s", berth.ErrInvalid, envCapabilities, value, supported)
	}
	return supported.Intersect(named), nil
}
