package monitor

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/wire"
)

// spare waits until there is a directory.
func spare(t *testing.T, s *spares) string {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if dir := s.get(); dir != "" {
			return dir
		}
	}
	t.Fatal("there is no spare directory after 10 s")
	return ""
}

func TestSpares(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "spare")
	if err := os.MkdirAll(filepath.Join(dir, "of an earlier monitor", "upper"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := newSpares(dir, filepath.Dir(dir))
	if err != nil {
		t.Fatal(err)
	}
	if isThere(dir) {
		t.Error("there is a directory before one was asked for")
	}
	first, second := spare(t, s), spare(t, s)
	for _, d := range []string{first, second} {
		for name, mode := range map[string]os.FileMode{"": 0o700, spareUpper: 0o755, spareWork: 0o755} {
			st, err := os.Stat(filepath.Join(d, name))
			if err != nil || st.Mode() != os.ModeDir|mode {
				t.Errorf("%s of %s: %v, %v", name, d, st, err)
			}
		}
	}
	if first == second {
		t.Errorf("%s twice", first)
	}
	seen := map[string]int{filepath.Dir(first): 1}
	seen[filepath.Dir(second)]++
	for range 3*maxPlaces - 2 {
		seen[filepath.Dir(spare(t, s))]++
	}
	for place, n := range seen {
		if n < 2 || n > 4 { // one or two wait
			t.Errorf("%d of %d in %s", n, 3*maxPlaces, place)
		}
	}
	if len(seen) != maxPlaces {
		t.Errorf("they were made in %d places", len(seen))
	}
	if err := s.close(); err != nil || isThere(dir) {
		t.Errorf("close: %v; there is still a directory: %t", err, isThere(dir))
	}
	// On another disk there is nothing to be moved. What cannot be made leaves nothing.
	for name, areas := range map[string]string{"of another disk": "/proc", "none": filepath.Join(dir, "none")} {
		s := &spares{dir: dir, areas: areas}
		for range 3 {
			if dir, ok := s.make(); ok {
				t.Errorf("%s: %s", name, dir)
			}
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: there is left %v, %v", name, left, err)
		}
	}
}

// The first container of a sandbox has what lies ready for it, each other one makes its own.
func TestDirsOfASpare(t *testing.T) {
	m := testMonitor(t)
	earlier(t, m, "s")
	sb, err := m.find(t.Context(), "s")
	if err != nil {
		if err := m.reopenAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if sb, err = m.find(t.Context(), "s"); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{spareUpper, spareWork} {
		if err := os.Mkdir(filepath.Join(sb.area.Dir(), name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(sb.dir, containersDir), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"a", "b"} {
		l := &launch{c: sb.newContainer(id, berth.StepSpec{ID: id}), req: &wire.Start{}}
		if err := l.makeDirs(); err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{l.c.dir, l.c.upper(), l.c.work()} {
			if !isThere(d) {
				t.Errorf("%s is not there", d)
			}
		}
		if isThere(filepath.Join(sb.area.Dir(), spareUpper)) || isThere(filepath.Join(sb.area.Dir(), spareWork)) {
			t.Error("what lay ready is still there")
		}
		// Again, as if its record had been lost: what is there is somebody's.
		if err := l.makeDirs(); !os.IsExist(err) {
			t.Errorf("again: %v", err)
		}
	}
	// A monitor that was killed before it wrote the intent of a container leaves nothing of it to the next.
	var dirs []string
	for _, id := range []string{"a", "b"} {
		c := sb.newContainer(id, berth.StepSpec{ID: id})
		dirs = append(dirs, c.dir, c.upper(), c.work())
	}
	if err := sb.recoverContainers(); err != nil {
		t.Fatal(err)
	}
	for _, d := range dirs {
		if isThere(d) {
			t.Errorf("%s is still there", d)
		}
	}
}

func TestWriteFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	if err := writeFile(name, []byte("longer than the next"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := writeFlags(name, []byte("LONG"), 0, 0o600); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(name); err != nil || string(raw) != "LONGer than the next" {
		t.Errorf("%q, %v", raw, err)
	}
	if err := writeFile(name, []byte("short"), 0o600); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(name); err != nil || string(raw) != "short" {
		t.Errorf("%q, %v", raw, err)
	}
	if err := writeFile(filepath.Join(name, "f"), nil, 0o600); err == nil {
		t.Error("a file below a file")
	}
	if _, err := os.Stat("/dev/full"); err == nil {
		if err := writeFlags("/dev/full", []byte("x"), 0, 0o600); err == nil {
			t.Error("a full device took it")
		}
	}
}
