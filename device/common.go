package device

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"

	"github.com/berth-project/berth/device/cdi"
)

// kept is what is kept between processes of what a vendor's devices have in common.
type kept struct {
	Stamp string     `json:"stamp"`
	Edits *cdi.Edits `json:"edits"`
}

// common returns what all devices of a vendor bring into a container; the same pointer each time that it is the same.
func (p *Pool) common(ctx context.Context, v Injector) (*cdi.Edits, error) {
	stamp := v.Stamp()
	p.mu.Lock()
	defer p.mu.Unlock()
	if stamp != "" {
		if k, ok := p.commons[v.Name()]; ok && k.Stamp == stamp {
			return k.Edits, nil
		}
		if edits := p.recall(v.Name(), stamp); edits != nil {
			p.commons[v.Name()] = kept{stamp, edits}
			return edits, nil
		}
	}
	edits, err := v.Common(ctx)
	if err != nil {
		return nil, err
	}
	p.commons[v.Name()] = kept{stamp, edits}
	if stamp != "" {
		if err := p.keep(v.Name(), kept{stamp, edits}); err != nil {
			p.cfg.Logger.Warn("what devices have in common is not kept", "vendor", v.Name(), "err", err)
		}
	}
	return edits, nil
}

// commonOf is what a spec on disk does for all its devices, on this machine: the same pointer for the same spec.
func (p *Pool) commonOf(spec string, common *cdi.Edits) *cdi.Edits {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.specs[spec] == nil {
		p.specs[spec] = p.onThisMachine(common)
	}
	return p.specs[spec]
}

func (p *Pool) keepFile(vendor string) string { return filepath.Join(p.cfg.Dir, vendor+".json") }

// recall reads what another process has kept; nil if there is nothing of the kind, or it does not fit the host.
func (p *Pool) recall(vendor, stamp string) *cdi.Edits {
	if p.cfg.Dir == "" {
		return nil
	}
	data, err := os.ReadFile(p.keepFile(vendor))
	if err != nil {
		return nil
	}
	var k kept
	if json.Unmarshal(data, &k) != nil || k.Stamp != stamp || k.Edits == nil {
		return nil
	}
	host := p.cfg.Host.CDI()
	if !p.cfg.Host.Recorded() {
		host = thisHost.CDI()
	}
	differs, err := cdi.Differences(host, k.Edits)
	if err != nil || len(differs) > 0 {
		return nil
	}
	return k.Edits
}

// keep writes what another process may recall: whole, or not at all.
func (p *Pool) keep(vendor string, k kept) error {
	if p.cfg.Dir == "" {
		return nil
	}
	data, err := json.Marshal(k)
	if err == nil {
		err = os.MkdirAll(p.cfg.Dir, 0o700)
	}
	if err != nil {
		return err
	}
	return replaceFile(p.keepFile(vendor), data, 0o600)
}
