package device

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/berth-project/berth"
)

func recorded(t *testing.T, nodes string) (*Host, string) {
	root := t.TempDir()
	if err := os.WriteFile(filepath.Join(root, NodeList), []byte(nodes), 0o600); err != nil {
		t.Fatal(err)
	}
	h, err := OpenHost(root)
	if err != nil {
		t.Fatal(err)
	}
	return h, root
}

func TestRecordedNodes(t *testing.T) {
	h, root := recorded(t, "# a remark\n\nc 195:255 0666 0:44 /dev/nvidiactl\nb 8:0 0640 1:6 /dev/sda\n")
	if !h.Recorded() || h.Root() != root {
		t.Errorf("recorded %v, root %s", h.Recorded(), h.Root())
	}
	got, err := h.Node("/dev/nvidiactl")
	want := Node{Path: "/dev/nvidiactl", Type: "c", Major: 195, Minor: 255, Mode: 0o666, GID: 44}
	if err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if s := got.String(); s != "c 195:255 0666 0:44 /dev/nvidiactl" {
		t.Errorf("as a line: %s", s)
	}
	if _, err := h.Node("/dev/null"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a node of this machine is in a recorded host: %v", err)
	}
	if got := h.Glob("/dev/*"); !slices.Equal(got, []string{"/dev/nvidiactl", "/dev/sda"}) {
		t.Errorf("glob: %q", got)
	}
}

func TestNodeListErrors(t *testing.T) {
	for name, text := range map[string]string{
		"type":                  "p 1:3 0666 0:0 /dev/null",
		"no number":             "c 1:x 0666 0:0 /dev/null",
		"more than permissions": "c 1:3 4666 0:0 /dev/null",
		"relative":              "c 1:3 0666 0:0 dev/null",
		"too short":             "c 1:3 0666",
	} {
		t.Run(name, func(t *testing.T) {
			if n, err := parseNodes([]byte("\n" + text)); !errors.Is(err, berth.ErrInvalid) {
				t.Errorf("%v, %v", n, err)
			}
		})
	}
}

func TestRealNodes(t *testing.T) {
	h, err := OpenHost("/")
	if err != nil {
		t.Fatal(err)
	}
	n, err := h.Node("/dev/null")
	n.Mode, n.UID, n.GID = 0, 0, 0
	if want := (Node{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}); err != nil || n != want || h.Recorded() {
		t.Errorf("%+v, %v, recorded %v", n, err, h.Recorded())
	}
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink("/dev/null", link); err != nil {
		t.Fatal(err)
	}
	if n, err := h.Node(link); !errors.Is(err, berth.ErrInvalid) {
		t.Errorf("a symbolic link is a node: %+v, %v", n, err)
	}
	if _, err := h.Node("/dev/none-such"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func TestOpenHostErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{file, file + "-none"} {
		if _, err := OpenHost(root); !errors.Is(err, berth.ErrInvalid) {
			t.Errorf("%s: %v", root, err)
		}
	}
}

// Links in a recorded host, or in the root of a driver that is installed in a container, mean paths there.
func TestLinksStayWithin(t *testing.T) {
	h, root := recorded(t, "")
	for name, target := range map[string]string{
		"etc/absolute": "/usr/file", "etc/up": "../../../../usr/file", "dir": "/usr", "loop": "loop", "etc/gone": "/no/such",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(root+"/usr", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(root+"/usr/file", []byte("within"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/etc/absolute", "/etc/up", "/dir/file", "/../usr/file", "usr/./file"} {
		data, err := h.ReadFile(name)
		if err != nil || string(data) != "within" {
			t.Errorf("%s: %q, %v", name, data, err)
		}
	}
	if got, err := h.Resolve("/etc/gone"); err != nil || got != "/no/such" {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := h.Resolve("/loop/x"); err == nil {
		t.Error("a loop has an end")
	}
	if target, err := h.Readlink("/etc/up"); err != nil || target != "../../../../usr/file" {
		t.Errorf("%s, %v", target, err)
	}
	if diff := cmp.Diff([]string{"/dir/file"}, h.Glob("/dir/fi*")); diff != "" {
		t.Error(diff)
	}
}

func FuzzParseNodes(f *testing.F) {
	f.Add([]byte("c 195:0 0666 0:0 /dev/nvidia0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		nodes, err := parseNodes(data)
		for _, n := range nodes {
			again, err2 := parseNodes([]byte(n.String()))
			if err == nil && (err2 != nil || len(again) != 1) {
				t.Errorf("%s: %v", n, err2)
			}
		}
	})
}
