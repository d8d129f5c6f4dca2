package monitor

import (
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

func testMonitor(t *testing.T) *Monitor {
	t.Helper()
	dir := t.TempDir()
	return &Monitor{
		cfg: Config{Dir: dir, Idle: time.Millisecond}, log: slog.New(slog.DiscardHandler), sandboxes: map[string]*sandbox{}, unopened: map[string]error{},
		state: filepath.Join(dir, "state"),
	}
}

// A sandbox whose lock is held for long, as while it is made, holds up neither the others nor itself.
func TestIdleLocks(t *testing.T) {
	m := testMonitor(t)
	sb := &sandbox{m: m, id: "s", dir: t.TempDir(), gone: make(chan struct{})}
	m.sandboxes["s"] = sb
	sb.mu.Lock()
	idle := make(chan bool)
	go func() { idle <- m.idle() }()
	time.Sleep(20 * time.Millisecond) // so that idle waits for sb.mu
	removed := make(chan struct{})
	go func() { sb.remove(); sb.mu.Unlock(); close(removed) }()
	select {
	case <-removed:
	case <-time.After(5 * time.Second):
		t.Fatal("removing a sandbox and looking whether the monitor is idle wait for each other")
	}
	<-idle
}

func TestIdleRefusesClients(t *testing.T) {
	m := testMonitor(t)
	if !m.client(+1) || m.idle() {
		t.Error("idle with a client")
	}
	m.client(-1)
	time.Sleep(2 * time.Millisecond)
	if !m.idle() {
		t.Fatal("not idle without clients")
	}
	if m.client(+1) {
		t.Error("a client that comes after the decision to end is served")
	}
}

// What could not be made is told to those who found it meanwhile, and does not end the monitor.
func TestSandboxThatCouldNotBeMade(t *testing.T) {
	m := testMonitor(t)
	spec := berth.SandboxSpec{ID: "s", Volumes: []berth.Volume{{Path: "/v"}}}
	sb := &sandbox{m: m, id: "s", dir: filepath.Join(t.TempDir(), "s"), gone: make(chan struct{}), made: true, rec: record{Spec: spec}}
	sb.closing = true
	sb.remove()
	if _, err := sb.describe(); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("describe: %v, want ErrNotFound", err)
	}
	if _, err := sb.volume("/v"); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("volume: %v, want ErrNotFound", err)
	}
	if _, err := os.Stat(sb.dir); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// A client that comes back in the last moment keeps its sandbox.
func TestCloseIf(t *testing.T) {
	m := testMonitor(t)
	sb := &sandbox{m: m, id: "s", dir: t.TempDir(), gone: make(chan struct{}), rec: record{Spec: berth.SandboxSpec{Bound: true}}}
	first := sb.bind()
	second := sb.bind()
	first()
	if sb.closing {
		t.Fatal("closed while it is bound")
	}
	second()
	select {
	case <-sb.gone:
	default:
		t.Error("not closed with its last client")
	}
}
