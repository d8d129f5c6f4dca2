package docker_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/berth-project/berth/engine/enginetest"
)

// skips are the checks of what Docker does otherwise.
var skips = map[string]string{
	"end by signal":              "the daemon reports 128+n for a signal and for an exit with that code alike; see README.md",
	"exec that ends otherwise":   "the daemon reports 128+n for a signal and for an exit with that code alike; TestExecEnds has the rest",
	"init":                       "the daemon's init is a program that its containers can read",
	"no file of the host":        "the daemon binds its init into containers, from the host; TestNoHostFiles has the rest",
	"too little memory to start": "a limit below the daemon's minimum of 6 MiB is raised to it, and the log says so",
	"devices":                    "the daemon's device rules let every container open /dev/console (5:1), and its API takes none of them away",
}

// TestSuite runs the suite that every engine must pass.
func TestSuite(t *testing.T) {
	cfg := docker.Config{Host: daemon(t).Host(), Dir: t.TempDir()}
	e, img := newEngine(t, cfg)
	env := &enginetest.Env{
		Engine: e, Image: img, Dir: t.TempDir(),
		Again: func(context.Context) (berth.Engine, error) {
			again, _ := newEngine(t, cfg)
			return again, nil
		},
		Parallel: true,
		Lacks:    map[enginetest.Ability]string{enginetest.Grants: "this engine refuses lent devices by now"},
	}
	enginetest.Run(t, env, skips)
}

// TestPodman: Podman's API service runs a container, says its exit, and loses none of its output. The suite is not run on
// it yet.
func TestPodman(t *testing.T) {
	d := podman(t)
	e, img := newEngine(t, docker.Config{Host: d.Host()})
	_, c := begin(t, e, img, "seq 1 2000; echo err >&2; exit 7")
	if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 7 {
		t.Errorf("exit %+v", exit)
	}
	want := ""
	for i := 1; i <= 2000; i++ {
		want += fmt.Sprintln(i)
	}
	if got := logs(t, c, false); got != want {
		t.Errorf("stdout: %d bytes, which are not the %d that were written", len(got), len(want))
	}
	if got := logs(t, c, true); got != "err\n" {
		t.Errorf("stderr %q", got)
	}
}

func podman(t *testing.T) *dockertest.Daemon {
	t.Helper()
	dir, err := os.MkdirTemp("/var/tmp", "berth-podman-")
	if err != nil {
		t.Fatal(err)
	}
	d, err := dockertest.StartPodman(context.Background(), dir)
	if err != nil {
		t.Fatal("needs Podman:", err)
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
