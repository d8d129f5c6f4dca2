package cdi

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"
)

// nodes is a host whose device nodes are a list.
type nodes map[string]Node

func (n nodes) find(path string) (Node, error) {
	if node, ok := n[path]; ok {
		return node, nil
	}
	return Node{}, &fs.PathError{Op: "lstat", Path: path, Err: fs.ErrNotExist}
}

// testHost is a host with the given files and nodes; a file that begins with "-> " is a link.
func testHost(t *testing.T, files map[string]string, n nodes) Host {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		put(t, filepath.Join(root, name), text)
	}
	return Host{Root: root, Node: n.find}
}

func put(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	var err error
	if len(text) > 3 && text[:3] == "-> " {
		err = os.Symlink(text[3:], file)
	} else {
		err = os.WriteFile(file, []byte(text), 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func asJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// busySpec has something in each part that edits touch.
func busySpec() *oci.Spec {
	return &oci.Spec{
		Process: &oci.Process{
			Env:  append(make([]string, 0, 9), "PATH=/bin", "GPU=old"),
			User: oci.User{UID: 1000, GID: 100, AdditionalGids: append(make([]uint32, 0, 9), 5)},
		},
		Mounts: append(make([]oci.Mount, 0, 9), oci.Mount{Destination: "/data/deep"}, oci.Mount{Destination: "/x"}),
		Hooks:  &oci.Hooks{Poststop: append(make([]oci.Hook, 0, 9), oci.Hook{Path: "/old"})},
		Linux: &oci.Linux{
			Devices:    append(make([]oci.LinuxDevice, 0, 9), oci.LinuxDevice{Path: "/dev/gpu0", Type: "c", Major: 9}),
			Resources:  &oci.LinuxResources{Devices: append(make([]oci.LinuxDeviceCgroup, 0, 9), oci.LinuxDeviceCgroup{Access: "rwm"})},
			NetDevices: map[string]oci.LinuxNetDevice{"eth7": {Name: "old"}},
		},
	}
}
