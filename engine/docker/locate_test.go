package docker

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
)

func TestLocate(t *testing.T) {
	dir := t.TempDir()
	for name, meta := range map[string]string{
		"here":   `{"Name":"here","Metadata":{},"Endpoints":{"docker":{"Host":"unix:///run/here.sock","SkipTLSVerify":false}}}`,
		"broken": `{"Name"`, "other": `{"Endpoints":{"kubernetes":{}}}`, "odd": `{"Endpoints":{"docker":{"Host":"nonsense"}}}`,
	} {
		sum := sha256.Sum256([]byte(name))
		d := filepath.Join(dir, "contexts", "meta", hex.EncodeToString(sum[:]))
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(d, "meta.json"), []byte(meta), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	chosen := t.TempDir()
	if err := os.Rename(filepath.Join(dir, "contexts"), filepath.Join(chosen, "contexts")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(chosen, "config.json"), []byte(`{"currentContext": "here"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		host string
		env  map[string]string
		want string // an address, or what the error says
		kind error
	}{
		{"", nil, client.DefaultDockerHost, nil},
		{"unix:///a", map[string]string{"DOCKER_HOST": "unix:///b"}, "unix:///a", nil},
		{"", map[string]string{"DOCKER_HOST": "unix:///b", "DOCKER_CONTEXT": "here", "DOCKER_CONFIG": chosen}, "unix:///b", nil},
		{"", map[string]string{"DOCKER_HOST": "nonsense"}, `DOCKER_HOST "nonsense": invalid: it is no address of a daemon`, berth.ErrInvalid},
		{"", map[string]string{"DOCKER_CONTEXT": "here", "DOCKER_CONFIG": chosen}, "unix:///run/here.sock", nil},
		{"", map[string]string{"DOCKER_CONFIG": chosen}, "unix:///run/here.sock", nil},
		{"", map[string]string{"DOCKER_CONFIG": chosen, "DOCKER_CONTEXT": "default"}, client.DefaultDockerHost, nil},
		{"", map[string]string{"DOCKER_CONFIG": chosen, "DOCKER_CONTEXT": "gone"}, `DOCKER_CONTEXT: Docker context "gone": not found`, berth.ErrNotFound},
		{"", map[string]string{"DOCKER_CONFIG": chosen, "DOCKER_CONTEXT": "broken"}, "makes no sense", berth.ErrInvalid},
		{"", map[string]string{"DOCKER_CONFIG": chosen, "DOCKER_CONTEXT": "other"}, "no endpoint", berth.ErrInvalid},
		{"", map[string]string{"DOCKER_CONFIG": chosen, "DOCKER_CONTEXT": "odd"}, `Docker context odd "nonsense"`, berth.ErrInvalid},
	} {
		got, err := Locate(row.host, func(k string) string { return row.env[k] })
		if !errors.Is(err, row.kind) || err == nil && got != row.want || err != nil && !strings.Contains(err.Error(), row.want) {
			t.Errorf("%q, %v: %q, %v; want %s", row.host, row.env, got, err, row.want)
		}
	}
}

// TestUnreachable: a daemon that cannot be reached is told of in one line, with its kind and what to do.
func TestUnreachable(t *testing.T) {
	for _, row := range []struct {
		err  string
		kind error
		says string
	}{
		{"permission denied while trying to connect to the docker API at unix:///run/docker.sock", berth.ErrDenied, "group that owns the socket"},
		{"Cannot connect to the Docker daemon at unix:///run/docker.sock. Is the docker daemon running?", berth.ErrUnavailable, "Is the docker daemon running?"},
		{"failed to connect to the docker API at unix:///x; check if the path is correct and if the daemon is running: dial unix /x: connect: no such file or directory", berth.ErrUnavailable, "check if the path is correct"},
	} {
		err := wrap(t.Context(), "docker info", errors.New(row.err))
		if !errors.Is(err, row.kind) || !strings.Contains(err.Error(), row.says) || strings.Contains(fmt.Sprint(err), "\n") {
			t.Errorf("%v; want %v, and %q", err, row.kind, row.says)
		}
	}
}
