package docker

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
)

// Locate finds out which daemon is meant, as the docker command does: host if it is set, else DOCKER_HOST of the
// environment, else the context that DOCKER_CONTEXT names, else the one that `docker context use` chose, else Docker's
// default. ErrInvalid where that makes no sense, ErrNotFound where there is no such context.
func Locate(host string, getenv func(string) string) (string, error) {
	at, err := locate(host, getenv)
	return at.Host, err
}

// endpoint is where a daemon is, and by what it is known.
type endpoint struct {
	Host string    `json:"host"`          // "unix:///run/docker.sock", "tcp://host:2376", "ssh://user@host"
	TLS  *tlsFiles `json:"tls,omitempty"` // of tcp; nil is without
}

// tlsFiles is a directory with ca.pem, cert.pem and key.pem, as far as they are there.
type tlsFiles struct {
	Dir string `json:"dir"`
	// SkipVerify: anybody may be the daemon. Only a Docker context can say so.
	SkipVerify bool `json:"skip_verify,omitempty"`
}

func locate(host string, getenv func(string) string) (endpoint, error) {
	dir := configDir(getenv)
	for _, from := range []struct{ name, host string }{{"docker host", host}, {"DOCKER_HOST", getenv("DOCKER_HOST")}} {
		if from.host != "" {
			return checkHost(from.name, endpoint{from.host, tlsOfEnv(dir, getenv)})
		}
	}
	name, from := getenv("DOCKER_CONTEXT"), "DOCKER_CONTEXT"
	if name == "" {
		name, from = currentContext(dir), "currentContext in "+filepath.Join(dir, "config.json")
	}
	if name == "" || name == "default" {
		return endpoint{Host: client.DefaultDockerHost}, nil
	}
	at, err := contextEndpoint(dir, name)
	if err != nil {
		return endpoint{}, fmt.Errorf("%s: Docker context %q: %w", from, name, err)
	}
	return checkHost("Docker context "+name, at)
}

// tlsOfEnv is what the environment says of TLS. Unlike the docker command, DOCKER_CERT_PATH alone asks for it too, and
// the daemon is always verified.
func tlsOfEnv(dir string, getenv func(string) string) *tlsFiles {
	certs := getenv("DOCKER_CERT_PATH")
	if getenv("DOCKER_TLS_VERIFY") == "" && certs == "" {
		return nil
	}
	certs = cmp.Or(certs, dir)
	if abs, err := filepath.Abs(certs); err == nil {
		certs = abs
	}
	return &tlsFiles{Dir: certs}
}

// checkHost refuses what is no address of a daemon, and completes what is: with a port, by TLS, as the docker command
// does.
func checkHost(from string, at endpoint) (endpoint, error) {
	u, err := client.ParseHostURL(at.Host)
	if err != nil || u.Scheme != "unix" && u.Scheme != "tcp" && u.Scheme != "ssh" {
		return endpoint{}, fmt.Errorf("%s %q: %w: it is no address of a daemon; write it as unix:///run/docker.sock, tcp://host:2376 or ssh://user@host", from, at.Host, berth.ErrInvalid)
	}
	switch u.Scheme {
	case "unix":
		at.TLS = nil
	case "ssh":
		at.TLS = nil
		if _, err := parseSSH(at.Host); err != nil {
			return endpoint{}, fmt.Errorf("%s %q: %w: %w", from, at.Host, berth.ErrInvalid, err)
		}
	case "tcp":
		name, port, err := net.SplitHostPort(u.Host)
		if err != nil {
			name, port = strings.Trim(u.Host, "[]"), ""
		}
		if port == "" {
			port = "2375"
			if at.TLS != nil {
				port = "2376"
			}
		}
		at.Host = "tcp://" + net.JoinHostPort(name, port) + u.Path
	}
	return at, nil
}

func configDir(getenv func(string) string) string {
	if dir, home := getenv("DOCKER_CONFIG"), getenv("HOME"); dir != "" || home != "" {
		return cmp.Or(dir, filepath.Join(home, ".docker"))
	}
	return ""
}

// currentContext is the context that the configuration names; "" where there is none.
func currentContext(dir string) string {
	var cfg struct {
		CurrentContext string `json:"currentContext"`
	}
	raw, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if dir == "" || err != nil || json.Unmarshal(raw, &cfg) != nil {
		return "" // who needs the configuration says what is wrong with it
	}
	return cfg.CurrentContext
}

// contextEndpoint reads a context as the docker command stores it.
func contextEndpoint(dir, name string) (endpoint, error) {
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	raw, err := os.ReadFile(filepath.Join(dir, "contexts", "meta", id, "meta.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return endpoint{}, fmt.Errorf("%w: there is none of that name in %s; `docker context ls` lists them", berth.ErrNotFound, dir)
	} else if err != nil {
		return endpoint{}, fmt.Errorf("%w: %w", kindOf(err), err)
	}
	var meta struct {
		Endpoints map[string]struct {
			Host          string
			SkipTLSVerify bool
		}
	}
	if err := json.Unmarshal(raw, &meta); err != nil {
		return endpoint{}, fmt.Errorf("%w: its meta.json makes no sense: %w", berth.ErrInvalid, err)
	}
	said := meta.Endpoints["docker"]
	if said.Host == "" {
		return endpoint{}, fmt.Errorf("%w: it has no endpoint of a Docker daemon", berth.ErrInvalid)
	}
	at := endpoint{Host: said.Host}
	if certs := filepath.Join(dir, "contexts", "tls", id, "docker"); said.SkipTLSVerify || exists(certs) {
		if abs, err := filepath.Abs(certs); err == nil {
			certs = abs
		}
		at.TLS = &tlsFiles{Dir: certs, SkipVerify: said.SkipTLSVerify}
	}
	return at, nil
}
