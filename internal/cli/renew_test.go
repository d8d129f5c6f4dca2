package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device"
	"github.com/berth-project/berth/device/devicetest"
)

// TestRenewSpec: a spec of the whole host keeps the program of its hooks, takes none that others than root can change, and loses no
// GPU that cannot be used just now.
func TestRenewSpec(t *testing.T) {
	const file = "/etc/cdi/nvidia.yaml"
	for name, c := range map[string]struct {
		hook string // that is there
		bad  bool   // a GPU
		kind error
		says string
	}{
		"as it was":          {hook: "/opt/old/hook"},
		"hook gone":          {kind: berth.ErrDenied, says: "others than root can change"},
		"GPU cannot be used": {hook: "/opt/old/hook", bad: true, kind: berth.ErrUnavailable, says: "not all of its GPUs can be used just now: nvidia 1"},
	} {
		t.Run(name, func(t *testing.T) {
			h := devicetest.New(t, devicetest.Options{NVIDIA: 2, Recorded: true})
			code, spec, errs := berthOf(t, "", "cdi", "generate", "--hook", "/opt/old/hook", "--root", h.Root)
			if code != 0 {
				t.Fatal(code, errs)
			}
			stale := spec + "# of before\n"
			h.Write(file, stale)
			if c.hook != "" {
				h.Write(c.hook, "")
			}
			if c.bad {
				nodes, err := os.ReadFile(h.Path(device.NodeList))
				if err != nil {
					t.Fatal(err)
				}
				h.Write(device.NodeList, strings.ReplaceAll(string(nodes), h.NVIDIA[1].Node.Path+"\n", "/dev/other\n"))
			}
			// What lies in a directory that all may write to is found in the path.
			dir := t.TempDir()
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, hookName), nil, 0o700); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir)
			a := &app{out: io.Discard, err: io.Discard, dir: dir}
			host, err := device.OpenHost(h.Root)
			if err != nil {
				t.Fatal(err)
			}
			err = a.renewSpec(t.Context(), host, file)
			if !errors.Is(err, c.kind) || err != nil && !strings.Contains(err.Error(), c.says) {
				t.Errorf("%v, want %v: %s", err, c.kind, c.says)
			}
			now, err := os.ReadFile(h.Path(file))
			if err != nil {
				t.Fatal(err)
			}
			want := spec
			if c.kind != nil {
				want = stale
			}
			if string(now) != want {
				t.Errorf("the spec is\n%s\nwant\n%s", now, want)
			}
		})
	}
}

func TestOfRootAlone(t *testing.T) {
	real, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ofRootAlone("/bin/sh"); got != real || err != nil {
		t.Errorf("/bin/sh: %q, %v; want %q", got, err, real)
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	theirs := filepath.Join(dir, "hook")
	if err := os.WriteFile(theirs, nil, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{theirs, theirs + "-gone"} {
		if got, err := ofRootAlone(file); got != "" || err == nil {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
}
