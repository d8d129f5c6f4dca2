package docker_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/berth-project/berth/engine/enginetest"
)

// startSSH has this test's ssh be one that is let in by a server of the test's.
func startSSH(t *testing.T) *dockertest.SSH {
	t.Helper()
	s, err := dockertest.StartSSH(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal("needs a server of ssh:", err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Setenv("PATH", s.Bin+":"+os.Getenv("PATH"))
	return s
}

// TestSSH: a daemon behind ssh is as any other, and on another machine.
func TestSSH(t *testing.T) {
	remoteConfig(t) // the daemon
	at := startSSH(t)
	host := "ssh://" + at.Addr + strings.TrimPrefix(sharedRemote.daemon.Host(), "unix://")
	// What is most of connections: their ends, each way apart, and many of them at once.
	cfg := docker.Config{Host: host, Dir: t.TempDir()}
	e, img := newEngine(t, cfg)
	env := &enginetest.Env{Engine: e, Image: img, Dir: t.TempDir(), Parallel: true, Again: func(context.Context) (berth.Engine, error) {
		again, _ := newEngine(t, cfg)
		return again, nil
	}}
	if away, err := e.Elsewhere(t.Context()); away != host || err != nil {
		t.Errorf("elsewhere %q, %v", away, err)
	}
	ran := 0
	for _, c := range enginetest.Checks() {
		switch c.Name {
		case "exit codes", "stop", "exec", "exec with a terminal", "steps share volumes", "archive", "many at once", "output to the byte",
			"output at full speed", "standard input is fed", "standard streams in files", "terminal", "attach in another process":
			ran++
			t.Run(c.Name, func(t *testing.T) {
				t.Parallel()
				if err := c.Run(t.Context(), env); err != nil {
					t.Error(err)
				}
			})
		}
	}
	if ran < 13 {
		t.Errorf("only %d of the suite's checks have these names", ran)
	}
}

// TestSSHFaults: what is missing for ssh is said, in one line, with its kind.
func TestSSHFaults(t *testing.T) {
	at := startSSH(t)
	bin := t.TempDir()
	for name, script := range map[string]string{
		"no docker":  "shift $(($#-3)); echo 'sh: 1: docker: not found' >&2; exit 127",
		"old docker": "echo \"docker: 'system dial-stdio' is not a docker command.\" >&2; exit 1",
		"no daemon":  "echo 'Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?' >&2; exit 1",
	} {
		dir := filepath.Join(bin, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "ssh"), []byte("#!/bin/sh\n"+script+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	path := os.Getenv("PATH")
	for _, row := range []struct {
		name, host, path string
		says             string
		kind             error
	}{
		{"no ssh", "ssh://h", t.TempDir(), "the ssh command is not on this machine", berth.ErrNotFound},
		{"a socket that is not there", "ssh://" + at.Addr + "/no/such.sock", path, "the daemon there: ", berth.ErrUnavailable},
		{"nobody listens", "ssh://127.0.0.1:1", path, "ssh to 127.0.0.1:1: ssh: connect to host 127.0.0.1 port 1: Connection refused", berth.ErrUnavailable},
		{"nobody is let in", "ssh://nobody@" + strings.TrimPrefix(at.Addr, "root@"), path, "berth asks for no password: have `ssh nobody@", berth.ErrDenied},
		{"no docker", "ssh://h", filepath.Join(bin, "no docker") + ":" + path, "there is no docker command on that host", berth.ErrUnavailable},
		{"old docker", "ssh://h", filepath.Join(bin, "old docker") + ":" + path, "older than 18.09", berth.ErrUnsupported},
		{"no daemon", "ssh://h", filepath.Join(bin, "no daemon") + ":" + path, "the daemon there: Cannot connect to the Docker daemon", berth.ErrUnavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Setenv("PATH", row.path)
			e, err := docker.New(docker.Config{Host: row.host, Dir: t.TempDir()})
			if err == nil {
				_, err = e.Info(t.Context())
				defer func() { _ = e.Close() }()
			}
			if !errors.Is(err, row.kind) || err != nil && (!strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "\n")) {
				t.Errorf("%v; want %v, and %q", err, row.kind, row.says)
			}
		})
	}
}
