package direct

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/hook"
	"github.com/berth-project/berth/engine/oci/bundle"
)

// ownHookFile is a file that the starter takes for berth's program. Were it executed, the start would fail.
func ownHookFile(t *testing.T, s *Starter) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), ownHook)
	if err := os.WriteFile(file, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(err)
	}
	s.programs.own = map[programFile]bool{{file, st.Dev, st.Ino, st.Size, st.Ctim}: true}
	return file
}

// TestHookMountsOver: the file that a hook wants over the driver's parameters is there, and cannot be changed.
func TestHookMountsOver(t *testing.T) {
	s := testStarter(t)
	s.params = func() (string, []byte, bool, error) {
		return "/proc/loadavg", []byte("ModifyDeviceFiles: 0\n"), true, nil
	}
	h := specs.Hook{Path: ownHookFile(t, s), Args: []string{ownHook, "disable-device-node-modification", "++", "create-symlinks", "--link", "to::/made"}}
	hooks := func(b *bundle.Bundle) { b.Spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{h}} }
	got := run(t, s, "cat /proc/loadavg; readlink /made; grep ' /proc/loadavg ' /proc/self/mountinfo | cut -d' ' -f6; echo x 2>/dev/null >/proc/loadavg || echo refused", hooks)
	if want := "ModifyDeviceFiles: 0\nto\nro,nosuid,nodev,noexec,relatime\nrefused\n"; got.stdout != want {
		t.Errorf("%v\nwant %s", got, want)
	}
	// Where there is no procfs to mount it in, it is the program that says so; this one cannot.
	b := testBundle(t, testSpec(t, "/bin/true"))
	hooks(b)
	b.Spec.Mounts, b.Spec.Linux.MaskedPaths, b.Spec.Linux.ReadonlyPaths = nil, nil, nil
	if _, err := s.Start(t.Context(), b); err == nil || !strings.Contains(err.Error(), "exec format error") {
		t.Errorf("without a procfs: %v", err)
	}
	s.params = func() (string, []byte, bool, error) { return "", nil, false, errors.New("unreadable") }
	b = testBundle(t, testSpec(t, "/bin/true"))
	hooks(b)
	if _, err := s.Start(t.Context(), b); err == nil || !strings.Contains(err.Error(), "unreadable") {
		t.Errorf("unreadable parameters: %v", err)
	}
}

// TestInsideFails: as with a program, the start ends, and says which hook.
func TestInsideFails(t *testing.T) {
	s := testStarter(t)
	b := testBundle(t, testSpec(t, "/bin/true"))
	b.Spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: ownHookFile(t, s), Args: []string{ownHook, "create-symlinks", "--link", "nonsense"}}}}
	if _, err := s.Start(t.Context(), b); err == nil || !strings.Contains(err.Error(), "createContainer hook ") || !strings.Contains(err.Error(), "not TARGET::LINK") {
		t.Error(err)
	}
	if text := mountsOf(t); strings.Contains(text, b.Dir) {
		t.Errorf("mounts are left: %s", text)
	}
}

// TestInsideLeavesMounts: a file that the user has mounted where a hook puts another is not taken away, as it is not
// by the program.
func TestInsideLeavesMounts(t *testing.T) {
	s := testStarter(t)
	file := filepath.Join(t.TempDir(), "my.cache")
	if err := os.WriteFile(file, []byte("mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for at, fails := range map[string]bool{"/etc/my.cache": true, "/etc/another": false} {
		b := testBundle(t, testSpec(t, "/bin/cat", at))
		b.Spec.Mounts = append(b.Spec.Mounts, bindMount(file, at))
		b.Spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: ownHookFile(t, s), Args: []string{ownHook, "create-symlinks", "--link", "to::/etc/my.cache"}}}}
		got, err := runBundle(t, s, b)
		switch {
		case fails && (err == nil || !strings.Contains(err.Error(), "/etc/my.cache: something is mounted there")):
			t.Errorf("mounted in its place: %v, %v", got, err)
		case !fails && (err != nil || got.stdout != "mine\n"):
			t.Errorf("mounted beside: %v, %v", got, err)
		}
	}
}

// waits lets nobody go on before a context's end.
type waits struct{ ctx context.Context }

func (w waits) Write(b []byte) (int, error) {
	<-w.ctx.Done()
	return len(b), nil
}

// TestInsideTakesTooLong: a hook that is run inside has as long as its program has.
func TestInsideTakesTooLong(t *testing.T) {
	dir, second := t.TempDir(), 1
	if err := errors.Join(os.Mkdir(dir+"/etc", 0o755), os.WriteFile(dir+"/etc/ld.so.cache", []byte("nonsense"), 0o644)); err != nil {
		t.Fatal(err)
	}
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	h := hookOf{"createContainer", &specs.Hook{Timeout: &second, Args: []string{ownHook, "update-ldcache", "--folder", "/driver"}}}
	late, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	in := hook.Inside{Root: root, Log: waits{late}}
	if err := h.runInside(t.Context(), &in); err == nil || !strings.Contains(err.Error(), "it took longer than 1s") {
		t.Error(err)
	}
}

// TestLikeness: where a mount's place may depend on what is in a directory that is mounted, nothing is known of it.
func TestLikeness(t *testing.T) {
	dir := func(at string) specs.Mount { return bindMount(t.TempDir(), at) }
	for name, tt := range map[string]struct {
		mounts []specs.Mount
		known  bool
	}{
		"beside each other":    {[]specs.Mount{dir("/data"), dir("/data2")}, true},
		"below a directory":    {[]specs.Mount{dir("/data"), dir("/data/l/x")}, false},
		"before the directory": {[]specs.Mount{dir("/data/l"), dir("/data")}, true},
		"below a file system":  {[]specs.Mount{{Type: "tmpfs", Destination: "/dev"}, dir("/dev/x")}, true},
	} {
		p := plan{bundle: &bundle.Bundle{Like: "image"}, spec: &specs.Spec{Mounts: tt.mounts, Hooks: &specs.Hooks{}}, sources: map[int]*unix.Stat_t{}}
		for i, m := range tt.mounts {
			if m.Type == "bind" {
				p.sources[i] = &unix.Stat_t{Mode: unix.S_IFDIR}
			}
		}
		if got := p.likeness(); (got != "") != tt.known {
			t.Errorf("%s: %q", name, got)
		}
	}
}

// TestInsideIsForOwnHooks: what else there is in a spec is run as programs are, all of it.
func TestInsideIsForOwnHooks(t *testing.T) {
	s := testStarter(t)
	own := ownHookFile(t, s)
	script := filepath.Join(t.TempDir(), ownHook)
	if err := os.WriteFile(script, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	links := func(path string) specs.Hook {
		return specs.Hook{Path: path, Args: []string{ownHook, "create-symlinks", "--link", "a::/b"}}
	}
	for name, tt := range map[string]struct {
		hooks specs.Hooks
		want  bool
	}{
		"own":                 {specs.Hooks{CreateContainer: []specs.Hook{links(own), links(own)}}, true},
		"of the name":         {specs.Hooks{CreateContainer: []specs.Hook{links(script)}}, false},
		"another beside it":   {specs.Hooks{CreateContainer: []specs.Hook{links(own), links("/bin/true")}}, false},
		"of an earlier stage": {specs.Hooks{CreateRuntime: []specs.Hook{links("/bin/true")}, CreateContainer: []specs.Hook{links(own)}}, false},
		"unknown":             {specs.Hooks{CreateContainer: []specs.Hook{{Path: own, Args: []string{ownHook, "new-hook"}}}}, false},
		"none named":          {specs.Hooks{CreateContainer: []specs.Hook{{Path: own}}}, false},
		"not there":           {specs.Hooks{CreateContainer: []specs.Hook{links("/nowhere/" + ownHook)}}, false},
	} {
		if got := s.canInside(&specs.Spec{Hooks: &tt.hooks}); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// TestManyBinds: mounts that are cloned beside the way come in their order, and lie upon what is below them.
func TestManyBinds(t *testing.T) {
	s := testStarter(t)
	src := t.TempDir()
	text := func(name, text string) string {
		file := filepath.Join(src, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text+"\n"), 0o644)); err != nil {
			t.Fatal(err)
		}
		return file
	}
	mounts := func(b *bundle.Bundle) {
		for i := range manyBinds {
			b.Spec.Mounts = append(b.Spec.Mounts, bindMount(text(fmt.Sprint(i), fmt.Sprint("file ", i)), fmt.Sprintf("/lib/sub/f%d", i)))
		}
	}
	got := run(t, s, "cat /lib/sub/*", mounts)
	if want := "file 0\nfile 1\nfile 2\nfile 3\nfile 4\nfile 5\nfile 6\nfile 7\n"; got.stdout != want {
		t.Errorf("%v", got)
	}
	text("over/kept", "kept")
	got = run(t, s, "cat /lib/sub/*; echo; cat /lib/*", func(b *bundle.Bundle) {
		mounts(b)
		b.Spec.Mounts = append(b.Spec.Mounts, bindMount(src+"/over", "/lib/sub"), bindMount(text("late", "late"), "/lib/sub/late"))
	})
	if want := "kept\nlate\n"; !strings.HasPrefix(got.stdout, want) {
		t.Errorf("upon a directory that lies over the others: %v", got)
	}
	before := openFiles(t)
	b := testBundle(t, testSpec(t, "/bin/true"))
	mounts(b)
	b.Spec.Mounts = append(b.Spec.Mounts, bindMount(src+"/missing", "/x"), bindMount(src, "/y"))
	if _, err := s.Start(t.Context(), b); !errors.Is(err, berth.ErrNotFound) || !strings.Contains(err.Error(), "mount /x: source "+src+"/missing") {
		t.Error(err)
	}
	if after := openFiles(t); after > before {
		t.Errorf("%d descriptors are open, and were %d", after, before)
	}
}

func openFiles(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
