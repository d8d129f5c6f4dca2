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
	"github.com/google/go-cmp/cmp"
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

// TestEndpoint: an address alone finds the TLS files of what the environment means now, or had before.
func TestEndpoint(t *testing.T) {
	certs, config, dir := t.TempDir(), t.TempDir(), t.TempDir()
	sum := sha256.Sum256([]byte("far"))
	id := hex.EncodeToString(sum[:])
	meta, files := filepath.Join(config, "contexts", "meta", id), filepath.Join(config, "contexts", "tls", id, "docker")
	for _, d := range []string{meta, files} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(meta, "meta.json"), []byte(`{"Endpoints":{"docker":{"Host":"tcp://far","SkipTLSVerify":true}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := keepEndpoint(dir, endpoint{"tcp://kept:2376", &tlsFiles{Dir: "/kept"}}); err != nil {
		t.Fatal(err)
	}
	of := func(pairs ...string) func(string) string {
		return func(k string) string {
			for i := 0; i < len(pairs); i += 2 {
				if pairs[i] == k {
					return pairs[i+1]
				}
			}
			return ""
		}
	}
	for _, row := range []struct {
		name string
		cfg  Config
		env  func(string) string
		want endpoint
	}{
		{"TLS of the environment", Config{}, of("DOCKER_HOST", "tcp://h", "DOCKER_TLS_VERIFY", "1", "DOCKER_CERT_PATH", certs), endpoint{"tcp://h:2376", &tlsFiles{Dir: certs}}},
		{"the directory alone", Config{}, of("DOCKER_HOST", "tcp://h:1", "DOCKER_CERT_PATH", certs), endpoint{"tcp://h:1", &tlsFiles{Dir: certs}}},
		{"TLS from docker's own directory", Config{}, of("DOCKER_HOST", "tcp://[::1]", "DOCKER_TLS_VERIFY", "1", "DOCKER_CONFIG", config), endpoint{"tcp://[::1]:2376", &tlsFiles{Dir: config}}},
		{"without", Config{}, of("DOCKER_HOST", "tcp://localhost"), endpoint{Host: "tcp://localhost:2375"}},
		{"a socket has none", Config{}, of("DOCKER_HOST", "unix:///s", "DOCKER_TLS_VERIFY", "1"), endpoint{Host: "unix:///s"}},
		{"ssh has none", Config{}, of("DOCKER_HOST", "ssh://me@h:22/run/s", "DOCKER_TLS_VERIFY", "1"), endpoint{Host: "ssh://me@h:22/run/s"}},
		{"a context's", Config{}, of("DOCKER_CONTEXT", "far", "DOCKER_CONFIG", config), endpoint{"tcp://far:2376", &tlsFiles{Dir: files, SkipVerify: true}}},
		{"an address that the context has", Config{Host: "tcp://far:2376"}, of("DOCKER_CONTEXT", "far", "DOCKER_CONFIG", config), endpoint{"tcp://far:2376", &tlsFiles{Dir: files, SkipVerify: true}}},
		{"an address that was kept", Config{Host: "tcp://kept:2376", Dir: dir}, of("DOCKER_HOST", "tcp://h", "DOCKER_TLS_VERIFY", "1", "DOCKER_CERT_PATH", certs), endpoint{"tcp://kept:2376", &tlsFiles{Dir: "/kept"}}},
		{"an address alone", Config{Host: "tcp://other:1", Dir: dir}, of("DOCKER_TLS_VERIFY", "1", "DOCKER_CERT_PATH", certs), endpoint{"tcp://other:1", &tlsFiles{Dir: certs}}},
	} {
		got, err := endpointOf(row.cfg, row.env)
		if diff := cmp.Diff(row.want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", row.name, err, diff)
		}
	}
	for _, bad := range []string{"ssh://", "ssh://me:secret@h", "ssh://h?x=1", "ssh://-oProxyCommand=x", "http://h", "npipe:////./pipe/x"} {
		if _, err := endpointOf(Config{Host: bad}, of()); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%s: %v; want invalid", bad, err)
		}
	}
}
