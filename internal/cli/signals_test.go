package cli

import (
	"context"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/berth-project/berth"
)

func TestIgnoredSignalsStayIgnored(t *testing.T) {
	for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGQUIT} {
		if signal.Ignored(sig) == slices.Contains(endSignals(), sig) {
			t.Fatalf("%v: ignored %v, endSignals() = %v", sig, signal.Ignored(sig), endSignals())
		}
	}
	signal.Ignore(syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Reset(syscall.SIGHUP, syscall.SIGQUIT)
	if want := []os.Signal{syscall.SIGINT, syscall.SIGTERM}; !reflect.DeepEqual(endSignals(), want) {
		t.Errorf("after nohup: endSignals() = %v, want %v", endSignals(), want)
	}
}

// TestAwaitStartEnded: a detached run whose wait for the start has ended already, as by a signal since the task was submitted, tells
// of no error: the task goes on.
func TestAwaitStartEnded(t *testing.T) {
	dir := t.TempDir()
	var said strings.Builder
	a := &app{out: io.Discard, err: &said, env: []string{"HOME=" + dir}, dir: dir, global: globalOptions{dataDir: filepath.Join(dir, "data"), debug: true, engine: engineDocker, daemon: "unix:///nothere", gpuRoot: "/"}}
	h, err := a.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer h.close()
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(berth.ErrCanceled)
	if _, err := h.runner.Record(ctx, berth.NewID()); err == nil || isNotFound(err) {
		t.Errorf("the record: %v", err)
	}
	if err := a.awaitStart(ctx, h, berth.NewID()); err != nil {
		t.Error(err)
	}
	if a.revive(ctx, h); said.String() != "" { // nor of tasks that nobody could look after then
		t.Errorf("it says %q", said.String())
	}
}
