package rootfs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: overlay mounts")
	}
}

// layers makes n directories, each with one file of its own and one that all share.
func layers(t *testing.T, dir string, n int) []string {
	t.Helper()
	var dirs []string
	for i := range n {
		d := filepath.Join(dir, fmt.Sprint("l", i))
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		for name, text := range map[string]string{fmt.Sprint("own", i): "own", "shared": fmt.Sprint(i)} {
			if err := os.WriteFile(filepath.Join(d, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		dirs = append(dirs, d)
	}
	return dirs
}

func read(t *testing.T, root *os.File, name string) string {
	t.Helper()
	fd, err := unix.Openat(int(root.Fd()), name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("open %s: %v", name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	buf := make([]byte, 64)
	n, _ := f.Read(buf)
	return string(buf[:n])
}

func TestOverlay(t *testing.T) {
	needRoot(t)
	long := strings.Repeat("long-name/", 30)
	tests := []struct {
		name     string
		layers   int
		under    string
		writable bool
	}{
		{"one layer, read-only", 1, "", false},
		{"two layers, read-only", 2, "", false},
		{"one layer, writable", 1, "", true},
		{"paths longer than a value of fsconfig", 3, long, true},
		{"sixty layers", 60, "", true},
		{"path with what mount options are made of", 2, `a,b:c\d=e`, true},
	}
	for _, tt := range tests {
		for _, way := range []struct {
			name  string
			mount func(bundle.Root) (*os.File, error)
		}{{"one by one", Overlay}, {"one string", overlayOneString}} {
			t.Run(tt.name+"/"+way.name, func(t *testing.T) {
				dir := filepath.Join(t.TempDir(), tt.under)
				root := bundle.Root{Layers: layers(t, dir, tt.layers), Volatile: true}
				if tt.writable {
					root.Upper, root.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
					for _, d := range []string{root.Upper, root.Work} {
						if err := os.MkdirAll(d, 0o755); err != nil {
							t.Fatal(err)
						}
					}
				}
				if way.name == "one string" && tt.layers == 1 && !tt.writable {
					root.Layers = append(root.Layers, root.Layers[0]+"x")
					if err := os.MkdirAll(root.Layers[1], 0o755); err != nil {
						t.Fatal(err)
					}
				}
				m, err := way.mount(root)
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				if got := read(t, m, "shared"); got != "0" {
					t.Errorf("shared file is of layer %q, want the topmost", got)
				}
				if got := read(t, m, fmt.Sprint("own", tt.layers-1)); got != "own" {
					t.Errorf("the lowest layer's file reads %q", got)
				}
				err = unix.Mkdirat(int(m.Fd()), "new", 0o755)
				if tt.writable && err != nil {
					t.Errorf("write: %v", err)
				}
				if !tt.writable && !errors.Is(err, unix.EROFS) {
					t.Errorf("write on a read-only root: %v, want EROFS", err)
				}
				if tt.writable {
					if _, err := os.Stat(filepath.Join(root.Upper, "new")); err != nil {
						t.Errorf("what was written is not in the upper directory: %v", err)
					}
				}
			})
		}
	}
}

// TestNoDevices: a device node that a layer has, and one that is made in the root, cannot be opened where that is asked.
func TestNoDevices(t *testing.T) {
	needRoot(t)
	for name, way := range map[string]struct {
		mount    func(bundle.Root) (*os.File, error)
		writable bool
	}{
		"one layer": {Overlay, false}, "one by one": {Overlay, true}, "one string": {overlayOneString, true},
	} {
		for _, none := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%v", name, none), func(t *testing.T) {
				dir := t.TempDir()
				root := bundle.Root{Layers: layers(t, dir, 1), NoDevices: none}
				nodes := []string{"null"}
				null := int(unix.Mkdev(1, 3))
				if err := unix.Mknod(filepath.Join(root.Layers[0], "null"), unix.S_IFCHR|0o666, null); err != nil {
					t.Fatal(err)
				}
				if way.writable {
					root.Upper, root.Work = filepath.Join(dir, "upper"), filepath.Join(dir, "work")
					if err := errors.Join(os.Mkdir(root.Upper, 0o755), os.Mkdir(root.Work, 0o755)); err != nil {
						t.Fatal(err)
					}
				}
				m, err := way.mount(root)
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				if way.writable {
					nodes = append(nodes, "made")
					if err := unix.Mknodat(int(m.Fd()), "made", unix.S_IFCHR|0o666, null); err != nil {
						t.Fatal(err)
					}
				}
				for _, n := range nodes {
					fd, err := unix.Openat(int(m.Fd()), n, unix.O_RDONLY|unix.O_CLOEXEC, 0)
					if err == nil {
						_ = unix.Close(fd)
					}
					if opened := err == nil; opened == none || none && !errors.Is(err, unix.EACCES) {
						t.Errorf("%s: %v", n, err)
					}
				}
			})
		}
	}
}

func TestAttach(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	m, err := Overlay(bundle.Root{Layers: layers(t, dir, 2)})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	for _, name := range []string{"first", "second"} {
		place := filepath.Join(dir, name)
		if err := os.Mkdir(place, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := Attach(m, place); err != nil {
			t.Fatal(err)
		}
		defer func() { _ = unix.Unmount(place, unix.MNT_DETACH) }()
		if got, err := os.ReadFile(filepath.Join(place, "shared")); err != nil || string(got) != "0" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestOverlayErrors(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	tests := []struct {
		name string
		root bundle.Root
		want error
	}{
		{"no layers", bundle.Root{}, berth.ErrInvalid},
		{"too many layers", bundle.Root{Layers: make([]string, 501)}, berth.ErrInvalid},
		{"missing layer", bundle.Root{Layers: []string{dir, dir + "/missing"}}, berth.ErrNotFound},
		{"missing single layer", bundle.Root{Layers: []string{dir + "/missing"}}, berth.ErrNotFound},
		{"missing upper", bundle.Root{Layers: []string{dir}, Upper: dir + "/u", Work: dir + "/w"}, berth.ErrNotFound},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Overlay(tt.root)
			if m != nil {
				m.Close()
			}
			if !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}
