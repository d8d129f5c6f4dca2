package nvidia

import (
	"fmt"

	"github.com/berth-project/berth"
)

// Request is all that a container asks of the driver.
type Request struct {
	Devices      Visible      `json:"devices"`
	MIGConfig    string       `json:"mig_config_devices,omitempty"`
	MIGMonitor   string       `json:"mig_monitor_devices,omitempty"`
	IMEXChannels []string     `json:"imex_channels,omitempty"`
	Capabilities Capabilities `json:"driver_capabilities,omitempty"`
	Requirements []string     `json:"requirements,omitempty"`
}

// Request reads what a container asks for; nil if it asks for no GPU.
func (cfg Config) Request(c Container) (*Request, error) {
	r := &Request{Devices: cfg.VisibleDevices(c)}
	if len(r.Devices.IDs) == 0 {
		return nil, nil //nolint:nilnil // most containers ask for no GPU
	}
	r.MIGConfig, r.MIGMonitor = c.Env[envMIGConfig], c.Env[envMIGMonitor]
	for _, name := range []string{envMIGConfig, envMIGMonitor} {
		if c.Env[name] != "" && !c.Privileged {
			return nil, fmt.Errorf("%s: %w: only a privileged container may have it", name, berth.ErrDenied)
		}
	}
	var err error
	if r.Capabilities, err = cfg.CapabilitiesOf(c); err != nil {
		return nil, err
	}
	if !cfg.DisableRequire {
		if r.Requirements, err = c.Requirements(); err != nil {
			return nil, err
		}
	}
	r.IMEXChannels = cfg.IMEXChannels(c)
	return r, nil
}
