package trampoline

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func TestTrampoline(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		return p
	}
	denied := write("denied", "#!/bin/sh\n", 0o644)
	odd := write("odd", "neither ELF nor script\n", 0o755)
	script := write("script", "#!/bin/sh\n[ -e /proc/$$/fd/3 ] && X=leak\necho \"$@\" $X\n", 0o755)
	tests := []struct {
		name       string
		candidates []string
		args       []string
		out        string
		errno      syscall.Errno
	}{
		{"found at once", []string{"/bin/echo"}, []string{"echo", "a", "", "b"}, "a  b\n", 0},
		{"found at last", []string{"/nowhere/echo", denied, dir + "/script/x", "/bin/echo"}, []string{"echo", "a"}, "a\n", 0},
		{"script, its environment, and no descriptor too many", []string{script}, []string{"script", "a"}, "a x\n", 0},
		{"not there", []string{"/nowhere/a", "/nowhere/b"}, []string{"a"}, "", unix.ENOENT},
		{"not there, in what is no directory", []string{script + "/a"}, []string{"a"}, "", unix.ENOENT},
		{"not to be executed stays", []string{denied, "/nowhere/a"}, []string{"a"}, "", unix.EACCES},
		{"no program", []string{"/nowhere/a", odd, denied}, []string{"a"}, "", unix.ENOEXEC},
	}
	f, err := Memfd()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			cmd := exec.Command(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
			cmd.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
			cmd.Args = append(append(append([]string{}, tt.candidates...), ""), tt.args...)
			cmd.Env = []string{"X=x", "PATH=/bin:/usr/bin"}
			cmd.ExtraFiles = []*os.File{w}
			out, err := cmd.Output()
			_ = w.Close()
			report, rerr := io.ReadAll(r)
			if rerr != nil {
				t.Fatal(rerr)
			}
			var errno syscall.Errno
			if len(report) == 4 {
				errno = syscall.Errno(binary.NativeEndian.Uint32(report))
			}
			var exit *exec.ExitError
			if failed := errors.As(err, &exit); string(out) != tt.out || errno != tt.errno || failed != (tt.errno != 0) {
				t.Errorf("got %q, %v, %v; want %q, %v", out, errno, err, tt.out, tt.errno)
			}
			if exit != nil && exit.ExitCode() != 127 {
				t.Errorf("exit code %d, want 127", exit.ExitCode())
			}
		})
	}
}

func TestSealed(t *testing.T) {
	f, err := Memfd()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("write: %v, want EPERM", err)
	}
}
