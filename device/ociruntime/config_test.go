package ociruntime

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/nvidia"
)

// TestExample: the example states what holds without it.
func TestExample(t *testing.T) {
	got, err := parseConfig(Example)
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseConfig([]byte("[berth]\nruntime = \"/usr/sbin/runc\""))
	if err != nil {
		t.Fatal(err)
	}
	got.NVIDIA.Runtime.Modes.JIT.DisableHooks = nil // an empty list says the same
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(nvidia.DefaultConfig(), got.NVIDIA); diff != "" {
		t.Error(diff)
	}
}

func TestConfigRefused(t *testing.T) {
	for name, c := range map[string]struct {
		text string
		kind error
		says string
	}{
		"a runtime that is searched in PATH": {"[berth]\nruntime = \"runc\"", berth.ErrInvalid, "absolute path"},
		"a misspelt option":                  {"[berth]\nruntimes = \"/usr/sbin/runc\"", berth.ErrInvalid, "there is no option berth.runtimes"},
		"a mode of Tegra":                    {"[nvidia-container-runtime]\nmode = \"csv\"", berth.ErrUnsupported, "mode is \"csv\""},
		"no TOML":                            {"[berth", berth.ErrInvalid, "line 1"},
		"a wrong type":                       {"[berth]\nprove = \"no\"", berth.ErrInvalid, "prove"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "c.toml")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := ReadConfig(path)
			if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), path) {
				t.Errorf("%v", err)
			}
		})
	}
	if _, err := ReadConfig("/nowhere"); !errors.Is(err, berth.ErrNotFound) {
		t.Error(err)
	}
}

// TestRuntimeIsNotBerth: whatever its name, berth never hands on to itself.
func TestRuntimeIsNotBerth(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(self) // for a hard link
	symbolic, hard := filepath.Join(t.TempDir(), "runc"), filepath.Join(dir, "runc")
	for _, err := range []error{os.Symlink(self, symbolic), os.Link(self, hard)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{self, symbolic, hard} {
		if got, err := (Config{Runtime: path}).runtime(); !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), "berth itself") {
			t.Errorf("%s: %s, %v", path, got, err)
		}
	}
	for path, kind := range map[string]error{"": berth.ErrInvalid, "/nowhere": berth.ErrNotFound, "/tmp": berth.ErrInvalid, "/etc/passwd": berth.ErrInvalid} {
		if got, err := (Config{Runtime: path}).runtime(); !errors.Is(err, kind) {
			t.Errorf("%s: %s, %v", path, got, err)
		}
	}
	if got, err := (Config{Runtime: "/bin/sh"}).runtime(); got != "/bin/sh" || err != nil {
		t.Errorf("%s, %v", got, err)
	}
}

// TestDocumented: the documentation has the example, to the letter.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/oci-runtime.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), "```toml\n"+string(Example)+"```\n") {
		t.Error("docs/oci-runtime.md does not have config.toml")
	}
}
