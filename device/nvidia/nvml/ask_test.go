package nvml

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

func host(t *testing.T, root string) *device.Host {
	t.Helper()
	h, err := device.OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func needBuilt(t *testing.T) {
	if !Built {
		t.Skip("this build asks nobody")
	}
}

func sh(script string) []string { return []string{"/bin/sh", "-c", script} }

func TestAsk(t *testing.T) {
	needBuilt(t)
	a := Asker{Host: host(t, "/"), Command: sh(`echo '{"facts":{"driver":"570.1","cuda":"12.8","gpus":[{"uuid":"GPU-1","memory":5}]}}'`)}
	got, err := a.More(t.Context(), []device.Device{{UUID: "GPU-1"}, {UUID: "GPU-2"}})
	if err != nil || got[0].Memory != 5 || got[0].CUDA != "12.8" || got[1].Memory != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	a.Command = sh(`echo '{}'`)
	if facts, err := a.Facts(t.Context()); facts != nil || err != nil {
		t.Errorf("%+v, %v", facts, err)
	}
}

func TestAskFails(t *testing.T) {
	needBuilt(t)
	for script, want := range map[string]string{
		`echo '{"error":"the driver is odd"}'`:    "the driver is odd",
		`echo one >&2; echo the last >&2; exit 7`: "exit status 7: the last",
		`echo nonsense`: "invalid character",
		`kill -SEGV $$`: "segmentation fault",
	} {
		a := Asker{Host: host(t, "/"), Command: sh(script)}
		devices := []device.Device{{UUID: "GPU-1"}}
		got, err := a.More(t.Context(), devices)
		if !errors.Is(err, berth.ErrUnavailable) || !strings.Contains(err.Error(), want) || len(got) != 1 {
			t.Errorf("%s: %v, %v", script, got, err)
		}
	}
}

// A driver that does not answer costs the time limit and no more, even where the process cannot be ended: its
// child here holds the pipe.
func TestAskHangs(t *testing.T) {
	needBuilt(t)
	start := time.Now()
	a := Asker{Host: host(t, "/"), Command: sh(`sleep 3 & exec sleep 3`), Timeout: 50 * time.Millisecond}
	_, err := a.Facts(t.Context())
	if !errors.Is(err, berth.ErrUnavailable) || !strings.Contains(err.Error(), "has not answered") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(berth.ErrCanceled)
	a.Timeout = time.Minute
	if _, err := a.Facts(ctx); !errors.Is(err, berth.ErrCanceled) {
		t.Error(err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("it took %s", d)
	}
}

// A recorded host answers from its file, whatever the build, and never from this machine.
func TestRecorded(t *testing.T) {
	root := t.TempDir()
	a := Asker{Host: host(t, root), Command: sh(`echo '{"facts":{"driver":"of this machine"}}'`)}
	if facts, err := a.Facts(t.Context()); facts != nil || err != nil {
		t.Errorf("%+v, %v", facts, err)
	}
	file := filepath.Join(root, File)
	if err := os.WriteFile(file, []byte(`{"driver":"1.2","gpus":[{"uuid":"GPU-1","arch":"9.0"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := a.More(t.Context(), []device.Device{{UUID: "GPU-1"}})
	if err != nil || got[0].Arch != "9.0" {
		t.Errorf("%+v, %v", got, err)
	}
	if err := os.WriteFile(file, []byte(`{`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Facts(t.Context()); !errors.Is(err, berth.ErrInvalid) {
		t.Error(err)
	}
}

// Without a command nobody is asked: a test binary must not start itself.
func TestNoCommand(t *testing.T) {
	if facts, err := (Asker{Host: host(t, "/")}).Facts(t.Context()); facts != nil || err != nil {
		t.Errorf("%+v, %v", facts, err)
	}
}
