package docker_test

import (
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
)

// TestInputLeftUnread: a command that does not read all of its input has all of its output, and nothing else in it, also where nobody keeps
// a log.
func TestInputLeftUnread(t *testing.T) {
	t.Parallel()
	for name, host := range map[string]string{"docker": daemon(t).Host(), "podman": podman(t).Host()} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e, img := newEngine(t, docker.Config{Host: host, Dir: t.TempDir()})
			s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = s.Close(t.Context()) }()
			for try := range 6 {
				c, err := s.Start(t.Context(), berth.StepSpec{
					ID: berth.NewID(), Image: img, OpenStdin: true, Ephemeral: try%2 == 0,
					Command: []string{"sh", "-c", "read x; echo got $x; sleep 0.1; seq 20000; exit 6"},
				})
				if err != nil {
					t.Fatal(err)
				}
				in, err := c.(berth.StdinWriter).Stdin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				go func() {
					_, _ = io.WriteString(in, strings.Repeat("much\n", 1<<20)) // more than anything holds
					_ = in.Close()
				}()
				if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 6 || exit.Detail != "" {
					t.Errorf("exit %+v", exit)
				}
				want := "got much\n" + sequence(20000)
				if got := logs(t, c, false); got != want {
					t.Errorf("stdout: %s", differ(got, want))
				}
				if got := logs(t, c, true); got != "" {
					t.Errorf("stderr %q", got)
				}
			}
		})
	}
}

// TestPodmanExecInputLeftUnread: Podman breaks off the one connection of a command that does not take all of its input. Its code is
// its own, and that some of its output may be missing is told, unless all came before.
func TestPodmanExecInputLeftUnread(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{Host: podman(t).Host(), Dir: t.TempDir()})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	c := step(t, s, img, "sleep 1000")
	for range 4 {
		var out strings.Builder
		exit, err := c.(berth.Execer).Exec(t.Context(), berth.ExecSpec{Command: []string{"sh", "-c", "read x; echo got $x; sleep 0.3; exit 6"}},
			berth.Stdio{In: strings.NewReader(strings.Repeat("much\n", 1<<20)), Out: &out})
		if err != nil || exit.Reason != berth.Exited || exit.Code != 6 {
			t.Errorf("exit %+v, %v", exit, err)
		}
		if out.String() != "got much\n" && !strings.Contains(exit.Detail, "some of its output may be missing") {
			t.Errorf("it wrote %q, and the exit says %q", out.String(), exit.Detail)
		}
	}
}

// TestOpenInputCutOff: a command whose input ends with Podman's service has not had all of it, and is Lost, whatever it makes of that. One
// whose input was at its end has its own exit.
func TestOpenInputCutOff(t *testing.T) {
	t.Parallel()
	d := podmanAs(t, dockertest.Podman{})
	e, img := newEngine(t, docker.Config{Host: d.Host(), Dir: t.TempDir(), Watchdog: 20 * time.Second})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(context.Background()) }()
	run := func(script string) (berth.Container, io.WriteCloser) {
		t.Helper()
		c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, OpenStdin: true, Command: []string{"sh", "-c", script}})
		if err != nil {
			t.Fatal(err)
		}
		in, err := c.(berth.StdinWriter).Stdin(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(in, "a line\n"); err != nil {
			t.Fatal(err)
		}
		return c, in
	}
	cut, _ := run("echo up; wc -l")
	whole, in := run("cat; echo up; sleep 5; exit 3")
	if err := in.Close(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []berth.Container{cut, whole} {
		until(t, "it runs", func() bool { return strings.Contains(logs(t, c, false), "up\n") })
	}
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	if err := d.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, cut); exit.Reason != berth.Lost || !strings.HasPrefix(exit.Detail, "standard input was not handed over to its end: the daemon was away meanwhile; it exited with code 0") {
		t.Errorf("exit %+v of one whose input was cut off", exit)
	}
	if exit := wait(t, whole); exit.Reason != berth.Exited || exit.Code != 3 {
		t.Errorf("exit %+v of one that had all of its input", exit)
	}
}

func sequence(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintln(&b, i+1)
	}
	return b.String()
}
