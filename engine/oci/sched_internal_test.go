package oci

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth/engine/oci/thread"
)

// TestEaseRuntime: the thread whose timers may be late is the one that sleeps in nanosleep(2) while something runs: no other thread of
// a Go program does.
func TestEaseRuntime(t *testing.T) {
	tid := easeRuntime()
	if tid == 0 {
		t.Fatal("no thread was eased")
	}
	defer func() {
		if err := thread.SetSlack(tid, thread.OrdinarySlack); err != nil {
			t.Error(err)
		}
	}()
	if raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", tid)); err != nil || strings.TrimSpace(string(raw)) != fmt.Sprint(easedSlack) {
		t.Errorf("its timers may be late by %s ns, %v", raw, err)
	}
	var stop atomic.Bool
	defer stop.Store(true)
	go func() {
		for !stop.Load() {
			runtime.Gosched()
		}
	}()
	sleeps := false
	for begun := time.Now(); !sleeps && time.Since(begun) < 10*time.Second; {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/wchan", tid))
		if err != nil {
			t.Fatal(err)
		}
		sleeps = strings.Contains(string(raw), "nanosleep")
	}
	if !sleeps {
		t.Errorf("thread %d never sleeps", tid)
	}
}
