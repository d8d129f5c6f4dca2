package oci_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/image"
	"golang.org/x/sys/unix"
)

// ample is how long what depends on how busy the machine is may take.
const ample = 30 * time.Second

func openSandbox(t testing.TB, e *oci.Engine, spec berth.SandboxSpec) berth.Sandbox {
	t.Helper()
	sb, err := e.Open(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), ample)
		defer cancel()
		if err := sb.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return sb
}

// engineIn opens an engine whose data directory is given.
func engineIn(t testing.TB, dir string) (*oci.Engine, berth.Image) {
	t.Helper()
	e, err := oci.New(oci.Config{Dir: dir, Idle: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	img, err := e.Images().Import(t.Context(), busybox(t), "busybox", image.ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return e, img
}

// letGo makes /go in a container that waits for it. How that ends does not matter: the container may end before.
func letGo(t testing.TB, c berth.Container) {
	t.Helper()
	var out strings.Builder
	if _, err := c.(berth.Execer).Exec(t.Context(), berth.ExecSpec{Command: []string{"touch", "/go"}}, berth.Stdio{Out: &out, Err: &out}); err != nil || out.Len() > 0 {
		t.Fatalf("exec: %v, %s", err, out.String())
	}
}

func instance(t testing.TB, e *oci.Engine) string {
	t.Helper()
	id, err := oci.Instance(e.Dir())
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// cgroupsOf are the cgroups of an instance that hold processes.
func cgroupsOf(t testing.TB, instance string) []string {
	t.Helper()
	var busy []string
	for _, pattern := range []string{"/sys/fs/cgroup/*/berth/", "/sys/fs/cgroup/berth/"} {
		found, err := filepath.Glob(pattern + instance + "/*/cgroup.procs")
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if b, err := os.ReadFile(f); err == nil && len(b) > 0 {
				busy = append(busy, f)
			}
		}
	}
	return busy
}

// A fork bomb is held by the limit of pids, which every container has, and ends with its container; others run on.
func TestForkBomb(t *testing.T) {
	e, img := newEngine(t, "direct")
	sb := openSandbox(t, e, berth.SandboxSpec{ID: "bomb"})
	// It ignores what it may, and leaves its session.
	c := start(t, sb, berth.StepSpec{
		ID: "s1", Image: img, Limits: berth.Limits{PIDs: 60, CPU: 0.5},
		Command: []string{"sh", "-c", `trap '' TERM HUP INT; bomb() { bomb | bomb & }; echo ready; while :; do setsid sh -c 'trap "" TERM; sleep 1000' & bomb; sleep 0.01; done 2>/dev/null`},
	})
	waitFor(t, "the bomb to go off", ample, func() bool {
		u, err := c.(berth.Statser).Stats(t.Context())
		if err != nil {
			// A shell that cannot fork may end by itself.
			return errors.Is(err, berth.ErrConflict)
		}
		if u.PIDs != nil && *u.PIDs > 61 {
			t.Errorf("limited to 60, it has %d processes", *u.PIDs)
		}
		return u.PIDs != nil && *u.PIDs >= 55
	})
	other := openSandbox(t, e, berth.SandboxSpec{ID: "other"})
	o := start(t, other, berth.StepSpec{ID: "s1", Image: img, Command: []string{"echo", "fine"}})
	if exit, err := o.Wait(t.Context()); err != nil || !exit.OK() || logs(t, o, false) != "fine\n" {
		t.Errorf("beside a fork bomb, another container: %+v, %v", exit, err)
	}
	if err := c.Stop(t.Context(), 50*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if err := sb.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := cgroupsOf(t, instance(t, e)); len(left) > 0 {
		t.Errorf("processes are left in %v", left)
	}
}

// killRounds is how often the monitor is killed; BERTH_TEST_KILLS asks for more.
func killRounds(t testing.TB) int {
	t.Helper()
	if v := os.Getenv("BERTH_TEST_KILLS"); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	return 6
}

// The monitor is killed at any moment, while containers start, run and end: each has one end, which is the true
// one or Lost, none ran twice, and nothing is left.
func TestMonitorKilledAtAnyMoment(t *testing.T) {
	e, img := newEngine(t, "direct")
	ran := t.TempDir()
	id := instance(t, e)
	for round := range killRounds(t) {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		var wg sync.WaitGroup
		const lanes = 4
		done := make(chan struct{})
		for lane := range lanes {
			wg.Go(func() {
				for i := 0; ; i++ {
					select {
					case <-done:
						return
					default:
					}
					name := fmt.Sprintf("r%d-l%d-%d", round, lane, i)
					if err := oneContainer(ctx, e, img, ran, name, i%8); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
		time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
		for range 1 + round%2 { // every other time also the one that recovers
			if pid := monitorPid(t, e.Dir()); pid != 0 {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			time.Sleep(time.Duration(rand.IntN(60)) * time.Millisecond)
		}
		close(done)
		wg.Wait()
		cancel()
		if t.Failed() {
			break
		}
	}
	files, err := os.ReadDir(ran)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(ran, f.Name()))
		if err != nil || string(b) != "ran\n" && len(b) > 0 { // none: it was killed before it wrote
			t.Errorf("%s says %q, %v: it ran more than once", f.Name(), b, err)
		}
	}
	if len(files) == 0 {
		t.Error("nothing ran")
	}
	waitFor(t, "an empty list", ample, func() bool {
		l, err := e.List(t.Context())
		return err == nil && len(l) == 0
	})
	if left, _ := filepath.Glob(filepath.Join(e.Dir(), "sandboxes", "*")); len(left) != 0 {
		t.Errorf("left over: %v", left)
	}
	waitFor(t, "the end of all processes", ample, func() bool { return len(cgroupsOf(t, id)) == 0 })
	t.Logf("%d containers ran", len(files))
}

// oneContainer runs a container that says in a file of its own that it ran, whatever happens to the monitor.
func oneContainer(ctx context.Context, e *oci.Engine, img berth.Image, ran, name string, code int) error {
	sb, err := e.Open(ctx, berth.SandboxSpec{ID: name})
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	spec := berth.StepSpec{
		ID: "s1", Image: img, Mounts: []berth.Mount{{Source: ran, Target: "/ran"}},
		Command: []string{"sh", "-c", fmt.Sprintf("echo ran >>/ran/%s; exit %d", name, code)},
	}
	c, err := sb.Start(ctx, spec)
	if err != nil {
		return fmt.Errorf("start: %w", err)
	}
	var first berth.Exit
	for i := range 2 {
		exit, err := c.Wait(ctx)
		switch {
		case err != nil:
			return fmt.Errorf("wait: %w", err)
		case exit.Reason == berth.Lost:
		case exit.Reason != berth.Exited || exit.Code != code:
			return fmt.Errorf("it ended with %+v", exit)
		}
		if i == 0 {
			first = exit
		} else if exit.Reason != first.Reason {
			return fmt.Errorf("it ended with %+v, and with %+v", first, exit)
		}
		if c, err = sb.Start(ctx, spec); err != nil { // the same container
			return fmt.Errorf("start again: %w", err)
		}
	}
	if err := sb.Close(ctx); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

// Two data directories know nothing of each other, though their sandboxes have the same names: the end of one's
// monitor, and what cleans up after it, leaves the other's containers alone.
func TestTwoDataDirectories(t *testing.T) {
	a, imgA := newEngine(t, "direct")
	b, imgB := newEngine(t, "direct")
	spec := berth.SandboxSpec{ID: "t1", Network: berth.Network{Mode: berth.NetworkBridge}}
	sbA, sbB := openSandbox(t, a, spec), openSandbox(t, b, spec)
	stay := berth.StepSpec{ID: "s1", Command: []string{"sh", "-c", "while ! [ -e /go ]; do sleep 0.02; done; ip route | grep -c default; exit 4"}}
	stay.Image = imgA
	cA := start(t, sbA, stay)
	stay.Image = imgB
	cB := start(t, sbB, stay)
	pid := monitorPid(t, a.Dir())
	if pid == 0 {
		t.Fatal("no monitor found")
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit, err := cA.Wait(t.Context()); err != nil || exit.Reason != berth.Lost { // by now the next one has cleaned up
		t.Errorf("the container of the killed monitor: %+v, %v; want Lost", exit, err)
	}
	if err := sbA.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	letGo(t, cB)
	if exit, err := cB.Wait(t.Context()); err != nil || exit.Reason != berth.Exited || exit.Code != 4 || logs(t, cB, false) != "1\n" {
		t.Errorf("the other's container: %+v, %v, %q; want its own end, 4, and its network", exit, err, logs(t, cB, false))
	}
}

// Another user of the host cannot talk to the monitor, wherever its data directory lies.
func TestMonitorOfAnotherUser(t *testing.T) {
	dir, err := os.MkdirTemp("/var/tmp", "berth-open-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	e, img := engineIn(t, dir)
	sb := openSandbox(t, e, berth.SandboxSpec{ID: "t1"})
	c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sleep", "1000"}})
	// Somebody opened the way for all.
	socket := filepath.Join(dir, "run", "monitor.sock")
	for path, mode := range map[string]os.FileMode{dir: 0o755, filepath.Dir(socket): 0o755, socket: 0o777} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
	}
	for uid, want := range map[int]error{0: nil, 65534: io.EOF} {
		if err := hello(uid, socket); !errors.Is(err, want) {
			t.Errorf("the monitor answers user %d with %v, want %v", uid, err, want)
		}
	}
	if err := c.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}

// hello greets a monitor as a user of the host.
func hello(uid int, socket string) error {
	ch := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is the user's for good
		ch <- func() error {
			if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(uid), uintptr(uid), uintptr(uid)); e != 0 {
				return e
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), socket)
			defer f.Close()
			if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
				return err
			}
			c, err := net.FileConn(f)
			if err != nil {
				return err
			}
			conn := wire.NewConn(c.(*net.UnixConn))
			defer conn.Close()
			if err := conn.Send(wire.Request{Op: wire.OpHello}); err != nil {
				return io.EOF // it hung up already
			}
			_, err = conn.Receive(new(wire.Answer))
			if errors.Is(err, unix.ECONNRESET) {
				err = io.EOF
			}
			return err
		}()
	}()
	return <-ch
}

// With no descriptors left, starts fail and say so; the monitor lives, keeps what runs, and serves again when
// there are some.
func TestNoDescriptorsLeft(t *testing.T) {
	e, img := newEngine(t, "direct")
	stays := openSandbox(t, e, berth.SandboxSpec{ID: "stays"})
	c := start(t, stays, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "while ! [ -e /go ]; do sleep 0.02; done; exit 4"}})
	pid := monitorPid(t, e.Dir())
	if pid == 0 {
		t.Fatal("no monitor found")
	}
	open := func() uint64 {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		return uint64(len(fds))
	}
	var before unix.Rlimit
	if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before); err != nil {
		t.Fatal(err)
	}
	var errs []error
	for spare := range uint64(24) { // each start gets a little further
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: open() + spare, Max: before.Max}, nil); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		sb, err := e.Open(ctx, berth.SandboxSpec{ID: fmt.Sprint("t", spare)})
		if err == nil {
			var x berth.Container
			if x, err = sb.Start(ctx, berth.StepSpec{ID: "s1", Image: img, Command: []string{"true"}}); err == nil {
				_, err = x.Wait(ctx)
			}
		}
		cancel()
		errs = append(errs, err)
		if err := unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil); err != nil {
			t.Fatal(err)
		}
		if sb, err = e.Attach(t.Context(), fmt.Sprint("t", spare)); err == nil {
			err = sb.Close(t.Context())
		}
		if err != nil && !errors.Is(err, berth.ErrNotFound) {
			t.Errorf("close after a start with %d spare descriptors: %v", spare, err)
		}
	}
	if errs[0] == nil {
		t.Error("with no descriptor left a container started")
	}
	for i, err := range errs {
		t.Logf("%d spare descriptors: %v", i, err)
	}
	if now := monitorPid(t, e.Dir()); now != pid {
		t.Fatalf("the monitor was process %d, and is %d", pid, now)
	}
	letGo(t, c)
	if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.Exited || exit.Code != 4 {
		t.Errorf("what ran all the time: %+v, %v; want its own end, 4", exit, err)
	}
	l, err := e.List(t.Context())
	if err != nil || len(l) != 2 {
		t.Errorf("the list holds %+v, %v; want one sandbox and its container", l, err)
	}
}

// A monitor that stands still keeps nobody longer than he waits; when it goes on, so does everything.
func TestMonitorStandsStill(t *testing.T) {
	e, img := newEngine(t, "direct")
	sb := openSandbox(t, e, berth.SandboxSpec{ID: "t1"})
	c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Timeout: time.Hour, Command: []string{"sh", "-c", "sleep 3; echo done; exit 5"}})
	pid := monitorPid(t, e.Dir())
	if pid == 0 {
		t.Fatal("no monitor found")
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGCONT) }()
	gaveUp := errors.New("the caller's own cause")
	fresh, err := oci.New(oci.Config{Dir: e.Dir(), Idle: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = fresh.Close() }()
	for name, f := range map[string]func(context.Context) error{
		"wait":         func(ctx context.Context) error { _, err := c.Wait(ctx); return err },
		"open":         func(ctx context.Context) error { _, err := e.Open(ctx, berth.SandboxSpec{ID: "t2"}); return err },
		"list":         func(ctx context.Context) error { _, err := e.List(ctx); return err },
		"another list": func(ctx context.Context) error { _, err := fresh.List(ctx); return err },
		"bound": func(ctx context.Context) error {
			_, err := e.Open(ctx, berth.SandboxSpec{ID: "t3", Bound: true})
			return err
		},
	} {
		ctx, cancel := context.WithTimeoutCause(t.Context(), 100*time.Millisecond, gaveUp)
		begin := time.Now()
		err := f(ctx)
		cancel()
		if took := time.Since(begin); !errors.Is(err, gaveUp) || took > ample/3 {
			t.Errorf("%s: after %v, %v; want the context's cause", name, took, err)
		}
	}
	if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.Exited || exit.Code != 5 || logs(t, c, false) != "done\n" {
		t.Errorf("Wait = %+v, %v; want the true exit, 5", exit, err)
	}
	if now := monitorPid(t, e.Dir()); now != pid {
		t.Errorf("the monitor was process %d, and is %d", pid, now)
	}
	for _, id := range []string{"t2", "t3"} { // asked for, and given up
		if sb, err := e.Attach(t.Context(), id); err == nil {
			if err := sb.Close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
}

// A data directory on a full disk: starts fail or succeed, and each end is true; nothing of them is left.
func TestFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	e, img := engineIn(t, dir)
	sb := openSandbox(t, e, berth.SandboxSpec{ID: "t1"})
	// It fills the disk, and floods its log.
	c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "dd if=/dev/zero of=/fill bs=1M count=100 2>/dev/null || echo full; seq 1 200000; exit 3"}})
	if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.Exited || exit.Code != 3 || !strings.Contains(exit.Detail, "the disk of the data directory "+dir+" is full") {
		t.Errorf("a container that fills the disk: %+v, %v; want its own end, 3, and that the disk is full", exit, err)
	}
	if err := syscall.Kill(monitorPid(t, dir), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if exit, err := c.Wait(t.Context()); err != nil || exit.Reason != berth.Exited || exit.Code != 3 {
		t.Errorf("by the next monitor on the full disk: %+v, %v; want its own end, 3", exit, err)
	}
	other, err := e.Open(t.Context(), berth.SandboxSpec{ID: "t2"})
	if err == nil {
		x, serr := other.Start(t.Context(), berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "exit 4"}})
		if err = serr; err == nil {
			exit, werr := x.Wait(t.Context())
			if werr != nil || exit.Reason != berth.Exited || exit.Code != 4 {
				t.Errorf("on a full disk: %+v, %v; want its own end, 4", exit, werr)
			}
		}
		if cerr := other.Close(t.Context()); cerr != nil {
			t.Errorf("close on a full disk: %v", cerr)
		}
	}
	if err != nil && !errors.Is(err, berth.ErrUnavailable) && !errors.Is(err, berth.ErrExhausted) && !errors.Is(err, unix.ENOSPC) && !strings.Contains(err.Error(), "no space left") {
		t.Errorf("a start on a full disk: %v", err)
	}
	if err := sb.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	// There is room again.
	after := openSandbox(t, e, berth.SandboxSpec{ID: "t1"})
	c = start(t, after, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sh", "-c", "dd if=/dev/zero of=/fill bs=1M count=10 2>/dev/null && echo room"}})
	if exit, err := c.Wait(t.Context()); err != nil || !exit.OK() || logs(t, c, false) != "room\n" {
		t.Errorf("after the close: %+v, %v", exit, err)
	}
}

// TestFileOfStreamOnFullDisk: a file of standard output that a full disk has cut short is told of, with where it ends.
func TestFileOfStreamOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=48m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	e, img := engineIn(t, dir)
	sb := openSandbox(t, e, berth.SandboxSpec{ID: "t1", Volumes: []berth.Volume{{Path: "/v"}}})
	c := start(t, sb, berth.StepSpec{ID: "s1", Image: img, Stdout: "/v/out", Command: []string{"sh", "-c", "seq 1 10000000; exit 3"}})
	exit, err := c.Wait(t.Context())
	if err != nil || exit.Reason != berth.Exited || exit.Code != 3 || !strings.HasPrefix(exit.Unfilled, "file /v/out of stdout: it ends after byte ") || !strings.HasSuffix(exit.Unfilled, "no space left on device") {
		t.Errorf("%+v, %v", exit, err)
	}
	c = start(t, sb, berth.StepSpec{ID: "s2", Image: img, Command: []string{"sh", "-c", "wc -c < /v/out"}})
	if exit, err := c.Wait(t.Context()); err != nil || !exit.OK() || exit.Unfilled != "" {
		t.Errorf("%+v, %v", exit, err)
	}
	if size := strings.TrimSpace(logs(t, c, false)); !strings.Contains(exit.Unfilled, " byte "+size+":") {
		t.Errorf("%q; it has %s bytes", exit.Unfilled, size)
	}
}

// Many short containers, several at once, leave the monitor with no descriptor, goroutine's stack or record more.
func TestManyShortContainers(t *testing.T) {
	e, img := newEngine(t, "direct")
	batch := func(n int) {
		var wg sync.WaitGroup
		for lane := range 4 {
			wg.Go(func() {
				for i := range n {
					name := fmt.Sprintf("m%d-%d", lane, i)
					if err := oneContainer(t.Context(), e, img, t.TempDir(), name, i%3); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
				}
			})
		}
		wg.Wait()
	}
	batch(10) // pools are full
	keep := openSandbox(t, e, berth.SandboxSpec{ID: "keep"})
	c := start(t, keep, berth.StepSpec{ID: "s1", Image: img, Command: []string{"sleep", "1000"}})
	pid := monitorPid(t, e.Dir())
	if pid == 0 {
		t.Fatal("no monitor found")
	}
	count := func() (fds, mounts int) {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(entries), strings.Count(string(raw), e.Dir()) + strings.Count(string(raw), instance(t, e))
	}
	fds, mounts := count()
	const each = 180
	batch(each)
	// What is parked for the next containers (16 cgroups, with up to 7 descriptors each) may be more. A descriptor of
	// one container in six would be too many.
	const more = 16*7 + 10
	var fds2, mounts2 int
	for end := time.Now().Add(ample); ; time.Sleep(50 * time.Millisecond) {
		if fds2, mounts2 = count(); fds2 <= fds+more && mounts2 <= mounts {
			break
		}
		if time.Now().After(end) {
			t.Errorf("after %d containers the monitor has %d descriptors and %d mounts, before them %d and %d", 4*each, fds2, mounts2, fds, mounts)
			break
		}
	}
	t.Logf("descriptors %d, then %d; mounts %d, then %d", fds, fds2, mounts, mounts2)
	if err := c.Stop(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
}
