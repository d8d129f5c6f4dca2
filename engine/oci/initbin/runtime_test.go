package initbin_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/engine/oci/initbin"
)

// TestUnderRunc runs init as a file bound into a container that runc made.
func TestUnderRunc(t *testing.T) {
	needsRoot(t)
	for _, c := range []struct {
		name, script, want string
		code               int
	}{
		{"exit code", "exit 7", "", 7},
		{"pid 1", `tr "\0" " " </proc/1/cmdline; echo; [ $$ -gt 1 ] && echo child`, "/.init sh -c tr \"\\0\" \" \" </proc/1/cmdline; echo; [ $$ -gt 1 ] && echo child \nchild\n", 0},
		{"hidden", "readlink /proc/1/exe || echo no; ls /proc/1/fd; (cat /proc/1/environ || cat /proc/1/mem) 2>&1", "no\ncat: can't open '/proc/1/environ': Permission denied\ncat: can't open '/proc/1/mem': Permission denied\n", 1},
		{"not to be written", "(echo x >/.init) 2>&1; echo $?", "sh: can't create /.init: Read-only file system\n1\n", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			out, code := runc(t, "sh", "-c", c.script)
			if code != c.code || out != c.want {
				t.Errorf("exit code %d, output %q; want %d, %q", code, out, c.code, c.want)
			}
		})
	}
}

// runc runs a command under init in a container of busybox.
func runc(t *testing.T, args ...string) (out string, code int) {
	t.Helper()
	dir := t.TempDir()
	rootfs := filepath.Join(dir, "rootfs")
	for _, d := range []string{"bin", "proc", "dev", "sys"} {
		if err := os.MkdirAll(filepath.Join(rootfs, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("install busybox-static: %v", err)
	}
	if err := os.WriteFile(filepath.Join(rootfs, "bin/busybox"), busybox, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"sh", "ls", "tr", "readlink", "echo", "cat"} {
		if err := os.Symlink("busybox", filepath.Join(rootfs, "bin", a)); err != nil {
			t.Fatal(err)
		}
	}
	image := filepath.Join(dir, "init")
	if err := os.WriteFile(image, initbin.ELF(), 0o555); err != nil {
		t.Fatal(err)
	}
	spec := exec.CommandContext(t.Context(), "runc", "spec")
	spec.Dir = dir
	if b, err := spec.CombinedOutput(); err != nil {
		t.Fatalf("install runc: %v: %s", err, b)
	}
	var s specs.Spec
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &s); err != nil {
		t.Fatal(err)
	}
	s.Process.Terminal = false
	// A runtime looks up the first argument: it has to be the path.
	s.Process.Args = append([]string{"/.init"}, args...)
	s.Root.Readonly = false
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/.init", Source: image, Type: "bind", Options: []string{"bind", "ro", "nosuid", "nodev"}})
	if b, err = json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), b, 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "runc", "--root", filepath.Join(dir, "state"), "run", "-b", dir, fmt.Sprintf("initbin-%d-%s", os.Getpid(), filepath.Base(dir)+"-"+filepath.Base(filepath.Dir(dir))))
	var buf bytes.Buffer
	cmd.Stdout, cmd.Stderr = &buf, &buf
	err = cmd.Run()
	if e := (*exec.ExitError)(nil); err != nil && !errors.As(err, &e) {
		t.Fatal(err)
	}
	return buf.String(), cmd.ProcessState.ExitCode()
}

// TestARM64 runs the other architecture's image in an emulator. It does not emulate the shared memory of
// clone(CLONE_VFORK), so that a command that cannot be executed is reported as one that exits with 127.
func TestARM64(t *testing.T) {
	qemu, err := exec.LookPath("qemu-aarch64-static")
	if err != nil {
		t.Fatalf("install qemu-user-static: %v", err)
	}
	dir := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "dump"), "./testdata/dump")
	build.Env = append(os.Environ(), "GOARCH=arm64", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	image, err := exec.CommandContext(t.Context(), qemu, filepath.Join(dir, "dump")).Output()
	if err != nil {
		t.Fatal(err)
	}
	if len(image) > 4096 {
		t.Errorf("the image has %d bytes; it should fit into a page", len(image))
	}
	file := filepath.Join(dir, "init")
	if err := os.WriteFile(file, image, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name    string
		env     []string
		args    []string
		code    int
		out     string
		records []initbin.Record
	}{
		{"exit code", nil, []string{"sh", "-c", "exit 7"}, 7, "", []initbin.Record{{initbin.Executed, 0}, {initbin.Ended, 7 << 8}}},
		{"signal", nil, []string{"sh", "-c", "kill -TERM $$"}, 143, "", []initbin.Record{{initbin.Executed, 0}, {initbin.Ended, 15}}},
		{"output and arguments", nil, []string{"printf", "%s|", "a b", "", "c"}, 0, "a b||c|", []initbin.Record{{initbin.Executed, 0}, {initbin.Ended, 0}}},
		{"reaps", nil, []string{"sh", "-c", `for i in 1 2 3 4 5 6; do sh -c "(sleep 0.02) & exit 0"; done; sleep 0.5; ps --ppid $PPID -o stat= | grep -c Z`}, 1, "0\n", []initbin.Record{{initbin.Executed, 0}, {initbin.Ended, 1 << 8}}},
		{"default PATH", []string{"X=1"}, []string{"env"}, 0, "X=1\n", []initbin.Record{{initbin.Executed, 0}, {initbin.Ended, 0}}},
		{"PATH", []string{"PATH=/none::/usr/bin:/bin"}, []string{"sh", "-c", "echo $PATH"}, 0, "/none::/usr/bin:/bin\n", []initbin.Record{{initbin.Executed, 0}, {initbin.Ended, 0}}},
		{"not there", nil, []string{"no-such-command"}, 127, "", []initbin.Record{{initbin.Executed, 0}, {initbin.Ended, 127 << 8}}},
		{"cannot be executed", nil, []string{"/etc/passwd"}, 126, "", []initbin.Record{{initbin.Executed, 0}, {initbin.Ended, 126 << 8}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			cmd := exec.CommandContext(t.Context(), qemu, append([]string{file}, c.args...)...)
			var out strings.Builder
			cmd.Stdout, cmd.Env, cmd.ExtraFiles = &out, c.env, []*os.File{w}
			err = cmd.Run()
			if e := (*exec.ExitError)(nil); err != nil && !errors.As(err, &e) {
				t.Fatal(err)
			}
			w.Close()
			p := &process{t: t, report: r}
			got := p.records()
			for i := range got {
				if got[i].Kind == initbin.Executed {
					got[i].Value = 0
				}
			}
			if code := cmd.ProcessState.ExitCode(); code != c.code || out.String() != c.out || !reflect.DeepEqual(got, c.records) {
				t.Errorf("exit code %d, output %q, records %+v; want %d, %q, %+v", code, out.String(), got, c.code, c.out, c.records)
			}
		})
	}
}
