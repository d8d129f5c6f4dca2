package inroot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// elsewhere is a directory as a mount namespace of its own shows it, in which files and directories are mounted: what they
// are on the host, by their names in the directory.
func elsewhere(t *testing.T, dir string, mounts map[string]string) *Root {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts")
	}
	var f *os.File
	ready, done, ended := make(chan error), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread() // and never unlocked: the thread ends, and its namespace with it
		err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		for name, from := range mounts {
			err = errors.Join(err, unix.Mount(from, filepath.Join(dir, name), "", unix.MS_BIND, ""))
		}
		if err == nil {
			f, err = os.Open(dir)
		}
		ready <- err
		<-done
	}()
	t.Cleanup(func() { close(done); <-ended })
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r, err := At(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// TestMountsStay: in another mount namespace the kernel would let a rename take a mount away.
func TestMountsStay(t *testing.T) {
	for _, alone := range []bool{true, false} {
		for name, write := range map[string]func(*Root, string) error{
			"file": func(r *Root, name string) error { return r.WriteFile(name, []byte("new"), 0o644) },
			"link": func(r *Root, name string) error { return r.Symlink("new", name) },
		} {
			t.Run(fmt.Sprintf("%s, alone %t", name, alone), func(t *testing.T) {
				plain, outside := hostile(t)
				for _, name := range []string{"etc/cache", "etc/other"} {
					if err := plain.WriteFile(name, []byte("the image's"), 0o644); err != nil {
						t.Fatal(err)
					}
				}
				r := elsewhere(t, plain.Name(), map[string]string{"etc/cache": filepath.Join(outside, "victim")})
				if alone {
					r.Alone()
				}
				err := write(r, "etc/cache")
				if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "/etc/cache: something is mounted there") {
					t.Errorf("error %v", err)
				}
				if data, err := r.ReadFile("etc/cache", 100); err != nil || string(data) != "whole" {
					t.Errorf("what was mounted is %q, %v", data, err)
				}
				if err := write(r, "etc/other"); err != nil {
					t.Error(err)
				}
				if st, err := plain.Lstat("etc/other"); err != nil || st.Size != int64(len("new")) {
					t.Errorf("what is beside it has %d bytes, %v", st.Size, err)
				}
				if left, _ := filepath.Glob(filepath.Join(plain.Name(), "etc/.berth-*")); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			})
		}
	}
}

// TestNotMounted: what cannot be looked at may be a mount.
func TestNotMounted(t *testing.T) {
	plain, _ := hostile(t)
	if err := notMounted(int(plain.dir.Fd()), "not there"); err != nil {
		t.Error(err)
	}
	if err := notMounted(int(plain.dir.Fd()), "etc"); err != nil {
		t.Error(err)
	}
	for name, want := range map[string]error{strings.Repeat("x", 300): unix.ENAMETOOLONG, "etc/a\x00": unix.EINVAL} {
		if err := notMounted(int(plain.dir.Fd()), name); !errors.Is(err, want) {
			t.Errorf("%.5q: %v, want %v", name, err, want)
		}
	}
}

// TestAloneNotInMounts: what is mounted may be seen by others, who see no file half.
func TestAloneNotInMounts(t *testing.T) {
	plain, _ := hostile(t)
	volume := t.TempDir()
	r := elsewhere(t, plain.Name(), map[string]string{"real": volume})
	r.Alone()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, volume, unix.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	if err := r.WriteFile("dir/sub", []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	var buf [4096]byte
	n, _ := unix.Read(fd, buf[:])
	if data, err := os.ReadFile(filepath.Join(volume, "sub")); n <= 0 || string(data) != "text" {
		t.Errorf("%q, %v; it was moved there: %v", data, err, n > 0)
	}
}
