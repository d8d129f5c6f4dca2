package docker

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
)

// Locate finds out which daemon is meant, as the docker command does: host if it is set, else DOCKER_HOST of the
// environment, else the context that DOCKER_CONTEXT names, else the one that `docker context use` chose, else Docker's
// default. ErrInvalid where that makes no sense, ErrNotFound where there is no such context.
func Locate(host string, getenv func(string) string) (string, error) {
	for _, from := range []struct{ name, host string }{{"docker host", host}, {"DOCKER_HOST", getenv("DOCKER_HOST")}} {
		if from.host != "" {
			return checkHost(from.name, from.host)
		}
	}
	dir := configDir(getenv)
	name, from := getenv("DOCKER_CONTEXT"), "DOCKER_CONTEXT"
	if name == "" {
		name, from = currentContext(dir), "currentContext in "+filepath.Join(dir, "config.json")
	}
	if name == "" || name == "default" {
		return client.DefaultDockerHost, nil
	}
	host, err := contextHost(dir, name)
	if err != nil {
		return "", fmt.Errorf("%s: Docker context %q: %w", from, name, err)
	}
	return checkHost("Docker context "+name, host)
}

func checkHost(from, host string) (string, error) {
	if _, err := client.ParseHostURL(host); err != nil {
		return "", fmt.Errorf("%s %q: %w: it is no address of a daemon; write it as unix:///run/docker.sock", from, host, berth.ErrInvalid)
	}
	return host, nil
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

// contextHost reads a context as the docker command stores it.
func contextHost(dir, name string) (string, error) {
	sum := sha256.Sum256([]byte(name))
	raw, err := os.ReadFile(filepath.Join(dir, "contexts", "meta", hex.EncodeToString(sum[:]), "meta.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%w: there is none of that name in %s; `docker context ls` lists them", berth.ErrNotFound, dir)
	} else if err != nil {
		return "", fmt.Errorf("%w: %w", kindOf(err), err)
	}
	var meta struct {
		Endpoints map[string]struct{ Host string }
	}
	if err := json.Unmarshal(raw, &meta); err != nil {
		return "", fmt.Errorf("%w: its meta.json makes no sense: %w", berth.ErrInvalid, err)
	}
	host := meta.Endpoints["docker"].Host
	if host == "" {
		return "", fmt.Errorf("%w: it has no endpoint of a Docker daemon", berth.ErrInvalid)
	}
	return host, nil
}
