package docker_test

import (
	"context"
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
	"capabilities of an exec as another user": "the daemon gives root of an exec none itself, and with no_new_privs, which berth asks for, the kernel does not either",
}

// TestSuite runs the suite that every engine must pass.
func TestSuite(t *testing.T) { runSuite(t, daemon(t), skips) }

func runSuite(t *testing.T, d *dockertest.Daemon, skips map[string]string) {
	cfg := docker.Config{Host: d.Host(), Dir: t.TempDir()}
	e, img := newEngine(t, cfg)
	env := &enginetest.Env{
		Engine: e, Image: img, Dir: t.TempDir(),
		Again: func(context.Context) (berth.Engine, error) {
			again, _ := newEngine(t, cfg)
			return again, nil
		},
		Parallel: true,
		Lendable: fakeGPUs(t),
		Lacks:    map[enginetest.Ability]string{enginetest.Hooks: "what they have made of a container is looked at after its start; TestCDI sees them run, and TestLentDevices sees them refused where there is no CDI"},
	}
	enginetest.Run(t, env, skips)
}

// fakeGPUs are device nodes that stand for GPUs.
func fakeGPUs(t *testing.T) []berth.Node {
	t.Helper()
	nodes, err := enginetest.FakeGPUs(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return nodes
}
