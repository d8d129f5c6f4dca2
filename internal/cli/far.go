package cli

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"sync"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/ledger"
)

// farLedger is this host's ledger, or where the daemon is on another machine one of the data directory's own, by what that
// daemon has. It finds out when it is first asked.
type farLedger struct {
	h           *host
	dir         string // of the daemon
	hideFigures bool

	mu     sync.Mutex
	ledger *ledger.Ledger
}

// farDisk is how much disk another machine is taken to have, which the daemon's API does not tell.
const farDisk = math.MaxInt64

// far is what is known of the daemon's machine. It is kept, so that a lease is looked for where it was made, though the
// daemon be away.
type far struct {
	Elsewhere bool    `json:"elsewhere"`
	CPU       float64 `json:"cpu,omitempty"`    // cores; 0 is unknown
	Memory    int64   `json:"memory,omitempty"` // bytes; 0 is unknown
}

func (f *farLedger) Check(ctx context.Context, req ledger.Request) error {
	l, err := f.find(ctx)
	if err != nil {
		return err
	}
	return l.Check(ctx, req)
}

func (f *farLedger) Acquire(ctx context.Context, req ledger.Request) (*ledger.Lease, error) {
	l, err := f.find(ctx)
	if err != nil {
		return nil, err
	}
	return l.Acquire(ctx, req)
}

func (f *farLedger) Adopt(ctx context.Context, id string) (*ledger.Lease, error) {
	l, err := f.find(ctx)
	if err != nil {
		return nil, err
	}
	return l.Adopt(ctx, id)
}

func (f *farLedger) find(ctx context.Context) (*ledger.Ledger, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ledger != nil {
		return f.ledger, nil
	}
	know, err := f.ask(ctx)
	if err != nil {
		return nil, err
	}
	if !know.Elsewhere {
		f.ledger = f.h.ledger
		return f.ledger, nil
	}
	c := ledger.Capacity{CPU: know.CPU, Memory: know.Memory, Disk: farDisk}
	if c.CPU == 0 {
		c.CPU = math.MaxInt32
	}
	if c.Memory == 0 {
		c.Memory = math.MaxInt64
	}
	instance, err := oci.Instance(f.h.dir)
	if err != nil {
		return nil, err
	}
	f.ledger, err = ledger.New(ledger.Config{Dirs: ledger.Dirs{Shared: filepath.Join(f.dir, "ledger")}, Capacity: c, Instance: instance, HideFigures: f.hideFigures})
	return f.ledger, err
}

// remembered is what the machine of a daemon that cannot be asked is known to have; 0 is unknown.
func (a *app) remembered(ctx context.Context, h *host) (berth.Limits, error) {
	know, err := (&farLedger{h: h, dir: dockerDir(h.dir, a.global.daemon)}).ask(ctx)
	if err != nil || know.Elsewhere {
		return berth.Limits{CPU: know.CPU, Memory: know.Memory}, err
	}
	c, err := ledger.Host(h.dir)
	return berth.Limits{CPU: c.CPU, Memory: c.Memory}, err
}

// ask asks the daemon. What is not known of one that is away is what was known before; else it is on this machine.
func (f *farLedger) ask(ctx context.Context) (far, error) {
	file := filepath.Join(f.dir, "machine.json")
	away, err := f.h.elsewhere(ctx)
	if ctx.Err() != nil {
		return far{}, context.Cause(ctx)
	}
	if err != nil {
		var had far
		raw, rerr := os.ReadFile(file)
		if rerr == nil {
			rerr = json.Unmarshal(raw, &had)
		}
		if errors.Is(rerr, fs.ErrNotExist) {
			rerr = nil
		}
		return had, rerr
	}
	if away == "" {
		return far{}, nil
	}
	info, err := f.h.engine.Info(ctx)
	if err != nil {
		return far{}, err
	}
	know := far{Elsewhere: true, CPU: info.Total.CPU, Memory: info.Total.Memory}
	raw, err := json.Marshal(know)
	if err != nil {
		return know, err
	}
	fresh := file + "." + rand.Text()
	if err = os.WriteFile(fresh, raw, 0o600); err == nil {
		err = os.Rename(fresh, file)
	}
	if err != nil {
		_ = os.Remove(fresh)
		return know, fmt.Errorf("data directory: %w: %w", fileKind(err), err)
	}
	return know, nil
}
