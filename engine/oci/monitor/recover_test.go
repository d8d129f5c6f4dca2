package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/cgroup"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/scratch"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// earlier makes what an earlier monitor left of a sandbox with a file of its container.
func earlier(t *testing.T, m *Monitor, id string) (file string) {
	t.Helper()
	m.state = filepath.Join(m.cfg.Dir, "state")
	if err := os.MkdirAll(m.sandboxDir(id), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(m.cfg.Dir, sandboxesDir), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := writeJSON(filepath.Join(m.sandboxDir(id), sandboxFile), record{Spec: berth.SandboxSpec{ID: id}}); err != nil {
		t.Fatal(err)
	}
	if _, err := scratch.Open(t.Context(), m.scratchDir(id), scratch.Config{}); err != nil {
		t.Fatal(err)
	}
	file = filepath.Join(m.scratchDir(id), "log-s1.stdout")
	if err := os.WriteFile(file, []byte("what it said"), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// spoil makes an area one that cannot be opened for the moment.
func spoil(t *testing.T, m *Monitor, id string) (mend func()) {
	t.Helper()
	path := filepath.Join(m.scratchDir(id), "scratch.json")
	if err := os.WriteFile(path, []byte(`{"version":999}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := scratch.Reopen(t.Context(), m.scratchDir(id), nil); err == nil {
		t.Fatal("the area can be opened")
	}
	return func() {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// What a sandbox has is not removed because it could not be opened: it may be opened later, or removed by who
// wants that.
func TestSandboxThatCannotBeOpened(t *testing.T) {
	m := testMonitor(t)
	stays, goes, stray := earlier(t, m, "stays"), earlier(t, m, "goes"), earlier(t, m, "stray")
	mend := spoil(t, m, "stays")
	spoil(t, m, "goes")
	if err := os.RemoveAll(m.sandboxDir("stray")); err != nil {
		t.Fatal(err)
	}
	if err := m.reopenAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !isThere(stays) || !isThere(goes) || isThere(stray) {
		t.Fatalf("there is: %t, %t; what has no records: %t", isThere(stays), isThere(goes), isThere(stray))
	}
	if l := m.statuses(); len(l) != 2 {
		t.Errorf("listed: %+v", l)
	}
	if _, err := m.find(t.Context(), "stays"); !errors.Is(err, berth.ErrUnavailable) {
		t.Errorf("find: %v", err)
	}
	if _, err := m.openSandbox(t.Context(), berth.SandboxSpec{ID: "stays"}); !errors.Is(err, berth.ErrUnavailable) || !isThere(stays) {
		t.Errorf("open: %v, its file is there: %t", err, isThere(stays))
	}
	mend()
	if sb, err := m.find(t.Context(), "stays"); err != nil || sb.id != "stays" || !isThere(stays) {
		t.Errorf("find what was mended: %v", err)
	}
	if err := m.drop(t.Context(), "goes"); err != nil || isThere(m.scratchDir("goes")) || isThere(m.sandboxDir("goes")) {
		t.Errorf("drop: %v", err)
	}
	if _, err := m.find(t.Context(), "goes"); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("find what was dropped: %v", err)
	}
}

// A sandbox that cannot be made because something of its name is there leaves that alone.
func TestMakeRemovesItsOwnOnly(t *testing.T) {
	m := testMonitor(t)
	file := earlier(t, m, "s")
	given := t.TempDir()
	_, err := m.openSandbox(t.Context(), berth.SandboxSpec{ID: "s", Scratch: []string{given}})
	if err == nil || !isThere(file) || !isThere(filepath.Join(m.sandboxDir("s"), sandboxFile)) || !isThere(given) {
		t.Errorf("%v; there are: %t, %t, %t", err, isThere(file), isThere(m.sandboxDir("s")), isThere(given))
	}
}

// A record that cannot be read just now is none that was never written.
func TestUnwritten(t *testing.T) {
	dir := t.TempDir()
	var v record
	for name, want := range map[string]bool{"missing": true, "empty": true, "cut": true, "whole": false, "dir": false} {
		path := filepath.Join(dir, name)
		var err error
		switch name {
		case "dir":
			err = os.Mkdir(path, 0o700) // reading it is an error of the system
		case "missing":
		default:
			err = os.WriteFile(path, []byte(map[string]string{"cut": `{"sp`, "whole": "{}"}[name]), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if got := unwritten(readJSON(path, &v)); got != want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// workersLeave has the monitor's workers each leave a file of the task's name in the directory that it returns.
func workersLeave(t *testing.T, m *Monitor) (dir string) {
	dir = t.TempDir()
	m.cfg.Worker = []string{"sh", "-c", `: >"$0/$1"`, dir}
	return dir
}

func awaitFile(t *testing.T, name string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !isThere(name); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s does not come", name)
		}
	}
}

// What an earlier monitor lost is gone on with by workers, where nobody else comes for it.
func TestLostIsGoneOnWith(t *testing.T) {
	m := testMonitor(t)
	left := workersLeave(t, m)
	resume := map[string]string{LabelResume: "1"}
	specs := []berth.SandboxSpec{
		{ID: "lost", Labels: resume},
		{ID: "recorded-as-lost", Labels: resume},
		{ID: "ended", Labels: resume},
		{ID: "never-started", Labels: resume},
		{ID: "without-label"},
		{ID: "bound", Labels: resume, Bound: true},
		{ID: "spoilt", Labels: resume},
	}
	exits := map[string]berth.Exit{"recorded-as-lost": {Reason: berth.Lost, Code: -1}, "ended": {Reason: berth.Exited}}
	for _, spec := range specs {
		earlier(t, m, spec.ID)
		write := func(name string, v any) {
			t.Helper()
			name = filepath.Join(m.sandboxDir(spec.ID), name)
			if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o700), writeJSON(name, v)); err != nil {
				t.Fatal(err)
			}
		}
		write(sandboxFile, record{Spec: spec})
		if spec.ID != "never-started" {
			write(containersDir+"/c/"+startFile, startHead{Step: berth.StepSpec{ID: "c"}})
		}
		if exit, ok := exits[spec.ID]; ok {
			write(containersDir+"/c/"+exitFile, exit)
		}
	}
	mend := spoil(t, m, "spoilt")
	if err := m.reopenAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.mu.Lock()
	all := m.list()
	m.mu.Unlock()
	var adrift []string
	for _, sb := range all {
		if sb.adrift() {
			adrift = append(adrift, sb.id)
		}
	}
	slices.Sort(adrift)
	if want := []string{"lost", "recorded-as-lost"}; !slices.Equal(adrift, want) || len(all) != len(specs)-1 {
		t.Errorf("adrift of %d: %v, want %v", len(all), adrift, want)
	}
	mend()
	if _, err := m.find(t.Context(), "spoilt"); err != nil {
		t.Fatal(err)
	}
	awaitFile(t, filepath.Join(left, "spoilt"))
	awaitFile(t, filepath.Join(left, "bound")) // its client does not come back, and it is closed
	if got := names(t, left); got != "bound spoilt" {
		t.Errorf("workers were started for %s", got)
	}
	m.wg.Wait()
}

// Steps of one ID that are started at once, and that all fail after they have made files, do not see each other's.
func TestFailedStartsAtOnce(t *testing.T) {
	m := testMonitor(t)
	m.cgroups = &cgroup.Host{}
	m.start = newStarters(m.cfg.Dir, m.cgroups)
	earlier(t, m, "s")
	if err := m.reopenAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	sb, err := m.find(t.Context(), "s")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(sb.dir, containersDir), 0o700); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(specs.Spec{
		Version: "1.0.2", Root: &specs.Root{Path: "/"}, Linux: &specs.Linux{},
		Process: &specs.Process{Args: []string{"true"}, Cwd: "/", Capabilities: &specs.LinuxCapabilities{}},
	})
	if err != nil {
		t.Fatal(err)
	}
	step := berth.StepSpec{ID: "c"}
	step.Image.Config.Volumes = []string{"/v"}
	req := &wire.Start{Step: step, Spec: raw, Layers: []string{filepath.Join(t.TempDir(), "no-such-layer")}, Runtime: "runc"}
	for range 50 {
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				_, err := sb.start(context.Background(), req)
				if err == nil || strings.Contains(err.Error(), "exists") || !strings.Contains(err.Error(), "volume /v of the image") {
					t.Errorf("start: %v", err)
				}
			})
		}
		all.Wait()
	}
	if left := names(t, filepath.Join(sb.dir, containersDir)); left != "" {
		t.Errorf("left: %s", left)
	}
	// What is there and was not made by the start stays.
	other := filepath.Join(sb.containerDir("c"), "other")
	if err := os.MkdirAll(other, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := sb.start(t.Context(), req); !errors.Is(err, os.ErrExist) || !isThere(other) {
		t.Errorf("%v, it is there: %t", err, isThere(other))
	}
}

// An exit is recorded on a disk that is full, and what was reserved for it is none.
func TestExitOnFullDisk(t *testing.T) {
	dir := t.TempDir()
	mountTmpfs(t, dir, "64k")
	c := &container{dir: dir}
	if err := c.reserveExit(); err != nil {
		t.Fatal(err)
	}
	var got berth.Exit
	if err := readJSON(filepath.Join(dir, exitFile), &got); !unwritten(err) {
		t.Errorf("what is reserved: %+v, %v", got, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "fill"), make([]byte, 1<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	want := berth.Exit{Reason: berth.Signaled, Code: 139, Signal: 11, Detail: "true"}
	if err := c.writeExit(want); err != nil {
		t.Fatal(err)
	}
	if err := readJSON(filepath.Join(dir, exitFile), &got); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("recorded: %+v, %v", got, err)
	}
	want.Detail = strings.Repeat("\x01é", 10000)
	if err := c.writeExit(want); err != nil {
		t.Fatal(err)
	}
	got = berth.Exit{}
	if err := readJSON(filepath.Join(dir, exitFile), &got); err != nil || got.Code != 139 || len(got.Detail) < 100 {
		t.Errorf("with a long detail: %+v, %v", got, err)
	}
	if err := (&container{dir: t.TempDir()}).writeExit(want); err != nil { // of a start by an older berth
		t.Error(err)
	}
}
