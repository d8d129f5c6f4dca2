package direct

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
)

// startIdle starts a container that waits for its end.
func startIdle(t testing.TB, s *Starter, edit func(*bundle.Bundle)) bundle.Process {
	t.Helper()
	b := testBundle(t, testSpec(t, "sleep", "1000"))
	b.Init = true
	if edit != nil {
		edit(b)
	}
	p, err := s.Start(t.Context(), b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.Kill()
		_, _ = p.Wait()
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// execIn runs a further process and waits for its end.
func execIn(t testing.TB, p bundle.Process, proc *specs.Process) (outcome, error) {
	t.Helper()
	out, stdout := drain(t)
	errs, stderr := drain(t)
	e, err := p.Exec(t.Context(), &bundle.Exec{Process: proc, Stdout: stdout, Stderr: stderr})
	_ = stdout.Close()
	_ = stderr.Close()
	if err != nil {
		return outcome{}, err
	}
	st, err := e.Wait()
	st.CPU = 0
	return outcome{stdout: out(), stderr: errs(), status: st}, err
}

func shell(t testing.TB, script string) *specs.Process {
	t.Helper()
	return testSpec(t, "/bin/sh", "-c", script).Process
}

func TestExec(t *testing.T) {
	s := testStarter(t)
	p := startIdle(t, s, nil)
	tests := []struct {
		name string
		proc *specs.Process
		want outcome
	}{
		{"output", shell(t, "echo out; echo err >&2; exit 4"), outcome{stdout: "out\n", stderr: "err\n", status: bundle.Status{Code: 4}}},
		{"signal", shell(t, "kill -9 $$"), outcome{status: bundle.Status{Signal: 9}}},
		{"in the container", shell(t, "hostname; cat /proc/1/cmdline | tr '\\0' ' '"), outcome{stdout: "berth\nberth-init sleep 1000 "}},
		{"confined", shell(t, "grep -E '^(Cap|NoNew|Seccomp:|Groups)' /proc/self/status > /tmp/self; grep -E '^(Cap|NoNew|Seccomp:|Groups)' /proc/1/status | diff /tmp/self -; cat /tmp/self | wc -l"), outcome{stdout: "8\n"}},
		{"descriptors", shell(t, "i=0; while [ $i -lt 1000 ]; do [ -e /proc/$$/fd/$i ] && echo $i; i=$((i+1)); done; true"), outcome{stdout: "0\n1\n2\n"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := execIn(t, p, tt.proc)
			if err != nil || got.stdout != tt.want.stdout || got.stderr != tt.want.stderr || got.status != tt.want.status {
				t.Errorf("got %v, %v\nwant %v", got, err, tt.want)
			}
		})
	}
}

func TestExecNamespaces(t *testing.T) {
	s := testStarter(t)
	p := startIdle(t, s, nil)
	got, err := execIn(t, p, shell(t, "cd /proc/self/ns; for n in cgroup ipc mnt net pid uts user; do readlink $n; done"))
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	for _, n := range []string{"cgroup", "ipc", "mnt", "net", "pid", "uts", "user"} {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", p.Pid(), n))
		if err != nil {
			t.Fatal(err)
		}
		own, err := os.Readlink("/proc/self/ns/" + n)
		if err != nil {
			t.Fatal(err)
		}
		if (link == own) != (n == "user") {
			t.Errorf("namespace %s of the container: %s, of the host: %s", n, link, own)
		}
		want.WriteString(link + "\n")
	}
	if got.stdout != want.String() {
		t.Errorf("got %s\nwant %s", got.stdout, want.String())
	}
}

func TestExecErrors(t *testing.T) {
	s := testStarter(t)
	p := startIdle(t, s, nil)
	for _, tt := range []struct {
		command string
		want    syscall.Errno
	}{{"nowhere", unix.ENOENT}, {"/etc", unix.EACCES}} {
		_, err := execIn(t, p, testSpec(t, tt.command).Process)
		var serr *bundle.StartError
		if !errors.As(err, &serr) || serr.Errno != tt.want {
			t.Errorf("%s: %v, want %v", tt.command, err, tt.want)
		}
	}
	proc := shell(t, "true")
	proc.Cwd = "/no/such/directory"
	if _, err := execIn(t, p, proc); err == nil || err.Error() != "exec: enter working directory /no/such/directory: no such file or directory" {
		t.Errorf("working directory that is not there: %v", err)
	}
	proc = shell(t, "true")
	proc.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_SYS_ADMIN"}}
	if _, err := execIn(t, p, proc); !errors.Is(err, berth.ErrUnsupported) {
		t.Errorf("with CAP_SYS_ADMIN, which the container does not have: %v, want ErrUnsupported", err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := execIn(t, p, shell(t, "true")); !errors.Is(err, berth.ErrConflict) {
		t.Errorf("in a container that has ended: %v, want ErrConflict", err)
	}
}

// Somebody who holds the pipe by which the init reports does not hold up the end of its container.
func TestReportIsHeld(t *testing.T) {
	s := testStarter(t)
	p := startIdle(t, s, nil)
	held, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", p.Pid(), reportFD), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan bundle.Status, 1)
	go func() {
		st, _ := p.Wait()
		ended <- st
	}()
	select {
	case st := <-ended:
		if st.Signal != unix.SIGKILL {
			t.Errorf("ended with %+v, want signal 9", st)
		}
	case <-time.After(5 * time.Second):
		t.Error("Wait waits for whoever holds the pipe")
	}
}

// TestExecIsEnded: what was executed in a container ends with it.
func TestExecIsEnded(t *testing.T) {
	s := testStarter(t)
	p := startIdle(t, s, nil)
	e, err := p.Exec(t.Context(), &bundle.Exec{Process: testSpec(t, "sleep", "1000").Process})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Kill(); err != nil {
		t.Fatal(err)
	}
	if st, err := e.Wait(); err != nil || st.Signal != unix.SIGKILL {
		t.Errorf("ended with %+v, %v", st, err)
	}
}

func readAll(t testing.TB, console *os.File) string {
	t.Helper()
	data, err := io.ReadAll(console)
	if err != nil && !errors.Is(err, unix.EIO) { // EIO: the other side was closed
		t.Fatal(err)
	}
	return string(data)
}

func TestTerminal(t *testing.T) {
	s := testStarter(t)
	const script = "tty; stty size; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo tty; echo x >/dev/tty && echo y >/dev/stderr; ls -1 /dev/pts; read line; echo got $line"
	for _, tt := range []struct {
		name string
		init bool
		uid  uint32
	}{{"init", true, 0}, {"no init", false, 0}, {"another user", true, 1000}} {
		t.Run(tt.name, func(t *testing.T) {
			b := testBundle(t, testSpec(t, "/bin/sh", "-c", script))
			b.Init = tt.init
			b.Spec.Process.User.UID = tt.uid
			b.Spec.Process.Terminal = true
			b.Spec.Process.ConsoleSize = &specs.Box{Width: 123, Height: 45}
			p, err := s.Start(t.Context(), b)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.Console().WriteString("line\n"); err != nil {
				t.Fatal(err)
			}
			got := readAll(t, p.Console())
			if want := "/dev/pts/0\r\n45 123\r\ntty\r\nx\r\ny\r\n0\r\nptmx\r\ngot line\r\n"; strings.Replace(got, "line\r\n", "", 1) != want {
				t.Errorf("got %q\nwant %q, with the echo of what was typed", got, want)
			}
			if st, err := p.Wait(); err != nil || st.Code != 0 {
				t.Errorf("ended with %+v, %v", st, err)
			}
			if err := p.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("console", func(t *testing.T) {
		b := testBundle(t, testSpec(t, "/bin/sh", "-c", "echo to the console >/dev/console; stat -c %t:%T /dev/console"))
		b.Spec.Process.Terminal = true
		p, err := s.Start(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := readAll(t, p.Console()), "to the console\r\n88:0\r\n"; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		_, _ = p.Wait()
		_ = p.Close()
	})
	t.Run("exec", func(t *testing.T) {
		p := startIdle(t, s, nil)
		proc := shell(t, "tty; ps -o pid,tty | grep -c 136; read x; echo got $x")
		proc.Terminal = true
		e, err := p.Exec(t.Context(), &bundle.Exec{Process: proc})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Console().WriteString("in\n"); err != nil {
			t.Fatal(err)
		}
		got := readAll(t, e.Console())
		if !strings.Contains(got, "/dev/pts/0") || !strings.HasSuffix(got, "got in\r\n") {
			t.Errorf("got %q", got)
		}
		if st, err := e.Wait(); err != nil || st.Code != 0 {
			t.Errorf("ended with %+v, %v", st, err)
		}
		_ = e.Console().Close()
	})
}
