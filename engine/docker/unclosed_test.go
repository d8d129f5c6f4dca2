package docker_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/moby/moby/client"
)

// TestClosedOnceItAnswers: a sandbox that was to be closed while the daemon was dead is closed by the keeper when it is back, with the container that
// ran on; not while another process drives it.
func TestClosedOnceItAnswers(t *testing.T) {
	t.Parallel()
	d := ownDaemon(t, "--live-restore")
	cfg := docker.Config{Host: d.Host(), Dir: t.TempDir()}
	e, img := newEngine(t, cfg)
	api, err := client.New(client.WithHost(d.Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Labels: map[string]string{docker.LabelResume: "1"}})
	if err != nil {
		t.Fatal(err)
	}
	step(t, s, img, "echo up; sleep 1000")
	if err := d.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err == nil {
		t.Fatal("closed without a daemon")
	}
	if err := s.(*docker.Sandbox).CloseLater(); err != nil {
		t.Fatal(err)
	}
	if err := d.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	time.Sleep(5 * time.Second) // in which the keeper has looked
	if _, err := os.Stat(filepath.Join(cfg.Dir, "sandboxes", s.ID())); err != nil {
		t.Errorf("while another process drives it: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	until(t, "the sandbox is gone", func() bool {
		_, err := os.Stat(filepath.Join(cfg.Dir, "sandboxes", s.ID()))
		return errors.Is(err, fs.ErrNotExist)
	})
	left, err := api.ContainerList(t.Context(), client.ContainerListOptions{All: true})
	if err != nil || len(left.Items) > 0 {
		t.Errorf("left: %+v, %v", left.Items, err)
	}
}
