package inroot

import (
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// hostile is a root full of links that lead out of it, beside a directory that must stay as it is.
func hostile(t *testing.T) (r *Root, outside string) {
	t.Helper()
	top := t.TempDir()
	outside = filepath.Join(top, "outside")
	root := filepath.Join(top, "root")
	for _, dir := range []string{outside, filepath.Join(root, "etc"), filepath.Join(root, "real"), filepath.Join(root, outside)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, target := range map[string]string{
		"abs": outside, "rel": "../outside", "up": "../../../../../..", "dir": "/real", "nowhere": "/missing", "self": "self",
		"file": filepath.Join(outside, "victim"), "proc": "/proc/self/root",
	} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(outside, "victim"), []byte("whole"), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Close()
		entries, _ := os.ReadDir(outside)
		if data, err := os.ReadFile(filepath.Join(outside, "victim")); len(entries) != 1 || string(data) != "whole" {
			t.Errorf("outside was changed: %v, %q, %v", entries, data, err)
		}
	})
	return r, outside
}

func TestWriteStaysInside(t *testing.T) {
	for _, c := range []struct{ name, lands string }{ // lands: where the file is, "" where that must fail
		{"/plain", "plain"},
		{"new/dir/f", "new/dir/f"},
		{"dir/f", "real/f"},
		{"/up/f", "f"},
		{"../../f", "f"},
		{"file", "file"}, // the link itself is replaced
		{"abs/victim", "OUTSIDE/victim"},
		{"rel/victim", "outside/victim"},
		{"nowhere/f", ""},
		{"self/f", ""},
		{"plain2/../f", "f"},
		{"/", ""},
		{"etc", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, outside := hostile(t)
			err := r.WriteFile(c.name, []byte("new"), 0o640)
			if c.lands == "" {
				if err == nil {
					t.Error("no error")
				}
				return
			}
			if c.name == "rel/victim" { // ../outside in the root is /outside, which is not there
				if err == nil {
					t.Error("no error")
				}
				return
			}
			lands := filepath.Join(r.Name(), strings.Replace(c.lands, "OUTSIDE", outside, 1))
			data, rerr := os.ReadFile(lands)
			st, _ := os.Lstat(lands)
			if err != nil || string(data) != "new" || st.Mode() != 0o640 {
				t.Errorf("%v; %q, %v, %v", err, data, rerr, st)
			}
			if got, err := r.ReadFile(c.name, 3); err != nil || string(got) != "new" {
				t.Errorf("read back %q, %v", got, err)
			}
		})
	}
}

func TestReadRefuses(t *testing.T) {
	r, _ := hostile(t)
	if err := unix.Mkfifo(filepath.Join(r.Name(), "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteFile("big", make([]byte, 10), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pipe", "etc", "big", "file", "proc/etc/passwd", "self", ""} {
		if data, err := r.ReadFile(name, 9); err == nil {
			t.Errorf("%q: read %q", name, data)
		}
	}
}

func TestSymlinkResolveReadlink(t *testing.T) {
	r, _ := hostile(t)
	if err := r.Symlink("../../../etc/passwd", "up/usr/lib/x"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Readlink("usr/lib/x"); err != nil || got != "../../../etc/passwd" {
		t.Errorf("%q, %v", got, err)
	}
	for name, want := range map[string]string{"dir": "/real", "up/dir/../etc": "/etc", "/": "/", "": "/"} {
		if got, err := r.Resolve(name); err != nil || got != want {
			t.Errorf("resolve %q: %q, %v; want %q", name, got, err, want)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(r.Name(), "usr/lib/.berth-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestUnderAttack writes while a directory on the way is exchanged for a link out of the root, over and over.
func TestUnderAttack(t *testing.T) {
	r, outside := hostile(t)
	a, b := filepath.Join(r.Name(), "etc"), filepath.Join(r.Name(), "evil")
	if err := os.Symlink("../outside", b); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE)
			}
		}
	}()
	written := 0
	for range 2000 {
		if r.WriteFile("etc/victim", []byte("new"), 0o644) == nil {
			written++
		}
	}
	close(done)
	<-ended
	if written == 0 {
		t.Error("nothing was ever written; the test saw nothing")
	}
	if data, _ := os.ReadFile(filepath.Join(outside, "victim")); string(data) != "whole" {
		t.Errorf("a file outside was written: %q", data)
	}
}

// TestLooksBeforeItOpens has the kernel tell of every open of what is no regular file.
func TestLooksBeforeItOpens(t *testing.T) {
	r, _ := hostile(t)
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	for name, mode := range map[string]uint32{"pipe": unix.S_IFIFO, "null": unix.S_IFCHR} {
		path := filepath.Join(r.Name(), name)
		if err := unix.Mknod(path, mode|0o600, int(unix.Mkdev(1, 3))); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.InotifyAddWatch(fd, path, unix.IN_OPEN); err != nil {
			t.Fatal(err)
		}
		if f, err := r.OpenRegular(name); err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("%s: %v, %v", name, f, err)
		}
		var buf [4096]byte
		if n, err := unix.Read(fd, buf[:]); n > 0 || err != unix.EAGAIN {
			t.Errorf("%s was opened (%d bytes, %v)", name, n, err)
		}
	}
	f, err := r.OpenRegular("dir/../etc/../plain")
	if err == nil {
		t.Error(f.Name())
	}
	if err := r.WriteFile("plain", []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	if data, err := r.ReadFile("plain", 10); err != nil || string(data) != "text" {
		t.Errorf("%q, %v", data, err)
	}
}

func TestReadSome(t *testing.T) {
	r, _ := hostile(t)
	for _, name := range []string{"real/b", "real/a", "real/c"} {
		if err := r.WriteFile(name, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := r.ReadSome("dir", 3)
	if err != nil || len(entries) != 3 || entries[0].Name() != "a" || entries[2].Name() != "c" {
		t.Error(entries, err)
	}
	if entries, err := r.ReadSome("dir", 2); err == nil || !strings.Contains(err.Error(), "more than 2 entries") {
		t.Error(entries, err)
	}
	if entries, err := r.ReadSome("abs", 0); err != nil || len(entries) != 0 {
		t.Error(entries, err)
	}
}

// TestAlone: where nobody looks, a new file is written in its place, and what is there is replaced as ever.
func TestAlone(t *testing.T) {
	mask := unix.Umask(0o077)
	defer unix.Umask(mask)
	for name, alone := range map[string]bool{"alone": true, "among others": false} {
		t.Run(name, func(t *testing.T) {
			r, _ := hostile(t)
			if alone {
				r.Alone()
			}
			fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(fd)
			if _, err := unix.InotifyAddWatch(fd, r.Name(), unix.IN_MOVED_TO); err != nil {
				t.Fatal(err)
			}
			for _, file := range []struct {
				name, text string
				perm       uint32
				moved      bool
			}{
				{"new", "text", 0o644, !alone},
				{"shut", "", 0o444, !alone},
				{"new", "another", 0o640, true},
				{"file", "not outside", 0o644, true}, // a link that leads out
				{"nowhere", "nor this", 0o644, true},
			} {
				if err := r.WriteFile(file.name, []byte(file.text), file.perm); err != nil {
					t.Fatal(err)
				}
				st, err := r.Lstat(file.name)
				if data, rerr := r.ReadFile(file.name, 100); err != nil || rerr != nil || string(data) != file.text || st.Mode != unix.S_IFREG|file.perm {
					t.Errorf("%s: %q, mode %o, %v, %v", file.name, data, st.Mode, err, rerr)
				}
				var buf [4096]byte
				if n, _ := unix.Read(fd, buf[:]); n > 0 != file.moved {
					t.Errorf("%s was moved there: %v", file.name, n > 0)
				}
			}
			if left, _ := filepath.Glob(filepath.Join(r.Name(), ".berth-*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestAloneLeavesNoHalf: a file that could not be written is not there.
func TestAloneLeavesNoHalf(t *testing.T) {
	r, _ := hostile(t)
	r.Alone()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	signal.Ignore(unix.SIGXFSZ)
	defer signal.Reset(unix.SIGXFSZ)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: 10, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	err := r.WriteFile("etc/half", []byte("more than ten bytes"), 0o644)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err == nil {
		t.Error("it was written whole")
	}
	if entries, err := os.ReadDir(filepath.Join(r.Name(), "etc")); err != nil || len(entries) > 0 {
		t.Error(entries, err)
	}
}
