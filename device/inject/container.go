package inject

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/nvidia"
)

// Container is what a container says of itself. Environment of image and user are one here, as they are to any
// OCI runtime.
type Container struct {
	nvidia.Container
	Environ []string // in its order: of AMD's variables the last counts
}

// ParseBundle reads the container that the config.json of an OCI bundle describes.
func ParseBundle(config []byte) (Container, error) {
	c, err := nvidia.ParseBundle(config)
	if err != nil {
		return Container{}, err
	}
	var s struct {
		Process struct {
			Env []string `json:"env"`
		} `json:"process"`
	}
	if err := json.Unmarshal(config, &s); err != nil {
		return Container{}, fmt.Errorf("OCI spec: %w: %w", berth.ErrInvalid, err)
	}
	return Container{Container: c, Environ: s.Process.Env}, nil
}

// Image is a container of an image with an environment, of which later variables count.
func Image(environ []string, privileged bool) (Container, error) {
	env, err := nvidia.ParseEnv(environ)
	return Container{Container: nvidia.Container{Env: env, Privileged: privileged}, Environ: environ}, err
}

// ReadConfig reads the options of NVIDIA's container toolkit on a host: of this one the file that getenv names, of
// any the usual one. Without a file they are as NVIDIA ships them, and file is "".
func ReadConfig(h *device.Host, getenv func(string) string) (cfg nvidia.Config, file string, err error) {
	path, named := nvidia.ConfigPath(func(string) string { return "" })
	if h.Root() == "/" {
		path, named = nvidia.ConfigPath(getenv)
	}
	text, err := h.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && !named:
		return nvidia.DefaultConfig(), "", nil
	case errors.Is(err, fs.ErrNotExist):
		return cfg, "", fmt.Errorf("configuration %s: %w", path, berth.ErrNotFound)
	case err != nil:
		return cfg, "", fmt.Errorf("configuration %s: %w: %w", path, berth.ErrInvalid, err)
	}
	if cfg, err = nvidia.ParseConfig(text); err != nil {
		return cfg, "", fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, path, nil
}
