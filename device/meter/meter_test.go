package meter

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
)

// script is a gauge that shows one reading after another, the last again and again, and tells of each.
type script struct {
	readings []device.Reading
	lacks    string
	n        atomic.Int64
	read     chan int64 // may be nil
}

func (s *script) Read() device.Reading {
	n := s.n.Add(1)
	if s.read != nil {
		s.read <- n
	}
	return s.readings[min(int(n), len(s.readings))-1]
}
func (s *script) Lacks() string { return s.lacks }

// step is a process that ends when it is told to.
func step(t *testing.T) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	end = func() { _ = in.Close(); _ = cmd.Wait() }
	t.Cleanup(end)
	return cmd.Process.Pid, end
}

func file(t *testing.T) *os.File {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(t.TempDir(), "use"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func TestMeter(t *testing.T) {
	pid, end := step(t)
	reads := make(chan int64, 1)
	a := &script{read: reads, readings: []device.Reading{
		{Memory: new(int64(10)), Busy: new(50.0), Energy: new(1000.0)},
		{Memory: new(int64(30)), Busy: new(50.0), Energy: new(1100.0)},
		{Memory: new(int64(20)), Busy: new(50.0), Energy: new(1200.0)},
		{Memory: new(int64(5)), Busy: new(0.0), Energy: new(1250.5)}, // after the end
	}}
	b := &script{readings: []device.Reading{{Memory: new(int64(0))}}, lacks: "a reason"}
	m := &Meter{File: file(t), Order: []string{"A", "B"}, Gauges: map[string]device.Gauge{"A": a, "B": b}, Every: time.Millisecond}
	done := make(chan error, 1)
	go func() { done <- m.Run(pid) }()
	for n := range reads {
		if n == 3 {
			break
		}
	}
	// The fourth is asked for while the step runs or after; the gauge shows the same from there on.
	go func() {
		for range reads {
		}
	}()
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	got := Read(t.Context(), m.File.Name(), []string{"B", "A", "C"}, time.Minute)
	if got[1].Busy == nil || *got[1].Busy > 50 {
		t.Errorf("busy %v", got[1].Busy)
	}
	got[1].Busy = nil
	want := []berth.GPUUse{
		{UUID: "B", PeakMemory: new(int64(0)), Unknown: "a reason"},
		{UUID: "A", PeakMemory: new(int64(30)), Energy: new(250.5)},
		{UUID: "C", Unknown: "the driver did not say before the step ended"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSums(t *testing.T) {
	s := sums{UUID: "A"}
	s.add(device.Reading{Busy: new(100.0), Power: new(100.0)}, 0, false)
	s.add(device.Reading{Busy: new(100.0), Power: new(200.0)}, time.Second, false)
	s.add(device.Reading{Busy: new(0.0), Power: new(200.0)}, 3*time.Second, false)
	s.add(device.Reading{Busy: new(0.0)}, 100*time.Second, true)
	if diff := cmp.Diff(berth.GPUUse{UUID: "A", Busy: new(25.0), Energy: new(750.0)}, s.use()); diff != "" {
		t.Error(diff)
	}
	// A counter that begins anew.
	s = sums{UUID: "A"}
	for _, e := range []float64{500, 600, 10, 30} {
		s.add(device.Reading{Energy: &e}, time.Second, false)
	}
	if diff := cmp.Diff(berth.GPUUse{UUID: "A", Energy: new(130.0)}, s.use()); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(berth.GPUUse{UUID: "A"}, (&sums{UUID: "A"}).use()); diff != "" {
		t.Error("nothing is known, and told as something", diff)
	}
}

// A driver that hangs: what was measured before is told, and nobody waits for it.
func TestGaugeThatHangs(t *testing.T) {
	pid, end := step(t)
	hangs := make(chan int64)
	g := &script{readings: []device.Reading{{Memory: new(int64(10))}}, read: hangs}
	m := &Meter{File: file(t), Order: []string{"A"}, Gauges: map[string]device.Gauge{"A": g}, Every: time.Millisecond, Patience: 10 * time.Millisecond}
	done := make(chan error, 1)
	go func() { done <- m.Run(pid) }()
	<-hangs
	for { // the first answer is written, the second is not answered
		if got := Read(t.Context(), m.File.Name(), []string{"A"}, 0); got[0].PeakMemory != nil {
			break
		}
	}
	end()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := Read(t.Context(), m.File.Name(), []string{"A"}, time.Minute); got[0].PeakMemory == nil || *got[0].PeakMemory != 10 {
		t.Errorf("%+v", got)
	}
}

// A process that was killed: the next goes on from what it had.
func TestMeterGoesOn(t *testing.T) {
	f := file(t)
	m := &Meter{File: f}
	if err := m.write(&state{GPUs: []sums{{UUID: "A", Peak: new(int64(99)), Counter: &joules{1, 5}}}}); err != nil {
		t.Fatal(err)
	}
	pid, end := step(t)
	end()
	g := &script{readings: []device.Reading{{Memory: new(int64(10)), Energy: new(21.0)}}}
	m = &Meter{File: f, Order: []string{"A"}, Gauges: map[string]device.Gauge{"A": g}}
	if err := m.Run(pid); err != nil {
		t.Fatal(err)
	}
	got := Read(t.Context(), f.Name(), []string{"A"}, time.Minute)
	if diff := cmp.Diff([]berth.GPUUse{{UUID: "A", PeakMemory: new(int64(99)), Energy: new(20.0)}}, got); diff != "" {
		t.Error(diff)
	}
	if err := m.Run(os.Getpid()); err != nil { // it is over: nothing is added while another step runs
		t.Fatal(err)
	}
}

// Start gives the process the file, locked, so that there is one; whoever reads waits for it and for nobody else.
func TestStart(t *testing.T) {
	name := filepath.Join(t.TempDir(), "use")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	command := []string{"/bin/sh", "-c", fmt.Sprintf("printf '{\"over\":false,\"gpus\":[{\"uuid\":\"A\",\"peak\":7}]}' >&%d; read x </proc/%d/fd/%d", FD, os.Getpid(), r.Fd())}
	if err := Start(name, command, nil); err != nil {
		t.Fatal(err)
	}
	if err := Start(name, []string{"/bin/sh", "-c", fmt.Sprintf("echo twice >&%d", FD)}, nil); err != nil {
		t.Fatal(err)
	}
	ended := make(chan []berth.GPUUse, 1)
	go func() { ended <- Read(t.Context(), name, []string{"A"}, time.Minute) }()
	select {
	case got := <-ended:
		t.Fatalf("nobody waited: %+v", got)
	case <-time.After(50 * time.Millisecond):
	}
	if _, err := io.WriteString(w, "x\n"); err != nil {
		t.Fatal(err)
	}
	if got := <-ended; got[0].PeakMemory == nil || *got[0].PeakMemory != 7 {
		t.Errorf("%+v", got)
	}
	if got := Read(t.Context(), name+"-no", []string{"A"}, time.Minute); !strings.Contains(got[0].Unknown, "nobody began") {
		t.Errorf("%+v", got)
	}
}

// TestCutOff: what a process measured that was killed is told as what it is.
func TestCutOff(t *testing.T) {
	m := &Meter{File: file(t), Order: []string{"A"}}
	if err := m.write(&state{GPUs: []sums{{UUID: "A", Lacks: "of energy nothing is known"}}}); err != nil {
		t.Fatal(err)
	}
	if got := Read(t.Context(), m.File.Name(), []string{"A"}, time.Minute); got[0].Unknown != "of energy nothing is known" {
		t.Errorf("with a reason of its own: %+v", got)
	}
	if err := m.write(&state{GPUs: []sums{{UUID: "A"}}}); err != nil {
		t.Fatal(err)
	}
	if got := Read(t.Context(), m.File.Name(), []string{"A"}, time.Minute); !strings.Contains(got[0].Unknown, "who measured it was killed") {
		t.Errorf("%+v", got)
	}
	if err := m.write(&state{Over: true, GPUs: []sums{{UUID: "A"}}}); err != nil {
		t.Fatal(err)
	}
	if got := Read(t.Context(), m.File.Name(), []string{"A"}, time.Minute); strings.Contains(got[0].Unknown, "killed") {
		t.Errorf("measured to the end: %+v", got)
	}
}
