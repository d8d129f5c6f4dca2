package hook

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth/device/cdi/inroot"
)

// container is a bundle with a root file system, beside a directory of the host that must stay as it is.
type container struct {
	t            *testing.T
	root, bundle string
	outside      string
}

// newContainer makes one with files; those that begin with "-> " are links.
func newContainer(t *testing.T, files map[string]string) *container {
	t.Helper()
	top := t.TempDir()
	c := &container{t: t, bundle: filepath.Join(top, "bundle"), outside: filepath.Join(top, "outside")}
	c.root = filepath.Join(c.bundle, "rootfs")
	for name, text := range files {
		c.put(filepath.Join(c.root, name), text)
	}
	if err := os.MkdirAll(c.root, 0o755); err != nil {
		t.Fatal(err)
	}
	c.put(filepath.Join(c.outside, "victim"), "whole")
	c.put(filepath.Join(c.bundle, "config.json"), `{"root":{"path":"rootfs"},"process":{"env":["A=b"]}}`)
	t.Cleanup(func() {
		entries, _ := os.ReadDir(c.outside)
		if data, _ := os.ReadFile(filepath.Join(c.outside, "victim")); len(entries) != 1 || string(data) != "whole" {
			t.Errorf("the host was changed: %v, %q", entries, data)
		}
	})
	return c
}

func (c *container) put(file, text string) {
	c.t.Helper()
	err := os.MkdirAll(filepath.Dir(file), 0o755)
	if target, ok := strings.CutPrefix(text, "-> "); ok && err == nil {
		err = os.Symlink(target, file)
	} else if err == nil {
		err = os.WriteFile(file, []byte(text), 0o755)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// run runs a hook, and returns its exit code and what it said.
func (c *container) run(args ...string) (int, string) {
	c.t.Helper()
	state, err := json.Marshal(map[string]any{"ociVersion": "1.2.0", "id": "c", "status": "creating", "pid": 1, "bundle": c.bundle})
	if err != nil {
		c.t.Fatal(err)
	}
	var out bytes.Buffer
	code := Main(args, bytes.NewReader(state), &out)
	return code, out.String()
}

func (c *container) must(args ...string) {
	c.t.Helper()
	if code, out := c.run(args...); code != 0 || out != "" {
		c.t.Fatalf("%v: exit code %d, %s", args, code, out)
	}
}

func (c *container) read(name string) string {
	c.t.Helper()
	data, err := os.ReadFile(filepath.Join(c.root, name))
	if err != nil {
		c.t.Error(err)
	}
	return string(data)
}

func (c *container) job() *job {
	root, err := inroot.Open(c.root)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { root.Close() })
	return &job{root: root, log: &bytes.Buffer{}, most: ofProgram}
}
