package nvidia

import (
	"fmt"
	"slices"
	"strings"

	"github.com/berth-project/berth/device/cdi"

	"github.com/berth-project/berth"
)

// Qualify returns devices as CDI names: those that are none yet get a kind. The empty name, which stands for
// the driver without a device, is the device "none".
func Qualify(devices []string, kind string) []string {
	var names []string
	for _, d := range devices {
		if d == "" {
			d = "none"
		}
		if !cdi.IsQualified(d) {
			d = kind + "=" + d
		}
		names = append(names, d)
	}
	return names
}

// JIT returns those of a container's CDI names, each once, that a spec is generated for: all or none, since one
// container cannot have generated devices and others. With them come what its environment enables beside GPUs,
// its IMEX channels, and control of MIG.
func (cfg Config) JIT(c Container, names []string) ([]string, error) {
	var jit []string
	others := false
	for _, name := range names {
		switch {
		case !strings.HasPrefix(name, JITKind+"="):
			others = true
		case !slices.Contains(jit, name):
			jit = append(jit, name)
		}
	}
	if jit == nil {
		return nil, nil
	}
	if others {
		return nil, fmt.Errorf("%w: devices %s: those of %s cannot be mixed with others", berth.ErrInvalid, strings.Join(names, ", "), JITKind)
	}
	control, err := c.migControl(jit)
	if err != nil {
		return nil, err
	}
	jit = append(jit, c.gated()...)
	for _, channel := range cfg.IMEXChannels(c) {
		if name := "mode=" + modeIMEX + ",id=" + channel; channel != "" && !slices.Contains(jit, name) {
			jit = append(jit, name)
		}
	}
	return append(jit, control...), nil
}

// gated returns the generator's modes that the environment enables.
func (c Container) gated() []string {
	var modes []string
	for _, mode := range []string{"gds", "mofed", "gdrcopy", "nvswitch"} {
		if c.Env["NVIDIA_"+strings.ToUpper(mode)] == "enabled" {
			modes = append(modes, "mode="+mode)
		}
	}
	return modes
}

// Modes are names of devices by the mode that generates them; Order is the order in which modes came.
type Modes struct {
	Order []string
	IDs   map[string][]string
}

// ByMode sorts what JIT returns: "mode=M,id=ID" belongs to M, all else to "auto".
func ByMode(names []string) Modes {
	m := Modes{IDs: map[string][]string{}}
	for _, name := range names {
		mode, id := "auto", strings.TrimPrefix(name, JITKind+"=")
		if rest, ok := strings.CutPrefix(name, "mode="); ok {
			mode, id, _ = strings.Cut(rest, ",")
			id = strings.TrimPrefix(id, "id=")
		}
		if !slices.Contains(m.Order, mode) {
			m.Order = append(m.Order, mode)
		}
		if id != "" {
			m.IDs[mode] = append(m.IDs[mode], id)
		}
	}
	return m
}
