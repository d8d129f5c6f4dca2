package cli

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/engine/docker/dockertest"
)

// TestDockerAway: a daemon that is away while tasks run is told of, and nobody has to wait for it; of what may still run
// nothing else is said, and it is removed once the daemon is back.
func TestDockerAway(t *testing.T) {
	d := ownDockerd(t, dockertest.Options{Args: []string{"--live-restore"}})
	const script = "echo x >/w/f; echo up; sleep 300"
	for _, row := range []struct {
		name       string
		away, back func() error
		notice     string // is waited for
	}{
		{"killed", d.Kill, func() error { return d.Run(context.Background()) }, "the daemon has not answered for 1"},
		{"hangs", func() error { return d.Signal(syscall.SIGSTOP) }, func() error { return d.Signal(syscall.SIGCONT) }, "no answer to a ping within 10s"},
	} {
		t.Run(row.name, func(t *testing.T) {
			b := newBench(t, "DOCKER_HOST="+d.Host(), "BERTH_ENGINE=docker")
			errs, err := os.Create(filepath.Join(b.dir, "errs"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = errs.Close() }()
			said := func() string { raw, _ := os.ReadFile(errs.Name()); return string(raw) }
			out, err := os.Create(filepath.Join(b.dir, "outs"))
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = out.Close() }()
			cmd := b.berth("run", "--docker-watchdog", "40s", "--name", "front", "--output", "o:/w/f", "bb", "sh", "-c", script, b.word())
			cmd.Stdout, cmd.Stderr = out, errs
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			b.within(time.Minute, "it runs", func() bool { raw, _ := os.ReadFile(out.Name()); return string(raw) == "up\n" })
			for _, name := range []string{"one", "two"} {
				if out, code := b.output("run", "--detach", "--name", name, "bb", "sh", "-c", "sleep 300", b.word()); code != 0 {
					t.Fatalf("exit code %d: %s", code, out)
				}
			}
			if err := row.away(); err != nil {
				t.Fatal(err)
			}
			b.within(30*time.Second, "notice: "+said(), func() bool { return strings.Contains(said(), row.notice) })
			ended := make(chan struct{})
			go func() { _ = cmd.Wait(); close(ended) }()
			b.signal(cmd, syscall.SIGINT)
			select {
			case <-ended:
			case <-time.After(time.Second):
				b.signal(cmd, syscall.SIGINT)
			}
			select {
			case <-ended:
			case <-time.After(25 * time.Second):
				_ = cmd.Process.Kill()
				t.Fatalf("it does not end: %s", said())
			}
			if code := cmd.ProcessState.ExitCode(); code != exitOwn || !strings.Contains(said(), "may still run; berth tries again once the engine answers") {
				t.Errorf("exit code %d: %s", code, said())
			}
			for line := range strings.Lines(said()) {
				if !strings.HasPrefix(line, "berth: ") {
					t.Errorf("a line %q", line)
				}
			}
			for _, args := range [][]string{{"stop", "--now", "one"}, {"stop", "--now", "two"}} {
				if out, code := b.output(args...); code != exitUnavailable || !strings.Contains(out, "may still run") {
					t.Errorf("%q: exit code %d: %s", args, code, out)
				}
			}
			if out, _ := b.output("ps", "--all"); strings.Count(out, "SYSTEM_ERROR") != 3 {
				t.Errorf("ps: %s", out)
			}
			if err := row.back(); err != nil {
				t.Fatal(err)
			}
			// A daemon before 23 that was killed keeps a volume: that is told of, as long as it is so.
			// The keeper removes the same ones, which the daemon may refuse another for a moment.
			word, code := "", 0
			for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(time.Second) {
				word, code = b.output("system", "cleanup")
				if code == 0 || row.name == "killed" && strings.Contains(word, "active mounts") && strings.Contains(word, "restart the daemon") {
					code = 0
					break
				}
			}
			if code != 0 {
				t.Errorf("cleanup: exit code %d: %s", code, word)
			}
			b.within(30*time.Second, "it is removed", func() bool { return len(b.tasks()) == 0 })
			b.gone(daemonsTime)
			if row.name != "killed" {
				return
			}
			// What such a daemon cannot remove is not forgotten.
			if err := errors.Join(d.Stop(), d.Run(context.Background())); err != nil {
				t.Fatal(err)
			}
			if out, code := b.output("system", "cleanup"); code != 0 {
				t.Errorf("cleanup: exit code %d: %s", code, out)
			}
			docker := exec.CommandContext(t.Context(), "docker", "volume", "ls", "-q")
			docker.Env = append(os.Environ(), "DOCKER_HOST="+d.Host())
			if left, err := docker.CombinedOutput(); err != nil || len(left) > 0 {
				t.Errorf("volumes are left: %s, %v", left, err)
			}
		})
	}
}

// within waits for something.
func (b *bench) within(most time.Duration, what string, is func() bool) {
	b.t.Helper()
	for end := time.Now().Add(most); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("not so after %v: %s", most, what)
		}
	}
}

// TestDockerAwayAtTheEnd: what a daemon has of a detached task that ended with it, or as it went, is removed once it is back, however long that
// took, and nobody has to ask for it.
func TestDockerAwayAtTheEnd(t *testing.T) {
	d := ownDockerd(t, dockertest.Options{})
	for _, row := range []struct {
		name string
		end  func(b *bench, way *cutWay)
	}{
		{"with the daemon", func(b *bench, _ *cutWay) {
			if err := d.Stop(); err != nil {
				b.t.Fatal(err)
			}
			time.Sleep(12 * time.Second) // in which a worker has given up, if the daemon has told of the end before it went
			b.workersEnd()
			if err := d.Run(context.Background()); err != nil {
				b.t.Fatal(err)
			}
		}},
		{"as it goes", func(b *bench, way *cutWay) {
			way.armed.Store(true)
			if out, code := b.output("exec", "job", "touch", "/end"); code != 0 {
				b.t.Fatalf("exit code %d: %s", code, out)
			}
			for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				if out, _ := b.output("inspect", "job"); strings.Contains(out, "could not be removed") {
					break // a worker has given up; where it was cut off earlier, it waits
				}
			}
			way.open()
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			way := &cutWay{t: t, to: strings.TrimPrefix(d.Host(), "unix://"), at: filepath.Join(t.TempDir(), "sock")}
			way.open()
			t.Cleanup(way.cut)
			b := newBench(t, "DOCKER_HOST=unix://"+way.at, "BERTH_ENGINE=docker")
			if out, code := b.output("run", "--detach", "--name", "job", "--output", "out/:/w/", "bb", "sh", "-c", "echo x >/w/f; echo up; until [ -e /end ]; do sleep 0.1; done", b.word()); code != 0 {
				t.Fatalf("exit code %d: %s", code, out)
			}
			b.await("up", "logs", "job")
			b.workersEnd()
			row.end(b, way)
			b.goneFrom(d)
			b.gone(daemonsTime)
			if out, code := b.output("rm", "job"); code != 0 {
				t.Errorf("rm: exit code %d: %s", code, out)
			}
		})
	}
}

// cutWay is the way to a daemon, which is cut, once it is armed, by whoever asks for something to be removed.
type cutWay struct {
	t      *testing.T
	at, to string // sockets
	armed  atomic.Bool
	mu     sync.Mutex
	l      net.Listener
	conns  []net.Conn
}

func (w *cutWay) open() {
	l, err := new(net.ListenConfig).Listen(w.t.Context(), "unix", w.at)
	if err != nil {
		w.t.Fatal(err)
	}
	w.mu.Lock()
	w.l = l
	w.mu.Unlock()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			to, err := new(net.Dialer).DialContext(context.Background(), "unix", w.to)
			if err != nil {
				_ = c.Close()
				continue
			}
			w.mu.Lock()
			w.conns = append(w.conns, c, to)
			w.mu.Unlock()
			go w.pass(c, to)
			go w.pass(to, c)
		}
	}()
}

func (w *cutWay) pass(from, to net.Conn) {
	defer func() { _ = to.Close() }()
	b := make([]byte, 64<<10)
	for {
		n, err := from.Read(b)
		if bytes.HasPrefix(b[:n], []byte("DELETE ")) && w.armed.CompareAndSwap(true, false) {
			w.cut()
			return
		}
		if _, werr := to.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (w *cutWay) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	_ = w.l.Close()
	for _, c := range w.conns {
		_ = c.Close()
	}
	w.conns = nil
}
