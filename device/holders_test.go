package device_test

import (
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/devicetest"
)

// holder starts a process that has a file open, and another below it.
func holder(t *testing.T, file string) (pid, below int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", "-c", `exec 7<"$1"; echo $$; sleep 60 & echo $!; wait`, "sh", file)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if _, err := fmt.Fscan(out, &pid, &below); err != nil {
		t.Fatal(err)
	}
	return pid, below
}

func TestFindOpeners(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{AMD: 2})
	pid, below := holder(t, h.Path(h.AMD[0].Node.Path))
	t.Cleanup(func() { _ = syscall.Kill(below, syscall.SIGKILL) })
	free, held := h.AMD[1].Node.Number(), h.AMD[0].Node.Number()
	found, err := device.FindOpeners(t.Context(), []device.Number{held, free})
	if err != nil || found.Hidden != 0 {
		t.Fatal(found, err)
	}
	var pids []int
	for _, p := range found.Of[held] {
		if p.Descends([]int{pid}) {
			pids = append(pids, p.PID)
		}
	}
	// The process below has inherited what the one above has open.
	if len(pids) != 2 || pids[0] != pid || pids[1] != below {
		t.Errorf("%v have it open, want %d and %d", found.Of[held], pid, below)
	}
	if p := (device.Process{PID: pid}); p.Descends([]int{below}) || !p.Descends([]int{os.Getpid()}) {
		t.Error("whose descendant a process is, is confused")
	}
	if found.Of[held][0].Command != "sh" || found.Of[held][0].UID != uint32(os.Getuid()) {
		t.Errorf("%+v", found.Of[held][0])
	}
}

func TestFindOpenersIsQuick(t *testing.T) {
	for range 500 { // beside what this machine has open
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
	}
	least := time.Hour
	for range 5 {
		start := time.Now()
		if _, err := device.FindOpeners(t.Context(), []device.Number{{Major: 10, Minor: 229}}); err != nil {
			t.Fatal(err)
		}
		least = min(least, time.Since(start))
	}
	t.Logf("%v", least)
	if least > 50*time.Millisecond && !raced {
		t.Errorf("looking for who uses devices took %v", least)
	}
}
