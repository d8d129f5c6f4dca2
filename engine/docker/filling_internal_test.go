package docker

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/scratch"
)

// TestEmptyAgain: a volume that a daemon may have filled in part is emptied before it is to fill it again, and what somebody else has put
// into one before the first time stays.
func TestEmptyAgain(t *testing.T) {
	l := lifeAt(t, "unix://"+filepath.Join(t.TempDir(), "nobody"))
	dir := l.e.sandboxDir("t")
	s := &Sandbox{e: l.e, spec: berth.SandboxSpec{ID: "t", Volumes: []berth.Volume{{Path: "/a", CopyUp: true}, {Path: "/b", CopyUp: true}, {Path: "/c"}}}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.makeArea(t.Context(), dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.area.Close() })
	put := func(i int, name string) string {
		p, err := s.area.Volume(scratch.VolumeName(i, s.spec.Volumes[i].Path))
		if err != nil {
			t.Fatal(err)
		}
		p = filepath.Join(p, name)
		if err := os.WriteFile(p, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	staged := put(1, "staged")
	if err := s.emptyAgain(); err != nil {
		t.Fatal(err)
	}
	partly, plain := put(0, "partly"), put(2, "plain")
	if err := s.emptyAgain(); err != nil {
		t.Fatal(err)
	}
	for p, want := range map[string]bool{staged: true, partly: false, plain: true} {
		if exists(p) != want {
			t.Errorf("%s is there: %v", filepath.Base(p), !want)
		}
	}
}
