package docker_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/berth-project/berth/runner/untar"
	"github.com/moby/moby/client"
)

// TestTransferFaults: a daemon on another machine that is killed, or hangs, in the middle of an input or an output has the
// call end in time, with a reason, and nothing half taken for whole; what is done again when it is back is right, and
// nothing stays on it.
func TestTransferFaults(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/var/tmp", "berth-dockerd-")
	if err != nil {
		t.Fatal(err)
	}
	d, err := dockertest.Start(context.Background(), dockertest.Options{Dir: dir, Remote: true})
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
	wire, err := dockertest.NewTripwire(d.Remote())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = wire.Close() })
	in := filepath.Join(t.TempDir(), "in")
	content := make([]byte, 32<<20)
	_, _ = rand.Read(content)
	if err := os.WriteFile(in, content, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name      string
		hurt, end func() error
	}{
		{"killed", d.Kill, func() error { return d.Run(context.Background()) }},
		{"hung", func() error { return d.Signal(syscall.SIGSTOP) }, func() error { return d.Signal(syscall.SIGCONT) }},
	} {
		t.Run(row.name, func(t *testing.T) {
			e, img := newEngine(t, docker.Config{Host: "tcp://" + wire.Remote.Addr, Certs: wire.Remote.Certs, Dir: t.TempDir(), CallMax: 20 * time.Second, Stall: 15 * time.Second})
			s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/v"}}})
			if err != nil {
				t.Fatal(err)
			}
			// inFault makes a call in the middle of which the daemon is hurt, and has it be well again.
			inFault := func(what string, call func() error) {
				t.Helper()
				hurt := make(chan error, 1)
				wire.Arm(8<<20, func() { hurt <- row.hurt() })
				began := time.Now()
				err := call()
				took := time.Since(began)
				if !errors.Is(err, berth.ErrUnavailable) || took > time.Minute {
					t.Errorf("%s: after %v: %v", what, took, err)
				}
				select {
				case err = <-hurt: // which may be done a little after the call
				case <-time.After(20 * time.Second):
					t.Fatal(what + ": nothing was transferred")
				}
				if err := errors.Join(err, row.end()); err != nil {
					t.Fatal(err)
				}
			}
			spec := berth.StepSpec{
				ID: "copies", Image: img, Command: []string{"cp", "/in/file", "/v/out"},
				Mounts: []berth.Mount{{Source: in, Target: "/in/file", ReadOnly: true, Copy: true}},
			}
			inFault("input", func() error { _, err := s.Start(t.Context(), spec); return err })
			c, err := s.Start(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			if exit := wait(t, c); !exit.OK() {
				t.Fatalf("exit %+v", exit)
			}
			bring := func() ([]byte, error) {
				to := t.TempDir()
				root, err := os.OpenRoot(to)
				if err != nil {
					return nil, err
				}
				defer func() { _ = root.Close() }()
				r, err := s.(berth.VolumeArchiver).ArchiveVolume(t.Context(), "/v/out")
				if err != nil {
					return nil, err
				}
				defer func() { _ = r.Close() }()
				if err := untar.Whole(r, root); err != nil {
					return nil, err
				}
				return root.ReadFile("out")
			}
			inFault("output", func() error { _, err := bring(); return err })
			if got, err := bring(); err != nil || !bytes.Equal(got, content) {
				t.Errorf("output of %d bytes, which are not the %d of the input: %v", len(got), len(content), err)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Fatal(err)
			}
			left(t, d, e.Owner())
		})
	}
}

// left checks that a daemon has nothing of an owner's.
func left(t *testing.T, d *dockertest.Daemon, owner string) {
	t.Helper()
	api, err := client.New(client.WithHost(d.Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	own := client.Filters{}.Add("label", docker.LabelOwner+"="+owner)
	containers, err := api.ContainerList(t.Context(), client.ContainerListOptions{All: true, Filters: own})
	if err != nil || len(containers.Items) > 0 {
		t.Errorf("containers left: %+v, %v", containers.Items, err)
	}
	volumes, err := api.VolumeList(t.Context(), client.VolumeListOptions{Filters: own})
	if err != nil || len(volumes.Items) > 0 {
		t.Errorf("volumes left: %+v, %v", volumes.Items, err)
	}
}
