package device

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/ledger"
)

// PoolConfig says whose devices a Pool lends. Host and Vendors must be set.
type PoolConfig struct {
	Host    *Host
	Vendors []Injector
	Specs   *cdi.Cache // specs of others on this host; nil looks at none
	// Renew writes the file of a spec anew that berth wrote and that no longer fits the host; nil leaves such files as they are.
	Renew func(ctx context.Context, file string) error
	// RenewAgain is how long after a failure Renew is tried again, at the next lease of a device that it is for. Default
	// a minute: it asks all drivers.
	RenewAgain time.Duration
	// Env is that of this process: the masks that bound what it may lend.
	Env map[string]string
	// Dir is where what is costly to find out is kept between processes; "" keeps nothing.
	Dir string
	// Ledger says whose processes are those of tasks; nil knows none.
	Ledger interface {
		Snapshot(ctx context.Context) (ledger.Snapshot, error)
	}
	Quarantine Quarantine
	// Preflight finds the program that looks in containers whether devices open; a static one, for it runs in any image.
	Preflight func() (string, error)
	// Timeout bounds how long a vendor's driver may take to answer. Default AnswerTimeout.
	Timeout time.Duration
	Logger  *slog.Logger // nil discards
}

// Pool lends the devices of a host, each to one task at a time or in stated shares. What is lent is in the host's
// ledger, which every process of berth shares; the pool chooses, and says what brings the chosen into containers.
// All methods may be called concurrently.
type Pool struct {
	cfg PoolConfig

	finding sync.Mutex // held while drivers are asked
	found   *inventory

	mu      sync.Mutex // of what follows; never held for long
	foreign foreign
	commons map[string]kept
	specs   map[string]*cdi.Edits // what they do for all their devices

	renewing sync.Mutex // held while a spec is written anew
	renewed  map[string]renewal
}

// renewal is what came of writing a spec anew while the files were the same.
type renewal struct {
	err, first error // of the last try, and of the first; nil once it was written
	at         time.Time
}

// NewPool returns the pool of a host. It looks at nothing yet.
func NewPool(cfg PoolConfig) *Pool {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.RenewAgain == 0 {
		cfg.RenewAgain = time.Minute
	}
	if cfg.Specs != nil {
		cfg.Specs = cfg.Specs.Without(cdi.IsLent)
	}
	return &Pool{cfg: cfg, commons: map[string]kept{}, specs: map[string]*cdi.Edits{}, renewed: map[string]renewal{}}
}

// inventory is what a host has, at one moment.
type inventory struct {
	at      time.Time
	all     []Device
	allowed []Device // by the masks, and not in quarantine
	held    map[string]Fault
	masks   []Mask
	err     error // says which devices are there and cannot be used
}

// stale is how old an inventory may be. A process that lends one device looks once.
const stale = 5 * time.Second

// Devices returns the devices that may be lent, of all vendors: those that the masks of a resource manager allow.
// The error says which are there and cannot be used; it comes with those that can. ErrDenied if a mask cannot be
// told to mean certain devices: then there are none.
func (p *Pool) Devices(ctx context.Context) ([]Device, error) {
	inv, err := p.inventory(ctx)
	if err != nil {
		return nil, err
	}
	return inv.allowed, inv.err
}

func (p *Pool) inventory(ctx context.Context) (*inventory, error) {
	p.finding.Lock()
	defer p.finding.Unlock()
	if p.found != nil && time.Since(p.found.at) < stale {
		return p.found, nil
	}
	inv := &inventory{at: time.Now(), masks: HostMasks(p.cfg.Env)}
	var errs []error
	for _, v := range p.cfg.Vendors {
		devices, err := Ask(ctx, v, p.cfg.Timeout)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		inv.all = append(inv.all, devices...)
		errs = append(errs, err)
	}
	inv.err = errors.Join(errs...)
	inv.allowed = inv.all
	for _, m := range inv.masks {
		allowed, err := m.Allow(inv.allowed, p.canOpen())
		if err != nil {
			return nil, fmt.Errorf("GPUs: %w", err)
		}
		inv.allowed = allowed
	}
	inv.held = p.held(inv.all)
	inv.allowed = without(inv.allowed, inv.held)
	p.found = inv
	return inv, nil
}

// held returns the devices that have reported fatal errors, having noted new ones.
func (p *Pool) held(devices []Device) map[string]Fault {
	held, err := p.cfg.Quarantine.Hold(FindFaults(p.cfg.Host, devices)...)
	if err != nil {
		p.cfg.Logger.Warn("faults of devices are not noted", "err", err)
	}
	return held
}

// Faults says in words which of the devices that were lent to a task have reported fatal errors; they are in
// quarantine then.
func (p *Pool) Faults(ctx context.Context, lent []ledger.Device) (texts []string, err error) {
	p.finding.Lock()
	p.found = nil // what is to be known has happened since
	p.finding.Unlock()
	inv, err := p.inventory(ctx)
	if err != nil {
		return nil, err
	}
	for _, d := range lent {
		f, held := inv.held[d.ID]
		if u, ok := inv.unit(d.ID); ok && !held {
			f, held = FaultOf(inv.held, u)
		}
		if held {
			texts = append(texts, fmt.Sprintf("GPU %s reported %s, and is in quarantine; release it with: berth gpu release %s", d.ID, f.Reason+f.besides(), f.UUID))
		}
	}
	return texts, nil
}

// canOpen says whether this process may open a device, for masks; nil where that cannot be found out.
func (p *Pool) canOpen() func(Device) bool {
	if p.cfg.Host.Recorded() {
		return nil
	}
	return func(d Device) bool {
		units := Units([]Device{d})
		if len(units) == 0 { // it works in slices alone, and has none
			units = []Unit{{Device: d}}
		}
		for _, u := range units {
			nodes, err := p.injector(d.Vendor).Nodes(u)
			if err != nil {
				return false
			}
			for _, n := range nodes {
				name := n.HostPath
				if name == "" {
					name = n.Path
				}
				fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
				if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
					return false
				}
				if err == nil {
					_ = unix.Close(fd)
				}
			}
		}
		return true
	}
}

func (p *Pool) injector(vendor string) Injector {
	for _, v := range p.cfg.Vendors {
		if v.Name() == vendor {
			return v
		}
	}
	return nil
}

// match returns for each request the units that it may be given. Errors are those of Request.Match, and tell what
// else bounds the inventory.
func (inv *inventory) match(requests []Request, devices []Device) ([][]Unit, error) {
	fits := make([][]Unit, len(requests))
	for i, r := range requests {
		var err error
		if fits[i], err = r.Match(devices); err != nil {
			return nil, fmt.Errorf("%w%s", err, inv.bounds())
		}
	}
	return fits, nil
}

// bounds tells what makes the inventory smaller than one might think.
func (inv *inventory) bounds() string {
	var text []string
	for _, m := range inv.masks {
		if len(inv.allowed) < len(inv.all) {
			text = append(text, m.Source+"="+strings.Join(m.IDs, ",")+" allows no more")
		}
	}
	for _, d := range inv.all {
		for _, u := range append(Units([]Device{d}), Unit{Device: d}) {
			if f, ok := FaultOf(inv.held, u); ok {
				text = append(text, fmt.Sprintf("%s is in quarantine: %s; release it with: berth gpu release %s", u, f, f.UUID))
				break
			}
		}
	}
	if inv.err != nil {
		first, _, more := strings.Cut(inv.err.Error(), "\n")
		if more {
			first += ", …"
		}
		text = append(text, first)
	}
	if text == nil {
		return ""
	}
	return " (" + strings.Join(text, "; ") + ")"
}

// unit finds a unit by its key or UUID.
func (inv *inventory) unit(id string) (Unit, bool) {
	units := Units(inv.all)
	i := slices.IndexFunc(units, func(u Unit) bool { return u.Is(id) })
	if i < 0 {
		return Unit{}, false
	}
	return units[i], true
}
