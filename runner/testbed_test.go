package runner

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/ledger"
	"github.com/berth-project/berth/store"
)

// testbed is a runner over a store, a ledger and an engine of its own, in one directory.
type testbed struct {
	*Runner
	dir    string
	engine *diskEngine
	store  *store.Store
	ledger *ledger.Ledger
}

func newTestbed(t *testing.T) *testbed {
	t.Helper()
	b := openTestbed(t.TempDir())
	t.Cleanup(func() { _ = b.store.Close() })
	return b
}

// openTestbed opens the testbed in dir; several processes may.
func openTestbed(dir string) *testbed {
	s := must(store.Open(context.Background(), filepath.Join(dir, "berth.db"), store.Options{}))
	l := must(ledger.New(ledger.Config{
		Dirs:     ledger.Dirs{Shared: filepath.Join(dir, "ledger")},
		Capacity: ledger.Capacity{CPU: 2, Memory: 1 << 30},
	}))
	e := newDiskEngine(filepath.Join(dir, "engine"))
	return &testbed{
		Runner: New(Config{Engine: e, Store: s, Ledger: l, Devices: fakeDevices{"g0", "g1"}, DataDir: dir}),
		dir:    dir, engine: e, store: s, ledger: l,
	}
}

// runs are the IDs of the steps whose commands were really run, in order.
func (b *testbed) runs() []string {
	data, err := os.ReadFile(filepath.Join(b.engine.dir, "runs"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(data))
}

// left lists what is left of tasks beside their logs and records.
func (b *testbed) left() (out []string) {
	for _, pattern := range []string{"engine/sandboxes/*", "engine/sandboxes/.new*", "tasks/*/work", ".*.tmp", "out/.*.tmp", "tasks/*/temporary"} {
		found, _ := filepath.Glob(filepath.Join(b.dir, pattern))
		out = append(out, found...)
	}
	for _, e := range must(b.ledger.Snapshot(context.Background())).Leases {
		out = append(out, "lease "+e.ID)
	}
	return out
}

func sh(script string) berth.Step {
	return berth.Step{Image: "busybox", Command: []string{script}}
}

func timeout(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
