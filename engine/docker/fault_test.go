package docker_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/berth-project/berth/logfile"
)

// ownDaemon is a daemon that a test may harm.
func ownDaemon(t *testing.T, args ...string) *dockertest.Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "berth-dockerd-")
	if err != nil {
		t.Fatal(err)
	}
	d, err := dockertest.Start(context.Background(), dockertest.Options{Dir: dir, Args: args})
	if err != nil {
		t.Fatal("needs a Docker daemon:", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := importImage(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestDaemonRestarts: a daemon that ends and comes back in the middle of tasks. What it killed is never a success and
// never the command's own failure; what runs on has its exit and all that it wrote.
func TestDaemonRestarts(t *testing.T) {
	t.Parallel()
	const chat, endless = `i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); sleep 0.05; done; exit 7`, `i=0; while :; do echo line $i; i=$((i+1)); sleep 0.05; done`
	whole, more := "", ""
	for i := range 4000 {
		if more += fmt.Sprintln("line", i); i == 199 {
			whole = more
		}
	}
	for _, mode := range []struct {
		name string
		live bool
		stop func(*dockertest.Daemon) error
	}{
		{"stopped", false, (*dockertest.Daemon).Stop},
		{"killed", false, (*dockertest.Daemon).Kill},
		{"stopped, with live-restore", true, (*dockertest.Daemon).Stop},
		{"killed, with live-restore", true, (*dockertest.Daemon).Kill},
	} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			var args []string
			script := endless // the daemon ends it
			if mode.live {
				args, script = []string{"--live-restore"}, chat
			}
			d := ownDaemon(t, args...)
			e, img := newEngine(t, docker.Config{Host: d.Host(), Watchdog: 20 * time.Second})
			_, plain := begin(t, e, img, script)
			_, polite := begin(t, e, img, `trap "exit 0" TERM; `+strings.ReplaceAll(script, "exit 7", "exit 3"))
			time.Sleep(time.Second) // they write
			if err := mode.stop(d); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second) // they may write on
			if err := d.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			one, two := wait(t, plain), wait(t, polite)
			if mode.live {
				if one.Reason != berth.Exited || one.Code != 7 || two.Reason != berth.Exited || two.Code != 3 {
					t.Errorf("exits %+v, %+v", one, two)
				}
				// What it had in hand when it ended is lost, and told.
				if got := logs(t, plain, false); got != whole && (missing(got, whole) < 0 || !strings.Contains(one.Detail, "may be missing")) {
					t.Errorf("not what was written: %s; exit %+v", differ(got, whole), one)
				}
				return
			}
			if one.Reason != berth.Signaled && one.Reason != berth.Lost || two.Reason != berth.Signaled && two.Reason != berth.Lost {
				t.Errorf("exits %+v, %+v", one, two)
			}
			for _, x := range []berth.Exit{one, two} {
				if !strings.Contains(x.Detail, "the daemon") || !strings.Contains(x.Detail, "stopped") && !strings.Contains(x.Detail, "started anew") {
					t.Errorf("%s: %q does not tell of the daemon's stop", x.Reason, x.Detail)
				}
			}
			got := logs(t, plain, false)
			if !strings.HasPrefix(more, got) && (missing(got, more) < 0 || !strings.Contains(one.Detail, "may be missing")) || len(got) < len("line 0\nline 1\n") {
				t.Errorf("not the beginning of what was written: %s; exit %+v", differ(got, more), one)
			}
		})
	}
}

// fastLines writes numbered lines until it is told to stop, and how many they were into the file in the volume that it is given. It
// counts between them, as a process that sleeps is away for seconds on a busy machine, and then nothing is cut off in the middle.
const fastLines = `BEGIN {
	for (i = 1; ; i++) {
		printf "line %d\n", i
		if (i % 100 == 0) {
			fflush()
			if ((getline line < "/vol/stop") >= 0) break
			for (j = 0; j < 2000; j++) ;
		}
	}
	print i > "/vol/" ARGV[1]
	exit 7
}`

// TestDaemonEndsInFlood: of what a container writes as fast as it can when its daemon ends, and runs on, all is there that anybody
// had of it, in order. The daemon may have had some in hand, which is gone: the place has a mark, and the exit tells of it; not of a
// container that wrote nothing then.
func TestDaemonEndsInFlood(t *testing.T) {
	t.Parallel()
	var marked atomic.Int64
	t.Cleanup(func() {
		if marked.Load() == 0 {
			t.Error("none was cut off in the middle of what it wrote")
		}
	})
	for _, mode := range []struct {
		name  string
		end   func(*dockertest.Daemon) error
		again bool // another berth follows the daemon's log
	}{
		{"stopped", (*dockertest.Daemon).Stop, false},
		{"killed", (*dockertest.Daemon).Kill, false},
		{"killed, and followed by another", (*dockertest.Daemon).Kill, true},
	} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			d := ownDaemon(t, "--live-restore")
			dir := t.TempDir()
			cfg := docker.Config{Host: d.Host(), Dir: dir, Watchdog: 20 * time.Second}
			e, img := newEngine(t, cfg)
			s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/vol"}}})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := s.Close(context.Background()); err != nil {
					t.Error(err)
				}
			})
			quiet := step(t, s, img, "echo up; while ! [ -e /vol/stop ]; do sleep 0.05; done; echo down; exit 3")
			floods := map[string]berth.Container{}
			for name, tty := range map[string]bool{"with-a-terminal": true, "without": false} {
				c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, TTY: tty, LogLimit: -1, Command: []string{"awk", fastLines, name}})
				if err != nil {
					t.Fatal(err)
				}
				floods[name] = c
			}
			for _, c := range floods {
				until(t, "it writes", func() bool { return len(logs(t, c, false)) > 10_000 })
			}
			if mode.again {
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
				e, _ = newEngine(t, cfg)
				if s, err = e.Attach(t.Context(), s.ID()); err != nil {
					t.Fatal(err)
				}
				if quiet, err = s.Container(t.Context(), quiet.ID()); err != nil {
					t.Fatal(err)
				}
				for name, c := range floods {
					had := len(logs(t, c, false))
					if floods[name], err = s.Container(t.Context(), c.ID()); err != nil {
						t.Fatal(err)
					}
					until(t, "it is followed", func() bool { return len(logs(t, floods[name], false)) > had+10_000 })
				}
			}
			if err := mode.end(d); err != nil {
				t.Fatal(err)
			}
			before := time.Now()
			if err := d.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			if born := docker.Born(e); born.Before(before.Add(-20*time.Millisecond)) || born.After(time.Now()) { // to ticks of 10 ms
				t.Errorf("the daemon was born at %v, and started after %v", born, before)
			}
			had := map[berth.Container]int{}
			for _, c := range floods {
				had[c] = len(logs(t, c, false))
			}
			for _, c := range floods {
				until(t, "its output is read again", func() bool { return len(logs(t, c, false)) > had[c]+100_000 })
			}
			root, err := s.Volume(t.Context(), "/vol")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = root.Close() }()
			if err := root.WriteFile("stop", nil, 0o644); err != nil {
				t.Fatal(err)
			}
			for name, c := range floods {
				exit := wait(t, c)
				raw, err := root.ReadFile(name)
				if err != nil {
					t.Fatal(err)
				}
				n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
				if err != nil {
					t.Fatal(err)
				}
				var all strings.Builder
				for i := range n {
					fmt.Fprintf(&all, "line %d\n", i+1)
				}
				whole := all.String()
				if name == "with-a-terminal" {
					whole = strings.ReplaceAll(whole, "\n", "\r\n")
				}
				got := logs(t, c, false)
				ix, err := logfile.ReadIndex(filepath.Join(dir, "sandboxes", s.ID(), "steps", c.ID(), "logs"), "stdout")
				if err != nil {
					t.Fatal(err)
				}
				lost := len(whole) - len(got)
				t.Logf("%s: %d of %d bytes are missing, mark %v", name, lost, len(whole), ix.Gaps)
				told := strings.Contains(exit.Detail, "may be missing of stdout after byte")
				if exit.Reason != berth.Exited || exit.Code != 7 || told != (len(ix.Gaps) > 0) {
					t.Errorf("%s: exit %+v", name, exit)
				}
				if got == whole && !told { // on a busy machine it may have written nothing for a while when the daemon ended
					continue
				}
				marked.Add(1)
				if lost < 0 || lost > handMax || len(ix.Gaps) != 1 {
					t.Errorf("%s: %d bytes are missing, %s", name, lost, differ(got, whole))
					continue
				}
				at := int(ix.Gaps[0])
				if name == "with-a-terminal" { // messages have no times: it may be a little later
					for at < len(got) && got[at] == whole[at] {
						at++
					}
					for at > int(ix.Gaps[0]) && got[at:] != whole[at+lost:] {
						at--
					}
				}
				if got[:at] != whole[:at] || got[at:] != whole[at+lost:] {
					t.Errorf("%s: it is other than what was written but for %d bytes at its mark, %d: %s", name, lost, at, differ(got, whole))
				}
			}
			if exit := wait(t, quiet); exit.Reason != berth.Exited || exit.Code != 3 || exit.Detail != "" || logs(t, quiet, false) != "up\ndown\n" {
				t.Errorf("exit %+v of one that wrote nothing, which has %q", exit, logs(t, quiet, false))
			}
		})
	}
}

// TestEndsWhileTheDaemonIsDead: the exit of a container that ended by itself while the daemon was dead is its own, and its logs
// have all that it wrote, whoever has seen it run and whoever sees it end: of what it wrote last, which the next daemon does not read,
// berth takes care.
func TestEndsWhileTheDaemonIsDead(t *testing.T) {
	t.Parallel()
	for _, mode := range []struct {
		name      string
		end       func(*dockertest.Daemon) error
		ephemeral bool
		tty       bool
		again     bool // another berth follows it
		lost      bool // nobody did
	}{
		{name: "killed", end: (*dockertest.Daemon).Kill},
		{name: "stopped", end: (*dockertest.Daemon).Stop},
		{name: "ephemeral", end: (*dockertest.Daemon).Kill, ephemeral: true},
		{name: "with a terminal", end: (*dockertest.Daemon).Kill, tty: true},
		{name: "followed by another", end: (*dockertest.Daemon).Kill, again: true},
		{name: "followed by nobody", end: (*dockertest.Daemon).Kill, lost: true},
	} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			d := ownDaemon(t, "--live-restore")
			cfg := docker.Config{Host: d.Host(), Dir: t.TempDir(), Watchdog: 20 * time.Second}
			e, img := newEngine(t, cfg)
			s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/vol"}}})
			if err != nil {
				t.Fatal(err)
			}
			start := func(script string) berth.Container {
				t.Helper()
				c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, TTY: mode.tty, Ephemeral: mode.ephemeral, Command: []string{"sh", "-c", script}})
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			const goOn = "echo up; while ! [ -e /vol/go ]; do sleep 0.05; done; "
			little := start(goOn + "echo down; echo no >&2; exit 7")
			much := start(goOn + "seq 9000; exit 8") // 44 KB, which the pipe holds
			none := start("exec 2>&-; " + goOn + "exit 9")
			held := start(goOn + "seq 60000; exit 6") // it waits for the next daemon, and ends as that begins
			all := []berth.Container{little, much, none, held}
			for _, c := range all {
				until(t, "it runs", func() bool { return strings.HasPrefix(logs(t, c, false), "up") })
			}
			if mode.again {
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
				e, _ = newEngine(t, cfg)
				if s, err = e.Attach(t.Context(), s.ID()); err != nil {
					t.Fatal(err)
				}
				for _, c := range []*berth.Container{&little, &much, &none, &held} {
					if *c, err = s.Container(t.Context(), (*c).ID()); err != nil {
						t.Fatal(err)
					}
				}
			}
			t.Cleanup(func() {
				if err := s.Close(context.Background()); err != nil {
					t.Error(err)
				}
			})
			time.Sleep(500 * time.Millisecond)
			if err := mode.end(d); err != nil {
				t.Fatal(err)
			}
			if mode.lost {
				if err := e.Close(); err != nil {
					t.Fatal(err)
				}
			}
			root, err := s.Volume(t.Context(), "/vol")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = root.Close() }()
			time.Sleep(4 * time.Second) // its pipes are had, on a busy machine too
			if err := root.WriteFile("go", nil, 0o644); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second) // they end
			if err := d.Run(t.Context()); err != nil {
				t.Fatal(err)
			}
			if mode.lost {
				e, _ = newEngine(t, cfg)
				if s, err = e.Attach(t.Context(), s.ID()); err != nil {
					t.Fatal(err)
				}
				if little, err = s.Container(t.Context(), little.ID()); err != nil {
					t.Fatal(err)
				}
				if exit := wait(t, little); exit.Reason != berth.Exited || exit.Code != 7 {
					t.Errorf("exit %+v", exit)
				}
				return
			}
			numbers := func(n int) string {
				var b strings.Builder
				for i := range n {
					fmt.Fprintln(&b, i+1)
				}
				return b.String()
			}
			for _, row := range []struct {
				c         berth.Container
				code      int
				want, err string
			}{{little, 7, "up\ndown\n", "no\n"}, {much, 8, "up\n" + numbers(9000), ""}, {none, 9, "up\n", ""}, {held, 6, "up\n" + numbers(60000), ""}} {
				exit := wait(t, row.c)
				told := row.c == held && strings.Contains(exit.Detail, "may be missing")
				if exit.Reason != berth.Exited || exit.Code != row.code || exit.Detail != "" && !told {
					t.Errorf("exit %+v", exit)
				}
				if mode.tty {
					row.want, row.err = strings.ReplaceAll(row.want+row.err, "\n", "\r\n"), ""
				}
				if got := logs(t, row.c, false); told {
					t.Logf("%s; %s", exit.Detail, differ(got, row.want))
				} else if got != row.want {
					t.Errorf("stdout: %s", differ(got, row.want))
				}
				if !mode.tty && logs(t, row.c, true) != row.err {
					t.Errorf("stderr %q", logs(t, row.c, true))
				}
			}
		})
	}
}

// TestDaemonHangs: a daemon that does not answer has its container given up after five failures in a row, and not before.
func TestDaemonHangs(t *testing.T) {
	t.Parallel()
	d := ownDaemon(t)
	e, img := newEngine(t, docker.Config{Host: d.Host(), Watchdog: 2 * time.Second, CallMax: 30 * time.Second, StreamsMax: 2 * time.Second})
	s, c := begin(t, e, img, "echo up; sleep 15; echo down; exit 7")
	hang := func(pause time.Duration) {
		t.Helper()
		if err := d.Signal(syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		time.Sleep(pause)
		if err := d.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
	}
	hang(5 * time.Second) // two or three failures
	if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 7 {
		t.Errorf("after a short pause of the daemon: exit %+v", exit)
	}
	lost := step(t, s, img, "sleep 1000")
	if err := d.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	exit := wait(t, lost)
	took := time.Since(began)
	if err := d.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if exit.Reason != berth.Lost || !strings.Contains(exit.Detail, "5 failures in a row") || took < 8*time.Second {
		t.Errorf("after %v: exit %+v", took, exit)
	}
}

// TestKilledByOthers: what somebody does to a container through the daemon is not the command's own end.
func TestKilledByOthers(t *testing.T) {
	t.Parallel()
	t.Run("docker", func(t *testing.T) { killedByOthers(t, daemon(t).Host(), berth.Signaled, 15) })
	// Podman tells of a stop when it is over, and a polite end looks like the command's own.
	t.Run("podman", func(t *testing.T) { killedByOthers(t, podman(t).Host(), berth.Exited, 0) })
}

func killedByOthers(t *testing.T, host string, polite berth.Reason, signal int) {
	t.Helper()
	e, img := newEngine(t, docker.Config{Host: host})
	for _, row := range []struct {
		name, script, call string
		reason             berth.Reason
		signal             int
	}{
		{"killed", "echo up; sleep 1000", "kill?signal=KILL", berth.Signaled, 9},
		{"hung up", "echo up; sleep 1000", "kill?signal=HUP", berth.Signaled, 1},
		{"hung up, which it heeds", `trap "exit 0" HUP; echo up; while true; do sleep 0.05; done`, "kill?signal=HUP", berth.Exited, 0},
		{"stopped, and polite", `trap "exit 0" TERM; echo up; while true; do sleep 0.05; done`, "stop?t=5", polite, signal},
	} {
		_, c := begin(t, e, img, row.script)
		until(t, "it runs", func() bool { return logs(t, c, false) == "up\n" })
		if err := post(t, host, "/containers/berth-"+e.Owner()+"-"+strings.Join(ids(t, e, c), "-")+"/"+row.call); err != nil {
			t.Fatal(err)
		}
		if exit := wait(t, c); exit.Reason != row.reason || exit.Signal != row.signal {
			t.Errorf("%s: exit %+v", row.name, exit)
		}
	}
	_, c := begin(t, e, img, `trap "exit 0" TERM; echo up; while true; do sleep 0.05; done`)
	until(t, "it runs", func() bool { return logs(t, c, false) == "up\n" })
	if err := c.(berth.Signaler).Signal(t.Context(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 0 {
		t.Errorf("a signal of berth's own: exit %+v", exit)
	}
}

// ids are those of a container's sandbox and of itself.
func ids(t *testing.T, e *docker.Engine, c berth.Container) []string {
	t.Helper()
	all, err := e.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range all {
		if s.Container == c.ID() {
			return []string{s.Sandbox, s.Container}
		}
	}
	t.Fatalf("container %s is not listed", c.ID())
	return nil
}

// post asks a daemon for something with no answer.
func post(t *testing.T, host, path string) error {
	t.Helper()
	c, err := new(net.Dialer).DialContext(t.Context(), "unix", strings.TrimPrefix(host, "unix://"))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.0\r\nContent-Length: 0\r\n\r\n", path); err != nil {
		return err
	}
	raw, err := io.ReadAll(c)
	if err == nil && !strings.Contains(string(raw), " 204 ") {
		err = fmt.Errorf("%s: %s", path, raw)
	}
	return err
}

// cutter passes a daemon's socket on, and can cut all connections.
type cutter struct {
	l  net.Listener
	mu sync.Mutex
	cs []net.Conn
}

func newCutter(t *testing.T, to string) *cutter {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	c := &cutter{l: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			a, err := l.Accept()
			if err != nil {
				return
			}
			b, err := net.Dial("unix", strings.TrimPrefix(to, "unix://"))
			if err != nil {
				_ = a.Close()
				continue
			}
			c.mu.Lock()
			c.cs = append(c.cs, a, b)
			c.mu.Unlock()
			go pass(a, b)
			go pass(b, a)
		}
	}()
	return c
}

func pass(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	if w, ok := to.(interface{ CloseWrite() error }); ok {
		_ = w.CloseWrite()
	}
}

func (c *cutter) cut() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(c.cs)
	for _, s := range c.cs {
		_ = s.Close()
	}
	c.cs = nil
	return n
}

// TestConnectionsCut: connections that break, again and again, in the middle of everything, cost no byte and no exit.
func TestConnectionsCut(t *testing.T) {
	t.Parallel()
	cut := newCutter(t, daemon(t).Host())
	e, img := newEngine(t, docker.Config{Host: "unix://" + cut.l.Addr().String()})
	_, c := begin(t, e, img, "i=0; while [ $i -lt 3000 ]; do echo line $i; echo e$i >&2; i=$((i+1)); [ $((i%20)) != 0 ] || sleep 0.02; done; exit 7")
	for range 4 {
		time.Sleep(700 * time.Millisecond)
		cut.cut()
	}
	exit := wait(t, c)
	if exit.Reason != berth.Exited || exit.Code != 7 {
		t.Errorf("exit %+v", exit)
	}
	out, errs := "", ""
	for i := range 3000 {
		out += fmt.Sprintln("line", i)
		errs += fmt.Sprintf("e%d\n", i)
	}
	if got := logs(t, c, false); got != out {
		t.Errorf("stdout: %d bytes, which are not the %d that were written", len(got), len(out))
	}
	if got := logs(t, c, true); got != errs {
		t.Errorf("stderr: %d bytes, which are not the %d that were written", len(got), len(errs))
	}
}

// logged counts what an engine logs, by message.
type logged struct {
	mu sync.Mutex
	n  map[string]int
}

func (l *logged) Enabled(context.Context, slog.Level) bool { return true }
func (l *logged) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logged) WithGroup(string) slog.Handler            { return l }
func (l *logged) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.n == nil {
		l.n = map[string]int{}
	}
	l.n[r.Message]++
	return nil
}

func (l *logged) count(message string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n[message]
}

// TestLimitWhileTheDaemonIsDead: a time limit that is reached while the daemon is dead is kept once it is back. That it was not
// is logged once for a while, and that it was, too.
func TestLimitWhileTheDaemonIsDead(t *testing.T) {
	t.Parallel()
	var log logged
	d := ownDaemon(t, "--live-restore")
	e, img := newEngine(t, docker.Config{Host: d.Host(), Watchdog: 20 * time.Second, Logger: slog.New(&log)})
	s, _ := begin(t, e, img, "sleep 1000")
	c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"sleep", "1000"}, Timeout: 4 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	killed := time.Now()
	time.Sleep(5 * time.Second)
	if err := d.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	away := time.Since(killed)
	if exit := wait(t, c); exit.Reason != berth.TimedOut {
		t.Errorf("exit %+v", exit)
	}
	not, after := log.count("container not ended at its limit, which is tried again"), log.count("container was ended at its limit, late")
	if not < 1 || not > 1 && away < 10*time.Second || after != 1 { // a daemon that begins slowly is away for longer than that
		t.Errorf("logged %d times that it was not ended, and %d times that it is", not, after)
	}
}
