package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"golang.org/x/sys/unix"
)

// TestUpperUnsuited: where the file system cannot hold what containers write, the error says so, and what to do; so does a look.
func TestUpperUnsuited(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	root := func(at string) bundle.Root {
		r := bundle.Root{Layers: layers(t, at, 2), Upper: filepath.Join(at, "u"), Work: filepath.Join(at, "w"), Volatile: true}
		for _, d := range []string{r.Upper, r.Work} {
			if err := os.Mkdir(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		return r
	}
	m, err := Overlay(root(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	place := filepath.Join(dir, "place")
	if err := os.Mkdir(place, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := Attach(m, place); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Unmount(place, unix.MNT_DETACH) }()
	upon := root(filepath.Join(place, "upon"))
	_, overlaid := Overlay(upon)
	_, inOneString := overlayOneString(upon)
	for what, err := range map[string]error{"overlay": overlaid, "in one string": inOneString, "a look": HoldsUppers(place, false)} {
		if !errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), place) || !strings.Contains(err.Error(), "(overlay) cannot hold") || !strings.Contains(err.Error(), UpperRemedy) {
			t.Errorf("%s upon an overlay: %v", what, err)
		}
	}
	if left, err := filepath.Glob(place + "/try-*"); err != nil || len(left) > 0 {
		t.Errorf("the look leaves %v, %v", left, err)
	}
	if err := HoldsUppers(dir, false); err != nil {
		t.Errorf("a look at what can: %v", err)
	}
	// Another fault is not laid to the file system.
	wrong := root(filepath.Join(dir, "wrong"))
	wrong.Work = filepath.Join(wrong.Upper, "work")
	if err := os.Mkdir(wrong.Work, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Overlay(wrong); !errors.Is(err, unix.EINVAL) || errors.Is(err, berth.ErrUnsupported) {
		t.Errorf("a work directory within the upper: %v", err)
	}
}
