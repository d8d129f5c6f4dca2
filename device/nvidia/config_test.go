package nvidia

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
)

func TestParseConfig(t *testing.T) {
	cfg, err := ParseConfig([]byte(`
disable-require = true
swarm-resource = "DOCKER_RESOURCE_GPU"
accept-nvidia-visible-devices-envvar-when-unprivileged = false
accept-nvidia-visible-devices-as-volume-mounts = true
supported-driver-capabilities = "utility,compute"
nvidia-container-cli.root = "/run/nvidia/driver"
an-option-of-tomorrow = 1

[nvidia-container-runtime]
mode = "cdi"
  [nvidia-container-runtime.modes.cdi]
  annotation-prefixes = ["nvidia.cdi/",]

[features]
ignore-imex-channel-requests = true
`))
	want := DefaultConfig()
	want.DisableRequire, want.SwarmResource, want.AcceptEnvUnprivileged, want.AcceptMounts = true, "DOCKER_RESOURCE_GPU", false, true
	want.SupportedCapabilities, want.CLI.Root, want.Runtime.Mode = "utility,compute", "/run/nvidia/driver", "cdi"
	want.Runtime.Modes.CDI.AnnotationPrefixes = []string{"nvidia.cdi/"}
	want.Features.IgnoreIMEX = true
	if diff := cmp.Diff(want, cfg); diff != "" || err != nil {
		t.Error(diff, err)
	}
	if cfg, err := ParseConfig(nil); err != nil || cmp.Diff(DefaultConfig(), cfg) != "" {
		t.Errorf("%+v, %v", cfg, err)
	}
}

func TestParseConfigErrors(t *testing.T) {
	for text, want := range map[string]string{
		"disable-require = yes":                         "line 1, column 19",
		"\nswarm-resource = 1":                          "line 2, column 18",
		"supported-driver-capabilities = \"compute,x\"": `supported-driver-capabilities is "compute,x": there are compat32,`,
		"supported-driver-capabilities = \"all,x\"":     `supported-driver-capabilities is "all,x"`,
		"nvidia-container-cli.ldconfig = \"/sbin/x\"":   "begin the host's path with @",
	} {
		if cfg, err := ParseConfig([]byte(text)); !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v", text, cfg, err)
		}
	}
	if cfg, err := ParseConfig([]byte("nvidia-container-cli.ldconfig = \"/sbin/x\"\nfeatures.allow-ldconfig-from-container = true")); err != nil {
		t.Errorf("%+v, %v", cfg, err)
	}
}

func TestReadConfig(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.toml")
	if cfg, err := ReadConfig(file); !errors.Is(err, berth.ErrNotFound) || !strings.Contains(err.Error(), file) {
		t.Errorf("%+v, %v", cfg, err)
	}
	if err := os.WriteFile(file, []byte("disable-require"), 0o600); err != nil {
		t.Fatal(err)
	}
	if cfg, err := ReadConfig(file); !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), file) {
		t.Errorf("%+v, %v", cfg, err)
	}
}

func TestConfigPath(t *testing.T) {
	for _, c := range []struct {
		env   map[string]string
		want  string
		named bool
	}{
		{nil, "/etc/nvidia-container-runtime/config.toml", false},
		{map[string]string{"XDG_CONFIG_HOME": "/home/u/.config"}, "/home/u/.config/nvidia-container-runtime/config.toml", false},
		{map[string]string{"XDG_CONFIG_HOME": "/x", "NVIDIA_CTK_CONFIG_FILE_PATH": "/y.toml"}, "/y.toml", true},
	} {
		path, named := ConfigPath(func(name string) string { return c.env[name] })
		if path != c.want || named != c.named {
			t.Errorf("%v: %s, %v", c.env, path, named)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("supported-driver-capabilities = \"all\"\n[features]\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		cfg, err := ParseConfig(text)
		if err == nil && !AllCapabilities.Has(ParseCapabilities(cfg.SupportedCapabilities)) {
			t.Errorf("%q is accepted", cfg.SupportedCapabilities)
		}
	})
}
