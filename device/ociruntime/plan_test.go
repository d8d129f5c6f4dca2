package ociruntime

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/devicetest"
)

// A driver that does not answer costs a container its start, and no engine its patience.
func TestPlanOfDriverThatHangs(t *testing.T) {
	made := devicetest.New(t, devicetest.Options{AMD: 1, Recorded: true})
	fifo := made.Path("/sys/class/kfd/kfd/topology/nodes/1/properties")
	err := os.Remove(fifo)
	if err == nil {
		err = unix.Mkfifo(fifo, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // who waits for it ends
		if f, err := os.OpenFile(fifo, os.O_RDWR|unix.O_NONBLOCK, 0); err == nil {
			time.AfterFunc(10*time.Second, func() { _ = f.Close() })
		}
	})
	h, err := device.OpenHost(made.Root)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := parseConfig(nil)
	if err != nil {
		t.Fatal(err)
	}
	p := &planner{cfg: cfg, host: h, patience: 100 * time.Millisecond}
	got, err := p.plan(t.Context(), []byte(`{"ociVersion":"1.2.0","process":{"env":["AMD_VISIBLE_DEVICES=0"]}}`))
	if !errors.Is(err, berth.ErrUnavailable) || !strings.Contains(err.Error(), "the driver of amd: unavailable: it has not answered for 100ms") {
		t.Errorf("%+v, %v", got, err)
	}
}
