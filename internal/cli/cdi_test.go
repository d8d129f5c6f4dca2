package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/cdi"
	"github.com/berth-project/berth/device/devicetest"
)

func TestCDIGenerate(t *testing.T) {
	for _, name := range []string{"h200", "a100x8-mig", "mi300x-cpx", "arc", "amd-and-intel", "nvidia-and-amd"} {
		code, out, errs := berthOf(t, "", "cdi", "generate", "--root", recordedHost(t, name), "--hook", "/opt/berth/berth-cdi-hook")
		if code != 0 {
			t.Errorf("%s: exit code %d, %s", name, code, errs)
		}
		golden(t, "cdi/"+name+".yaml", out)
	}
}

// A file appears whole, with the format of its name; each of several vendors has a file of its own.
func TestCDIGenerateFile(t *testing.T) {
	root, dir := recordedHost(t, "amd-and-intel"), t.TempDir()
	file := filepath.Join(dir, "gpu.json")
	code, _, errs := berthOf(t, "", "cdi", "generate", "--root", root, "--output", file)
	if code != 2 || !strings.Contains(errs, "amd and intel") {
		t.Errorf("exit code %d, %s", code, errs)
	}
	code, out, errs := berthOf(t, "", "cdi", "generate", "--root", root, "--output", file, "--vendor", "amd", "--no-groups")
	if code != 0 || out != "" {
		t.Errorf("exit code %d, %s, %s", code, out, errs)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := cdi.Parse(data)
	if err != nil || !json.Valid(data) || spec.Document().Version != "0.3.0" && spec.Document().Version != "0.5.0" {
		t.Errorf("%v, %s", err, data)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("%v is left", entries)
	}
}

// TestMissingHook: a missing program is told with what helps: a flag is named only where the command has it.
func TestMissingHook(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	here, err := device.OpenHost("/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := hookHere(); !errors.Is(err, berth.ErrNotFound) || strings.Contains(err.Error(), "--hook") || !strings.Contains(err.Error(), "go build ./cmd/berth-cdi-hook, and install it as /") {
		t.Errorf("berth run: %v", err)
	}
	if _, err := hookProgram("", here); !errors.Is(err, berth.ErrNotFound) || !strings.HasSuffix(err.Error(), ", or name it with --hook") {
		t.Errorf("berth cdi generate: %v", err)
	}
}

// TestCDIGenerateMEI writes the specs of management interfaces, which are of a kind of their own.
func TestCDIGenerateMEI(t *testing.T) {
	code, out, errs := berthOf(t, "", "cdi", "generate", "--mei", "--root", recordedHost(t, "arc"))
	if code != 0 {
		t.Errorf("exit code %d, %s", code, errs)
	}
	golden(t, "cdi/arc-mei.yaml", out)
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--root", recordedHost(t, "h200")}, 3, "nothing that could be in it"},
		{[]string{"--root", recordedHost(t, "arc"), "--vendor", "amd"}, 2, "amd have no such interface"},
	} {
		code, _, errs := berthOf(t, "", append([]string{"cdi", "generate", "--mei"}, c.args...)...)
		if code != c.code || !strings.Contains(errs, c.says) {
			t.Errorf("%v: exit code %d, %s", c.args, code, errs)
		}
	}
}

func TestCDIGenerateBadInput(t *testing.T) {
	for _, c := range []struct {
		host string
		args []string
		code int
		says string
	}{
		{"none", nil, 3, "no GPU"},
		{"h200", []string{"--vendor", "amd"}, 3, "no AMD GPU"},
		{"h200", []string{"--vendor", "ati"}, 2, "nvidia, amd, intel"},
		{"h200", []string{"--hook", "hook"}, 2, "no absolute path"},
		{"h200", []string{"--output", "/nowhere/at/all.yaml"}, 3, "/nowhere/at"},
		{"upgraded", nil, 5, "those of 550.90.07 are"},
	} {
		code, out, errs := berthOf(t, "", append([]string{"cdi", "generate", "--root", recordedHost(t, c.host)}, c.args...)...)
		if code != c.code || out != "" || !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%s %q: exit code %d, %q, %q", c.host, c.args, code, out, errs)
		}
	}
}

// specHost is a host of two GPUs of AMD's with a spec of them, which berth wrote.
func specHost(t *testing.T) *devicetest.Host {
	h := devicetest.New(t, devicetest.Options{AMD: 2, Recorded: true})
	if err := os.MkdirAll(filepath.Join(h.Root, "etc/cdi"), 0o755); err != nil {
		t.Fatal(err)
	}
	code, _, errs := berthOf(t, "", "cdi", "generate", "--root", h.Root, "--output", filepath.Join(h.Root, "etc/cdi/amd.yaml"))
	if code != 0 {
		t.Fatal(errs)
	}
	return h
}

func TestCDIList(t *testing.T) {
	h := specHost(t)
	code, out, errs := berthOf(t, "", "cdi", "list", "--root", h.Root)
	want := "NAME             FILE\namd.com/gpu=0    /etc/cdi/amd.yaml\namd.com/gpu=1    /etc/cdi/amd.yaml\namd.com/gpu=all  /etc/cdi/amd.yaml\n"
	if code != 0 || errs != "" || out != want {
		t.Errorf("exit code %d, %q\n%s", code, errs, out)
	}
	code, out, _ = berthOf(t, "", "cdi", "list", "--root", h.Root, "--format", "json")
	var lines []cdiLine
	if err := json.Unmarshal([]byte(out), &lines); code != 0 || err != nil || len(lines) != 3 || lines[0] != (cdiLine{"amd.com/gpu=0", "/etc/cdi/amd.yaml", true}) {
		t.Errorf("exit code %d, %v, %s", code, err, out)
	}
	code, out, errs = berthOf(t, "", "cdi", "list", "--root", h.Root, "--spec-dir", "/nowhere")
	if code != 0 || errs != "" || out != "No CDI spec in /nowhere describes a device.\n" {
		t.Errorf("exit code %d, %q, %q", code, out, errs)
	}
	if code, out, _ = berthOf(t, "", "cdi", "list", "--root", h.Root, "--spec-dir", "/nowhere", "--format", "json"); code != 0 || out != "[]\n" {
		t.Errorf("exit code %d, %q", code, out)
	}
}

func TestCDICheck(t *testing.T) {
	h := specHost(t)
	check := func(want int, says string, args ...string) {
		t.Helper()
		code, out, errs := berthOf(t, "", append([]string{"cdi", "check", "--root", h.Root}, args...)...)
		if code != want || !strings.Contains(out+errs, says) {
			t.Errorf("%q: exit code %d, %s%s", args, code, out, errs)
		}
	}
	check(0, "/etc/cdi/amd.yaml: fits this host (3 devices)")
	check(0, "/etc/cdi/amd.yaml: fits this host (1 devices)", "amd.com/gpu=1")
	check(0, `"fits": true`, "--format", "json")
	check(0, "no CDI specs", "--spec-dir", "/nowhere")
	check(3, "there are amd.com/gpu=0, amd.com/gpu=1, amd.com/gpu=all", "amd.com/gpu=7")
	check(2, "VENDOR/CLASS=DEVICE", "7")

	h.Write("/etc/cdi/broken.yaml", "cdiVersion: 0.5.0\nkind: a.com/x\ndevces: []\n")
	check(3, "/etc/cdi/broken.yaml:3: ")
	check(0, "fits", "amd.com/gpu=0")
	h.Write("/etc/cdi/twice.yaml", string(must(os.ReadFile(filepath.Join(h.Root, "etc/cdi/amd.yaml")))))
	check(3, "both /etc/cdi/amd.yaml and /etc/cdi/twice.yaml describe it")
	for _, name := range []string{"broken", "twice"} {
		if err := os.Remove(filepath.Join(h.Root, "etc/cdi", name+".yaml")); err != nil {
			t.Fatal(err)
		}
	}

	nodes := string(must(os.ReadFile(filepath.Join(h.Root, "device-nodes"))))
	h.Write("/device-nodes", strings.Replace(nodes, "c 10:234", "c 10:239", 1))
	check(3, "/dev/kfd is 10:234 there and 10:239 on this host")
	check(3, "/etc/cdi/amd.yaml: write it anew: berth cdi generate --vendor amd --output /etc/cdi/amd.yaml")
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestCDIInject(t *testing.T) {
	h := specHost(t)
	const config = `{"ociVersion":"1.2.0","novel":1,"process":{"user":{"uid":1000,"gid":1000},"args":["sh"]}}`
	file := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	code, out, errs := berthOf(t, config, "cdi", "inject", "--root", h.Root, "-", "amd.com/gpu=1")
	if code != 0 || errs != "" {
		t.Fatalf("exit code %d, %s", code, errs)
	}
	const kvm = 232 // the node's on most machines
	number := fmt.Sprintf(`"minor": %d,`, h.AMD[1].Node.Minor)
	golden(t, "cdi/injected.json", strings.ReplaceAll(out, number, fmt.Sprintf(`"minor": %d,`, kvm)))
	code, again, errs := berthOf(t, "", "cdi", "inject", "--root", h.Root, file, "amd.com/gpu=1", "--output", file)
	if code != 0 || again != "" || errs != "" {
		t.Errorf("exit code %d, %s, %s", code, again, errs)
	}
	if diff := cmp.Diff(out, string(must(os.ReadFile(file)))); diff != "" {
		t.Error(diff)
	}

	// Whole or not at all.
	for _, c := range []struct {
		config string
		names  []string
		code   int
		says   string
	}{
		{config, []string{"amd.com/gpu=1", "amd.com/gpu=2"}, 3, "amd.com/gpu=2"},
		{config, []string{"0"}, 2, "VENDOR/CLASS=DEVICE"},
		{`{}`, []string{"amd.com/gpu=1"}, 2, "ociVersion"},
		{`[`, []string{"amd.com/gpu=1"}, 2, "-: OCI spec"},
	} {
		code, out, errs := berthOf(t, c.config, append([]string{"cdi", "inject", "--root", h.Root, "-"}, c.names...)...)
		if code != c.code || out != "" || !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q, %q", c.names, code, out, errs)
		}
	}
	if code, _, errs := berthOf(t, "", "cdi", "inject", "--root", h.Root, "/nowhere/config.json", "amd.com/gpu=1"); code != 3 || strings.Count(errs, "\n") != 1 {
		t.Errorf("exit code %d, %s", code, errs)
	}
	nodes := string(must(os.ReadFile(filepath.Join(h.Root, "device-nodes"))))
	h.Write("/device-nodes", strings.Replace(nodes, "c 10:234", "c 10:239", 1))
	if code, out, errs := berthOf(t, config, "cdi", "inject", "--root", h.Root, "-", "amd.com/gpu=1"); code != 3 || out != "" || !strings.Contains(errs, "stale") {
		t.Errorf("exit code %d, %s, %s", code, out, errs)
	}
}
