package cli

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth/device/devicetest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// recordedHosts are the hosts of the vendors' tests.
var recordedHosts = map[string]string{
	"none": "nvidia", "h200": "nvidia", "a100x8-mig": "nvidia", "minor-differs": "nvidia", "upgraded": "nvidia",
	"mi300x-cpx": "amd", "arc": "intel", "amd-and-intel": "intel",
}

func recordedHost(t *testing.T, name string) string {
	t.Helper()
	root, err := filepath.Abs(filepath.Join("../../device", recordedHosts[name], "testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// berthOf runs a command in this process, with nothing of the machine's configuration.
func berthOf(t *testing.T, stdin string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	dir := t.TempDir()
	a := &app{in: strings.NewReader(stdin), out: &out, err: &errs, env: []string{"HOME=" + dir, "BERTH_DATA_DIR=" + filepath.Join(dir, "data")}, dir: dir}
	code = a.run(t.Context(), args)
	return code, out.String(), errs.String()
}

// golden compares with a file in testdata/gpu.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata/gpu", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s: %s", file, diff)
	}
}

func TestGPULs(t *testing.T) {
	for name := range recordedHosts {
		t.Run(name, func(t *testing.T) {
			root := recordedHost(t, name)
			code, out, errs := berthOf(t, "", "gpu", "ls", "--root", root)
			if code != 0 {
				t.Errorf("exit code %d", code)
			}
			golden(t, "ls/"+name+".txt", out+"-- standard error\n"+errs)
			code, out, _ = berthOf(t, "", "gpu", "ls", "--root", root, "--format", "json")
			if code != 0 {
				t.Errorf("exit code %d", code)
			}
			golden(t, "ls/"+name+".json", out)
		})
	}
}

func TestGPULsBadInput(t *testing.T) {
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, "device-nodes"), []byte("nonsense\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--root", "/nowhere/at/all"}, 2, "/nowhere/at/all"},
		{[]string{"--root", "/dev/null"}, 2, "it is no directory"},
		{[]string{"--root", broken}, 2, `line 1: "nonsense"`},
		{[]string{"0"}, 2, "it takes no arguments"},
	} {
		code, out, errs := berthOf(t, "", append([]string{"gpu", "ls"}, c.args...)...)
		if code != c.code || out != "" || !strings.Contains(errs, c.says) || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q, %q", c.args, code, out, errs)
		}
	}
}

// A process that is no task's has a GPU as soon as its node is open, and a task as soon as it is lent.
func TestGPULsHolders(t *testing.T) {
	h := devicetest.New(t, devicetest.Options{NVIDIA: 2})
	f, err := os.OpenFile(h.Path(h.NVIDIA[1].Node.Path), os.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	code, out, errs := berthOf(t, "", "gpu", "ls", "--root", h.Root, "--format", "json")
	if code != 0 {
		t.Fatal(errs)
	}
	var lines []gpuLine
	if err := json.Unmarshal([]byte(out), &lines); err != nil || len(lines) != 2 {
		t.Fatalf("%v: %s", err, out)
	}
	mine := func(h gpuHolder) bool { return h.Process != nil && h.Process.PID == os.Getpid() }
	if slices.ContainsFunc(lines[0].HeldBy, mine) || !slices.ContainsFunc(lines[1].HeldBy, mine) {
		t.Error(out)
	}
	_, out, _ = berthOf(t, "", "gpu", "ls", "--root", h.Root)
	if !strings.Contains(out, fmt.Sprintf("(process %d)", os.Getpid())) {
		t.Error(out)
	}
}
