package nvidia

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/require"
)

// The variables by which images and users speak to NVIDIA's toolkit.
const (
	envVisible        = "NVIDIA_VISIBLE_DEVICES"
	envCapabilities   = "NVIDIA_DRIVER_CAPABILITIES"
	envIMEX           = "NVIDIA_IMEX_CHANNELS"
	envMIGConfig      = "NVIDIA_MIG_CONFIG_DEVICES"
	envMIGMonitor     = "NVIDIA_MIG_MONITOR_DEVICES"
	envRequire        = "NVIDIA_REQUIRE_"
	envRequireCUDA    = "NVIDIA_REQUIRE_CUDA"
	envRequireJetpack = "NVIDIA_REQUIRE_JETPACK"
	envDisableRequire = "NVIDIA_DISABLE_REQUIRE"
	envCUDAVersion    = "CUDA_VERSION"
)

// Container is what a container says of itself. Environment of image and user are one here, as they are to any
// OCI runtime.
type Container struct {
	Env         map[string]string
	Mounts      []oci.Mount
	Annotations map[string]string
	Privileged  bool
}

// ParseEnv reads an environment in the form of OCI specs. Of a variable that is there twice the last counts.
func ParseEnv(env []string) (map[string]string, error) {
	m := make(map[string]string, len(env))
	for _, e := range env {
		name, value, ok := strings.Cut(e, "=")
		if !ok {
			return nil, fmt.Errorf("%w: environment: %q has no =", berth.ErrInvalid, e)
		}
		m[name] = value
	}
	return m, nil
}

// ParseBundle reads the container that the config.json of an OCI bundle describes.
func ParseBundle(config []byte) (Container, error) {
	// Not oci.Spec: its capabilities have one form only, and older specs have another.
	var s struct {
		Version     string            `json:"ociVersion"`
		Annotations map[string]string `json:"annotations"`
		Mounts      []oci.Mount       `json:"mounts"`
		Process     *struct {
			Env          []string        `json:"env"`
			Capabilities json.RawMessage `json:"capabilities"`
		} `json:"process"`
	}
	switch err := json.Unmarshal(config, &s); {
	case err != nil:
		return Container{}, fmt.Errorf("OCI spec: %w: %w", berth.ErrInvalid, err)
	case s.Version == "":
		return Container{}, fmt.Errorf("OCI spec: %w: it has no ociVersion", berth.ErrInvalid)
	case s.Process == nil:
		return Container{}, fmt.Errorf("OCI spec: %w: it has no process", berth.ErrInvalid)
	}
	env, err := ParseEnv(s.Process.Env)
	if err != nil {
		return Container{}, err
	}
	privileged, err := Privileged(s.Version, s.Process.Capabilities)
	if err != nil {
		return Container{}, err
	}
	return Container{Env: env, Mounts: s.Mounts, Annotations: s.Annotations, Privileged: privileged}, nil
}

// Privileged reports whether the capabilities of an OCI spec make a container privileged: CAP_SYS_ADMIN is in
// its bounding set. The specs from 1.0.0-rc1 until before 1.0.0-rc5 have one list of capabilities.
func Privileged(ociVersion string, capabilities json.RawMessage) (bool, error) {
	if len(capabilities) == 0 {
		return false, nil
	}
	var bounding []string
	if oneList(ociVersion) {
		if err := json.Unmarshal(capabilities, &bounding); err != nil {
			return false, fmt.Errorf("OCI spec: capabilities: %w: %w", berth.ErrInvalid, err)
		}
	} else {
		var sets *oci.LinuxCapabilities
		if err := json.Unmarshal(capabilities, &sets); err != nil {
			return false, fmt.Errorf("OCI spec: capabilities: %w: %w", berth.ErrInvalid, err)
		}
		if sets != nil {
			bounding = sets.Bounding
		}
	}
	return slices.Contains(bounding, "CAP_SYS_ADMIN"), nil
}

// oneList reports whether the version is one of those, and a semantic version at all; "v1.0.0-rc2" is none.
func oneList(ociVersion string) bool {
	m := candidate.FindStringSubmatch(ociVersion)
	if m == nil || "rc1" > m[1] || m[1] >= "rc5" {
		return false
	}
	return !slices.ContainsFunc(strings.Split(m[1], "."), func(part string) bool {
		return len(part) > 1 && part[0] == '0' && strings.Trim(part, "0123456789") == ""
	})
}

var candidate = regexp.MustCompile(`^1\.0\.0-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?$`)

// Legacy reports whether the image is of the time before images named their requirements: it has a
// CUDA_VERSION and no NVIDIA_REQUIRE_CUDA.
func (c Container) Legacy() bool { return c.Env[envCUDAVersion] != "" && c.Env[envRequireCUDA] == "" }

// RequireDisabled reports whether NVIDIA_DISABLE_REQUIRE is true, in the words of strconv.ParseBool.
func (c Container) RequireDisabled() bool {
	disabled, err := strconv.ParseBool(c.Env[envDisableRequire])
	return err == nil && disabled
}

// Requirements returns what the image requires of the driver, in the language of package require, by the names
// of the variables that say so; all must be met.
func (c Container) Requirements() ([]string, error) {
	if c.RequireDisabled() {
		return nil, nil
	}
	var names, requirements []string
	for name := range c.Env {
		if strings.HasPrefix(name, envRequire) && !strings.HasPrefix(name, envRequireJetpack) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	for _, name := range names {
		requirements = append(requirements, c.Env[name])
	}
	if c.Legacy() {
		version, err := require.MajorMinor(c.Env[envCUDAVersion])
		if err != nil {
			return nil, fmt.Errorf("%s: %w", envCUDAVersion, err)
		}
		requirements = append(requirements, "cuda>="+version)
	}
	return requirements, nil
}
