package cli

import (
	"os"
	"os/signal"
	"reflect"
	"syscall"
	"testing"
)

func TestIgnoredSignalsStayIgnored(t *testing.T) {
	if want := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP}; !signal.Ignored(syscall.SIGHUP) && !reflect.DeepEqual(endSignals(), want) {
		t.Fatalf("endSignals() = %v, want %v", endSignals(), want)
	}
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	if want := []os.Signal{syscall.SIGINT, syscall.SIGTERM}; !reflect.DeepEqual(endSignals(), want) {
		t.Errorf("after nohup: endSignals() = %v, want %v", endSignals(), want)
	}
}
