package hook

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	oci "github.com/opencontainers/runtime-spec/specs-go"
)

// maxJSON bounds what is read of a state or configuration, in bytes.
const maxJSON = 32 << 20

// state is the OCI state of a container, with the root that crun adds to it.
type state struct {
	oci.State
	Root string `json:"root"`
}

func readState(r io.Reader) (*state, error) {
	var s state
	if err := json.NewDecoder(io.LimitReader(r, maxJSON)).Decode(&s); err != nil {
		return nil, fmt.Errorf("the container's OCI state on standard input: %w", err)
	}
	if s.Root == "" && !filepath.IsAbs(s.Bundle) {
		return nil, fmt.Errorf("the container's OCI state on standard input: bundle %q is not an absolute path", s.Bundle)
	}
	return &s, nil
}

// rootDir is the container's root, as a path of the host. It is never the host's own root.
func (s *state) rootDir() (string, error) {
	dir := s.Root
	if dir == "" {
		spec, err := s.config()
		if err != nil {
			return "", err
		}
		if spec.Root == nil || spec.Root.Path == "" {
			return "", errors.New("the bundle's config.json names no root")
		}
		dir = spec.Root.Path
	}
	if !filepath.IsAbs(dir) {
		dir = filepath.Join(s.Bundle, dir)
	}
	here, err := os.Stat("/")
	if err != nil {
		return "", err
	}
	there, err := os.Stat(dir)
	if err != nil {
		return "", fmt.Errorf("the container's root: %w", err)
	}
	if os.SameFile(here, there) {
		return "", fmt.Errorf("the container's root %s is that of the host", dir)
	}
	return dir, nil
}

// config is the part of the bundle's configuration that hooks need.
func (s *state) config() (*bundleConfig, error) {
	f, err := os.Open(filepath.Join(s.Bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("the container's bundle: %w", err)
	}
	defer f.Close()
	var c bundleConfig
	if err := json.NewDecoder(io.LimitReader(f, maxJSON)).Decode(&c); err != nil {
		return nil, fmt.Errorf("read %s: %w", f.Name(), err)
	}
	return &c, nil
}

type bundleConfig struct {
	Root    *oci.Root `json:"root"`
	Process struct {
		Env []string `json:"env"`
	} `json:"process"`
}
