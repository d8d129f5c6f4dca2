package nvidia

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/berth-project/berth"
)

// Config are the options of NVIDIA's container toolkit, by the names that its config.toml gives them. berth
// honours those that concern what containers ask for and get; those of programs that it does not start it only
// reads.
type Config struct {
	DisableRequire        bool   `toml:"disable-require"`
	SwarmResource         string `toml:"swarm-resource"` // variables that name devices, separated by commas
	AcceptEnvUnprivileged bool   `toml:"accept-nvidia-visible-devices-envvar-when-unprivileged"`
	AcceptMounts          bool   `toml:"accept-nvidia-visible-devices-as-volume-mounts"`
	SupportedCapabilities string `toml:"supported-driver-capabilities"`

	CLI      CLIConfig      `toml:"nvidia-container-cli"`
	CTK      PathConfig     `toml:"nvidia-ctk"`
	Runtime  RuntimeConfig  `toml:"nvidia-container-runtime"`
	Hook     HookConfig     `toml:"nvidia-container-runtime-hook"`
	Features FeaturesConfig `toml:"features"`
}

// CLIConfig are the options of nvidia-container-cli.
type CLIConfig struct {
	Root        string   `toml:"root"` // where the driver is installed, if not in /
	Path        string   `toml:"path"`
	Environment []string `toml:"environment"`
	Debug       string   `toml:"debug"`
	LDCache     string   `toml:"ldcache"`
	LoadKmods   bool     `toml:"load-kmods"`
	NoPivot     bool     `toml:"no-pivot"`
	NoCgroups   bool     `toml:"no-cgroups"`
	User        string   `toml:"user"`
	LDConfig    string   `toml:"ldconfig"` // of the host, if it begins with @; else of the container
}

// PathConfig names a program.
type PathConfig struct {
	Path string `toml:"path"`
}

// RuntimeConfig are the options of nvidia-container-runtime.
type RuntimeConfig struct {
	Debug    string   `toml:"debug"`
	LogLevel string   `toml:"log-level"`
	Runtimes []string `toml:"runtimes"`
	Mode     string   `toml:"mode"`
	Modes    struct {
		CSV struct {
			MountSpecPath       string `toml:"mount-spec-path"`
			CompatContainerRoot string `toml:"compat-container-root"`
		} `toml:"csv"`
		CDI struct {
			SpecDirs           []string `toml:"spec-dirs"`
			DefaultKind        string   `toml:"default-kind"`
			AnnotationPrefixes []string `toml:"annotation-prefixes"`
		} `toml:"cdi"`
		JIT struct {
			Features     []string `toml:"nvcdi-feature-flags"`
			DisableHooks []string `toml:"nvcdi-disable-hooks"`
		} `toml:"jit-cdi"`
		Legacy struct {
			CUDACompatMode string `toml:"cuda-compat-mode"` // ldconfig, mount, hook or disabled
		} `toml:"legacy"`
	} `toml:"modes"`
}

// HookConfig are the options of nvidia-container-runtime-hook.
type HookConfig struct {
	Path              string `toml:"path"`
	SkipModeDetection bool   `toml:"skip-mode-detection"`
}

// FeaturesConfig are switches, all off unless set.
type FeaturesConfig struct {
	AllowCUDACompatFromContainer bool `toml:"allow-cuda-compat-libs-from-container"`
	AllowLDConfigFromContainer   bool `toml:"allow-ldconfig-from-container"`
	AllowUnknownOCISpecFields    bool `toml:"allow-unknown-oci-spec-fields"`
	DisableCUDACompatHook        bool `toml:"disable-cuda-compat-lib-hook"`
	DisableIMEXChannelCreation   bool `toml:"disable-imex-channel-creation"`
	IgnoreIMEX                   bool `toml:"ignore-imex-channel-requests"`
	NoAdditionalGIDs             bool `toml:"no-additional-gids-for-device-nodes"`
}

// DefaultConfig returns the options as NVIDIA ships them.
func DefaultConfig() Config {
	cfg := Config{
		AcceptEnvUnprivileged: true,
		SupportedCapabilities: AllCapabilities.String(),
		CLI:                   CLIConfig{LoadKmods: true, LDConfig: "@/sbin/ldconfig"},
		CTK:                   PathConfig{Path: "nvidia-ctk"},
		Runtime:               RuntimeConfig{Debug: "/dev/null", LogLevel: "info", Runtimes: []string{"runc", "crun"}, Mode: "auto"},
		Hook:                  HookConfig{Path: "nvidia-container-runtime-hook"},
	}
	modes := &cfg.Runtime.Modes
	modes.CSV.MountSpecPath = "/etc/nvidia-container-runtime/host-files-for-container.d"
	modes.CDI.SpecDirs = []string{"/etc/cdi", "/var/run/cdi"}
	modes.CDI.DefaultKind = Kind
	modes.CDI.AnnotationPrefixes = []string{"cdi.k8s.io/"}
	modes.Legacy.CUDACompatMode = "ldconfig"
	return cfg
}

// ConfigPath returns the path of the toolkit's configuration, and whether it was named, so that it must exist.
func ConfigPath(getenv func(string) string) (path string, named bool) {
	if path = getenv("NVIDIA_CTK_CONFIG_FILE_PATH"); path != "" {
		return path, true
	}
	dir := getenv("XDG_CONFIG_HOME")
	if dir == "" {
		dir = "/etc"
	}
	return filepath.Join(dir, "nvidia-container-runtime/config.toml"), false
}

// ReadConfig reads a configuration file over the options as shipped. Errors are of the kinds berth.ErrNotFound
// and berth.ErrInvalid. Options that berth does not know are left out, as the toolkit leaves them.
func ReadConfig(path string) (Config, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Config{}, fmt.Errorf("configuration %s: %w", path, berth.ErrNotFound)
	}
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w: %w", path, berth.ErrInvalid, err)
	}
	cfg, err := ParseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	return cfg, nil
}

// ParseConfig reads the text of a configuration file over the options as shipped.
func ParseConfig(text []byte) (Config, error) {
	cfg := DefaultConfig()
	if err := toml.NewDecoder(bytes.NewReader(text)).Decode(&cfg); err != nil {
		if at := new(toml.DecodeError); errors.As(err, &at) {
			line, column := at.Position()
			return Config{}, fmt.Errorf("%w: line %d, column %d: %w", berth.ErrInvalid, line, column, err)
		}
		return Config{}, fmt.Errorf("%w: %w", berth.ErrInvalid, err)
	}
	if !strings.HasPrefix(cfg.CLI.LDConfig, "@") && !cfg.Features.AllowLDConfigFromContainer {
		return Config{}, fmt.Errorf("%w: nvidia-container-cli.ldconfig is %q: begin the host's path with @, or set features.allow-ldconfig-from-container", berth.ErrInvalid, cfg.CLI.LDConfig)
	}
	supported := ParseCapabilities(cfg.SupportedCapabilities)
	if cfg.SupportedCapabilities == "all" {
		supported = AllCapabilities
		cfg.SupportedCapabilities = supported.String()
	}
	if !AllCapabilities.Has(supported) {
		return Config{}, fmt.Errorf("%w: supported-driver-capabilities is %q: there are %s, and all", berth.ErrInvalid, cfg.SupportedCapabilities, AllCapabilities)
	}
	return cfg, nil
}
