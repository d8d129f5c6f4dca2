package device_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/devicetest"
	"github.com/berth-project/berth/device/nvidia"
	"github.com/berth-project/berth/ledger"
)

// lookOut is set for a process that says how many it may not look at.
const lookOut = "DEVICE_TEST_LOOK_OUT"

// standIn is set for a process that does nothing until its input ends.
const standIn = "DEVICE_TEST_STAND_IN"

// What a process is told that takes devices, holds them for a moment, and may be killed meanwhile.
const (
	takerRoot   = "DEVICE_TEST_TAKER"  // root directory of the host
	takerLedger = "DEVICE_TEST_LEDGER" // directory of the ledger
)

func TestMain(m *testing.M) {
	if os.Getenv(lookOut) != "" {
		found, err := device.FindOpeners(context.Background(), []device.Number{{Major: 10, Minor: 229}})
		fmt.Println(found.Hidden, err)
		return
	}
	if os.Getenv(standIn) != "" {
		fmt.Println(os.Getpid())
		_, _ = io.Copy(io.Discard, os.Stdin)
		return
	}
	if os.Getenv(takerRoot) != "" {
		taker(os.Args[1:])
		return
	}
	os.Exit(m.Run())
}

func openLedger(dir string) *ledger.Ledger {
	l, err := ledger.New(ledger.Config{Dirs: ledger.Dirs{Shared: filepath.Join(dir, "ledger")}})
	if err != nil {
		panic(err)
	}
	return l
}

// taker runs tasks, one a line of its input: an ID and a request. Of each it says which devices it holds and, having
// held them, that it no longer does. It proves by a lock on a file for each device that nobody else holds them.
func taker(args []string) {
	dir := os.Getenv(takerLedger)
	l := openLedger(dir)
	p := pool(panics{}, os.Getenv(takerRoot), nil)
	ctx := context.Background()
	proof := map[string]*os.File{}
	devices, err := p.Devices(ctx)
	if err != nil {
		panic(err)
	}
	for _, d := range devices {
		if proof[d.UUID], err = os.OpenFile(filepath.Join(dir, d.UUID), os.O_RDWR|os.O_CREATE, 0o600); err != nil {
			panic(err)
		}
	}
	for _, arg := range args {
		id, request, _ := strings.Cut(arg, " ")
		task := asks(request)
		task.ID = id
		c, err := p.Choose(ctx, task)
		if err != nil {
			panic(err)
		}
		lease, err := l.Acquire(ctx, ledger.Request{Task: id, Choose: c})
		if err != nil {
			panic(err)
		}
		holdAlone(proof, lease.Devices())
		fmt.Println(id, "done")
		lease.Release()
	}
}

// holdAlone locks the files of devices for a moment, and writes itself into them. Only a process that is being killed
// may still have one locked: the kernel does not end all that it had in the order of its taking.
func holdAlone(proof map[string]*os.File, devices []ledger.Device) {
	for _, d := range devices {
		f := proof[d.ID]
		for unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
			if pid := writer(f); pid > 0 && lives(pid) {
				fmt.Printf("%s is held by %d and by %d\n", d.ID, pid, os.Getpid())
				os.Exit(9)
			}
			time.Sleep(time.Millisecond)
		}
		write(f, os.Getpid())
	}
	time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond) // a task that runs
	for _, d := range devices {
		write(proof[d.ID], 0)
		if err := unix.Flock(int(proof[d.ID].Fd()), unix.LOCK_UN); err != nil {
			panic(err)
		}
	}
}

func write(f *os.File, pid int) {
	if _, err := f.WriteAt(fmt.Appendf(nil, "%-9d\n", pid), 0); err != nil {
		panic(err)
	}
}

func writer(f *os.File) (pid int) {
	b := make([]byte, 9)
	if _, err := f.ReadAt(b, 0); err == nil {
		pid, _ = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	return pid
}

// lives says whether a process is there and is not about to end.
func lives(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	const exiting = 4 // PF_EXITING
	flags, err := strconv.Atoi(f[6])
	return err == nil && flags&exiting == 0 && f[0] != "Z"
}

// panics is a testing.TB for a process that is no test.
type panics struct{ testing.TB }

func (panics) Helper()           {}
func (panics) Fatal(args ...any) { panic(fmt.Sprint(args...)) }
func (panics) TempDir() string   { return "" }

// Many tasks of many processes, of which some are killed at any instant: no device is ever held twice, none is lost,
// and all tasks whose process lives come to their turn.
func TestDevicesAreLentOnce(t *testing.T) {
	const tasks, processes, gpus = 200, 8, 4
	h := devicetest.New(t, devicetest.Options{NVIDIA: gpus, Recorded: true})
	dir := t.TempDir()
	var next, killed atomic.Int64
	var mu sync.Mutex
	done := map[string]int{}
	var wg sync.WaitGroup
	for range processes {
		wg.Go(func() {
			for {
				var args []string
				for range 5 {
					if n := next.Add(1); n <= tasks {
						args = append(args, fmt.Sprintf("t%d %d", n, 1+n%3))
					}
				}
				for len(args) > 0 {
					out, err := takeAndMaybeDie(t, h.Root, dir, args, &killed)
					mu.Lock()
					for line := range strings.Lines(out) {
						id, what, _ := strings.Cut(strings.TrimSpace(line), " ")
						if what != "done" {
							t.Error(line)
							continue
						}
						done[id]++
						args = slices.DeleteFunc(args, func(a string) bool { return strings.HasPrefix(a, id+" ") })
					}
					mu.Unlock()
					if err != nil {
						t.Errorf("%v: %s", err, out)
						return
					}
				}
				if next.Load() >= tasks {
					return
				}
			}
		})
	}
	wg.Wait()
	if len(done) != tasks {
		t.Errorf("%d tasks were done of %d", len(done), tasks)
	}
	t.Logf("%d processes were killed", killed.Load())
	if killed.Load() == 0 {
		t.Error("none was killed; the test saw nothing")
	}
	// None is lost: all are to be had at once.
	c, err := pool(t, h.Root, nil).Choose(t.Context(), asks(strconv.Itoa(gpus)))
	if err != nil {
		t.Fatal(err)
	}
	lease, err := openLedger(dir).Acquire(t.Context(), ledger.Request{Task: "last", Choose: c, NoWait: true})
	if err != nil {
		t.Fatal(err)
	}
	lease.Release()
}

// takeAndMaybeDie runs a process that takes devices, and kills it at some instant, or not.
func takeAndMaybeDie(t *testing.T, root, dir string, args []string, killed *atomic.Int64) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), takerRoot+"="+root, takerLedger+"="+dir)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		return "", err
	}
	if rand.IntN(3) == 0 {
		timer := time.AfterFunc(time.Duration(rand.IntN(120))*time.Millisecond, func() { _ = cmd.Process.Kill() })
		defer timer.Stop()
	}
	err := cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL && ctx.Err() == nil {
		killed.Add(1)
		err = nil
	}
	return out.String(), err
}

// BenchmarkLend lends and frees a device, while seven other processes do the same: with the ledger in memory, as on most
// hosts, and on a disk.
func BenchmarkLend(b *testing.B) {
	b.Run("memory", func(b *testing.B) {
		dir, err := os.MkdirTemp("/dev/shm", "berth-lend-")
		if err != nil {
			b.Fatal(err)
		}
		defer os.RemoveAll(dir)
		benchmarkLend(b, dir)
	})
	b.Run("disk", func(b *testing.B) { benchmarkLend(b, b.TempDir()) })
}

func benchmarkLend(b *testing.B, dir string) {
	lendOne := contended(b, dir)
	for b.Loop() {
		lendOne()
	}
}

// contended has seven other processes lend and free devices of a host, and returns what does it once in this one.
func contended(tb testing.TB, dir string) (lendOne func()) {
	tb.Helper()
	h := devicetest.New(tb, devicetest.Options{NVIDIA: 16, Recorded: true})
	l := openLedger(dir)
	for i := range 7 {
		var args []string
		for n := range 10_000 {
			args = append(args, fmt.Sprintf("p%d-%d 1", i, n))
		}
		cmd := exec.CommandContext(tb.Context(), "/proc/self/exe", args...)
		cmd.Env = append(os.Environ(), takerRoot+"="+h.Root, takerLedger+"="+dir)
		if err := cmd.Start(); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	}
	for {
		s, err := l.Snapshot(tb.Context())
		if err != nil {
			tb.Fatal(err)
		}
		if len(s.Leases) >= 4 { // each holds one most of the time
			break
		}
		time.Sleep(time.Millisecond)
	}
	p := pool(tb, h.Root, nil)
	n := 0
	return func() {
		n++
		task := &berth.Task{ID: "b" + strconv.Itoa(n), Resources: berth.Resources{GPUs: []byte(`1`)}}
		c, err := p.Choose(tb.Context(), task)
		if err != nil {
			tb.Fatal(err)
		}
		lease, err := l.Acquire(tb.Context(), ledger.Request{Task: task.ID, Choose: c})
		if err != nil {
			tb.Fatal(err)
		}
		lease.Release()
	}
}

// TestLendIsQuick: a device is lent and freed in about a millisecond while others do the same. The bound is for a busy machine of one core,
// on which each of eight processes has its turn after the others'.
func TestLendIsQuick(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "berth-lend-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	lendOne := contended(t, dir)
	const times = 50
	least := time.Hour
	for range 6 {
		start := time.Now()
		for range times {
			lendOne()
		}
		least = min(least, time.Since(start)/times)
	}
	t.Logf("lent and freed in %v", least)
	if least > 20*time.Millisecond && !raced {
		t.Errorf("a device is lent and freed in %v", least)
	}
}

func TestFindIsQuick(t *testing.T) {
	for name, o := range map[string]devicetest.Options{"nvidia": {NVIDIA: 16, Recorded: true}, "amd": {AMD: 16, Recorded: true}} {
		h := devicetest.New(t, o)
		least := time.Hour
		for range 10 { // of which some may meet a busy machine
			start := time.Now()
			if _, err := pool(t, h.Root, nil).Devices(t.Context()); err != nil {
				t.Fatal(err)
			}
			least = min(least, time.Since(start))
		}
		t.Logf("16 GPUs of %s: %v", name, least)
		if least > 20*time.Millisecond && !raced {
			t.Errorf("16 GPUs of %s were found in %v", name, least)
		}
	}
}

// BenchmarkFind finds 16 GPUs, as each process does once.
func BenchmarkFind(b *testing.B) {
	for name, o := range map[string]devicetest.Options{"nvidia": {NVIDIA: 16, Recorded: true}, "amd": {AMD: 16, Recorded: true}} {
		b.Run(name, func(b *testing.B) {
			h := devicetest.New(b, o)
			for b.Loop() {
				if devices, err := pool(b, h.Root, nil).Devices(b.Context()); err != nil || len(devices) != 16 {
					b.Fatal(devices, err)
				}
			}
		})
	}
}

// BenchmarkGrants says what a device brings into a container, in a process that has not said it before: as berth's own
// generator does, and as a spec on disk does.
func BenchmarkGrants(b *testing.B) {
	for _, where := range []string{"generated", "on disk"} {
		b.Run(where, func(b *testing.B) { benchmarkGrants(b, where == "on disk") })
	}
}

func benchmarkGrants(b *testing.B, disk bool) {
	h := devicetest.New(b, devicetest.Options{NVIDIA: 4, Recorded: true})
	for i := range 60 {
		h.Write(fmt.Sprintf("/usr/lib/x86_64-linux-gnu/libnvidia-%d.so.%s", i, devicetest.DriverVersion), "no library\n")
	}
	h.Write("/opt/berth/berth-cdi-hook", "no program\n")
	if err := os.Chmod(h.Path("/opt/berth/berth-cdi-hook"), 0o755); err != nil {
		b.Fatal(err)
	}
	if disk {
		host := openHost(b, h.Root)
		devices, _ := nvidia.NewDriver(host).Devices(b.Context())
		spec, err := nvidia.Generator{Host: host, Hooks: nvidia.Hooks{Path: "/opt/berth/berth-cdi-hook"}}.Spec(devices)
		if err == nil {
			_, err = cdi.Write(host.CDI(), "/etc/cdi", "nvidia", spec)
		}
		if err != nil {
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	lent := []ledger.Device{{ID: h.NVIDIA[2].UUID}}
	for b.Loop() {
		b.StopTimer()
		p := pool(b, h.Root, func(cfg *device.PoolConfig) { cfg.Dir = dir })
		if _, err := p.Devices(b.Context()); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		grants, _, err := p.Grants(b.Context(), asks("1"), lent, nil)
		if err != nil || (grants[0].CDI != "") != disk {
			b.Fatal(grants, err)
		}
	}
}
