package cli

import (
	"os"
	"os/signal"
	"reflect"
	"slices"
	"syscall"
	"testing"
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
