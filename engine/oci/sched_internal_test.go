package oci

import (
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth/engine/oci/thread"
)

// TestEaseRuntime: the thread whose timers may be late is the one that a program which sleeps a little again and again has sleep in
// nanosleep(2) meanwhile: no other thread of a Go program does.
func TestEaseRuntime(t *testing.T) {
	easeRuntime()
	eased := 0
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		tid, _ := strconv.Atoi(task.Name())
		raw, err := os.ReadFile("/proc/" + task.Name() + "/timerslack_ns")
		if err != nil || strings.TrimSpace(string(raw)) != strconv.Itoa(easedSlack) {
			continue
		}
		defer func() {
			if err := thread.SetSlack(tid, thread.OrdinarySlack); err != nil {
				t.Error(err)
			}
		}()
		eased++
		var stop atomic.Bool
		defer stop.Store(true)
		go func() { // the runtime watches while something runs
			for !stop.Load() {
				runtime.Gosched()
			}
		}()
		sleeps := false
		for begun := time.Now(); !sleeps && time.Since(begun) < 10*time.Second; {
			raw, err := os.ReadFile("/proc/self/task/" + task.Name() + "/wchan")
			if err != nil {
				t.Fatal(err)
			}
			sleeps = strings.Contains(string(raw), "nanosleep")
		}
		if !sleeps {
			t.Errorf("thread %d never sleeps", tid)
		}
	}
	if eased != 1 {
		t.Errorf("%d threads are eased", eased)
	}
}
