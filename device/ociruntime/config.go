package ociruntime

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/nvidia"
)

// ConfigPath is where the configuration lies unless a flag says otherwise.
const ConfigPath = "/etc/berth/oci-runtime.toml"

// Example is a configuration that states every option that is honoured, with the value that holds without it.
//
//go:embed config.toml
var Example []byte

// Config are the options of the runtime and the hook.
type Config struct {
	Path    string // of the file
	Runtime string // that is handed on to, by absolute path
	CDIHook string // the program of the hooks of CDI edits, by absolute path
	Prove   bool   // compare containers with what they were lent
	// AllowBusy lends devices too that processes have open which were lent nothing.
	AllowBusy bool
	Root      string // of the host
	// DataDir is berth's data directory, by absolute path, in which faults of GPUs are noted; "" is the user's.
	DataDir string

	NVIDIA nvidia.Config
}

// file is what of a configuration file is berth's.
type file struct {
	Berth struct {
		Runtime   string `toml:"runtime"`
		CDIHook   string `toml:"cdi-hook"`
		Prove     bool   `toml:"prove"`
		AllowBusy bool   `toml:"allow-busy"`
		Root      string `toml:"root"`
		DataDir   string `toml:"data-dir"`
	} `toml:"berth"`
}

// ReadConfig reads a configuration file; "" is ConfigPath. Errors name the file, and are of the kinds
// berth.ErrNotFound and berth.ErrInvalid.
func ReadConfig(path string) (Config, error) {
	if path == "" {
		path = ConfigPath
	}
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return Config{}, fmt.Errorf("configuration %s: %w; write one with: berth oci-runtime --berth-example > %s", path, berth.ErrNotFound, path)
	case err != nil:
		return Config{}, fmt.Errorf("configuration %s: %w: %w", path, berth.ErrInvalid, err)
	}
	cfg, err := parseConfig(data)
	if err != nil {
		return Config{}, fmt.Errorf("configuration %s: %w", path, err)
	}
	cfg.Path = path
	return cfg, nil
}

func parseConfig(data []byte) (Config, error) {
	toolkit, err := nvidia.ParseConfig(data)
	if err != nil {
		return Config{}, err
	}
	var f file
	f.Berth.Prove, f.Berth.Root = true, "/"
	if err := toml.NewDecoder(bytes.NewReader(data)).Decode(&f); err != nil {
		return Config{}, fmt.Errorf("%w: %w", berth.ErrInvalid, err)
	}
	if err := onlyKnown(data); err != nil {
		return Config{}, err
	}
	b := f.Berth
	for _, p := range []struct{ key, value string }{{"runtime", b.Runtime}, {"cdi-hook", b.CDIHook}, {"root", b.Root}, {"data-dir", b.DataDir}} {
		if p.value != "" && !filepath.IsAbs(p.value) {
			return Config{}, fmt.Errorf("%w: berth.%s is %q, and must be an absolute path", berth.ErrInvalid, p.key, p.value)
		}
	}
	switch mode := nvidia.Mode(toolkit.Runtime.Mode); mode {
	case "auto", nvidia.ModeCDI, nvidia.ModeJIT, nvidia.ModeLegacy:
	default:
		return Config{}, fmt.Errorf("%w: nvidia-container-runtime.mode is %q; berth has auto, cdi, jit-cdi and legacy", berth.ErrUnsupported, mode)
	}
	return Config{Runtime: b.Runtime, CDIHook: b.CDIHook, Prove: b.Prove, AllowBusy: b.AllowBusy, Root: b.Root, DataDir: b.DataDir, NVIDIA: toolkit}, nil
}

// options are the keys of berth's own table.
var options = []string{"runtime", "cdi-hook", "prove", "allow-busy", "root", "data-dir"}

// onlyKnown refuses keys in berth's own table that are misspelt: the toolkit's are its own affair.
func onlyKnown(data []byte) error {
	var all struct {
		Berth map[string]any `toml:"berth"`
	}
	if err := toml.Unmarshal(data, &all); err != nil {
		return fmt.Errorf("%w: %w", berth.ErrInvalid, err)
	}
	for key := range all.Berth {
		if !slices.Contains(options, key) {
			return fmt.Errorf("%w: there is no option berth.%s; there are %s", berth.ErrInvalid, key, strings.Join(options, ", "))
		}
	}
	return nil
}

// runtime returns the runtime to hand on to, once it is known to be another program than this: one that hands on
// to itself would never end.
func (cfg Config) runtime() (string, error) {
	const key = "berth.runtime"
	if cfg.Runtime == "" {
		return "", fmt.Errorf("configuration %s: %w: %s is not set; give the absolute path of an OCI runtime, such as /usr/sbin/runc", cfg.Path, berth.ErrInvalid, key)
	}
	var self, other unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &self); err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	if err := unix.Stat(cfg.Runtime, &other); err != nil {
		return "", fmt.Errorf("configuration %s: %s %s: %w: %w", cfg.Path, key, cfg.Runtime, berth.ErrNotFound, err)
	}
	switch {
	case self.Dev == other.Dev && self.Ino == other.Ino:
		return "", fmt.Errorf("configuration %s: %w: %s %s is berth itself; give the runtime that is to be handed on to", cfg.Path, berth.ErrInvalid, key, cfg.Runtime)
	case other.Mode&unix.S_IFMT != unix.S_IFREG || other.Mode&0o111 == 0:
		return "", fmt.Errorf("configuration %s: %w: %s %s is no program", cfg.Path, berth.ErrInvalid, key, cfg.Runtime)
	}
	return cfg.Runtime, nil
}

// cdiHook returns the program of the hooks.
func (cfg Config) cdiHook() (string, error) {
	if cfg.CDIHook != "" {
		return cfg.CDIHook, nil
	}
	self, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	return filepath.Join(filepath.Dir(strings.TrimSuffix(self, " (deleted)")), "berth-cdi-hook"), nil
}
