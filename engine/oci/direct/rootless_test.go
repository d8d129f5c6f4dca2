package direct

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// rootless starts the container whose spec is in dir, with this process's streams.
func rootless(dir string) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, "error:", err)
		return 100
	}
	data, err := os.ReadFile(dir + "/config.json")
	if err != nil {
		return fail(err)
	}
	var sp specs.Spec
	if err := json.Unmarshal(data, &sp); err != nil {
		return fail(err)
	}
	s, err := New(Config{})
	if err != nil {
		return fail(err)
	}
	b := &bundle.Bundle{
		Dir: dir, Spec: &sp, Init: true, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Root: bundle.Root{Layers: []string{sp.Root.Path}, Upper: dir + "/u", Work: dir + "/w", Volatile: true, UserXattr: true},
	}
	for _, d := range []string{b.Root.Upper, b.Root.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return fail(err)
		}
	}
	// Pipes of its own: those of the test belong to somebody whom it cannot change.
	var copied sync.WaitGroup
	for _, f := range []struct {
		stream **os.File
		to     *os.File
	}{{&b.Stdout, os.Stdout}, {&b.Stderr, os.Stderr}} {
		r, w, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		*f.stream = w
		copied.Go(func() { _, _ = io.Copy(f.to, r) })
	}
	p, err := s.Start(testContext, b)
	_ = b.Stdout.Close()
	_ = b.Stderr.Close()
	copied.Wait()
	if err != nil {
		return fail(err)
	}
	st, err := p.Wait()
	if err != nil {
		return fail(err)
	}
	for _, n := range p.(*Process).Notes() {
		fmt.Fprintln(os.Stderr, "note:", n)
	}
	if err := p.Close(); err != nil {
		return fail(err)
	}
	if err := s.Close(); err != nil {
		return fail(err)
	}
	return st.Code
}

// inUserNS runs the spec in a starter that is root of a user namespace only, and user 1000 outside of it.
func inUserNS(t *testing.T, sp *specs.Spec, ids int, setgroups bool) (stdout, stderr string, code int) {
	t.Helper()
	layer, err := busyboxLayer()
	if err != nil {
		t.Fatal(err)
	}
	sp.Root.Path = layer
	// Not t.TempDir: another user must come to it.
	dir, err := os.MkdirTemp("", "berth-direct-rootless-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	data, err := json.Marshal(sp)
	if err != nil {
		t.Fatal(err)
	}
	exe := filepath.Join(dir, "berth")
	own, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{dir + "/config.json": data, exe: own} {
		if err := os.WriteFile(name, text, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{dir, layer} {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chown(dir, 1000, 1000); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), rootlessVar+"="+dir)
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 1000, Size: 1}}
	if ids > 1 {
		maps = append(maps, syscall.SysProcIDMap{ContainerID: 1, HostID: 100000, Size: ids - 1})
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS, UidMappings: maps, GidMappings: maps,
		GidMappingsEnableSetgroups: setgroups, Credential: &syscall.Credential{NoSetGroups: !setgroups},
	}
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run()
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func TestRootless(t *testing.T) {
	needRoot(t)
	const script = `id -u; id -g; cat /proc/self/uid_map | tr -s ' '; ls /dev | grep -v core | tr '\n' ' '; echo; echo x >/dev/null && head -c 3 /dev/zero | wc -c
touch /made && stat -c %u /made; echo again >/dev/stderr; ls /proc/self >/dev/null && ls /sys | wc -l; cat /proc/kcore | wc -c; touch /proc/sys/x 2>&1; ip -o link | cut -d: -f2`
	common := "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero \n3\n"
	for _, tt := range []struct {
		name      string
		ids       int
		setgroups bool
		edit      func(*specs.Spec)
		want      string
		code      int
		stderr    string
	}{
		{"root of many ids", 65536, true, func(*specs.Spec) {}, "0\n0\n 0 1000 1\n 1 100000 65535\n" + common + "0\n", 0, "again\n"},
		{"another user", 65536, true, func(sp *specs.Spec) {
			sp.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{7}}
		}, "1000\n1000\n 0 1000 1\n 1 100000 65535\n" + common, 0, "again\n"},
		{"one id", 1, false, func(sp *specs.Spec) { sp.Mounts[2].Options = sp.Mounts[2].Options[:4] }, "0\n0\n 0 1000 1\n" + common + "0\n", 0, "again\n"},
		{"groups that cannot be set", 1, false, func(sp *specs.Spec) { sp.Process.User.AdditionalGids = []uint32{7} }, "", 100, "additionalGids"},
		{"a user that is not mapped", 1, false, func(sp *specs.Spec) {
			sp.Process.User.UID = 5
			sp.Mounts[2].Options = sp.Mounts[2].Options[:4]
		}, "", 100, "set user 5: invalid argument"},
		{"limits and oom score", 65536, true, func(sp *specs.Spec) {
			lower := -500
			sp.Process.OOMScoreAdj = &lower
			sp.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 1 << 40}}
			sp.Process.Args = []string{"/bin/sh", "-c", "ulimit -n"}
		}, "10\n", 0, "note: oom_score_adj"},
		{"a device that the host's is not", 65536, true, func(sp *specs.Spec) {
			sp.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/null", Type: "c", Major: 9, Minor: 9}}
		}, "", 100, "the host's is another"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			sp := testSpec(t, "/bin/sh", "-c", script)
			tt.edit(sp)
			out, errs, code := inUserNS(t, sp, tt.ids, tt.setgroups)
			if !strings.HasPrefix(out, tt.want) || code != tt.code || !strings.Contains(errs, tt.stderr) {
				t.Errorf("ended with %d\nstdout:\n%s\nstderr:\n%s\nwant %d\n%s", code, out, errs, tt.code, tt.want)
			}
			if strings.HasPrefix(tt.want, "0\n0\n") && (!strings.HasSuffix(out, "lo\n") || !strings.Contains(out, "\n0\ntouch: /proc/sys/x: ")) {
				t.Errorf("stdout ends otherwise:\n%s\n%s", out, errs)
			}
		})
	}
}

// A container with CAP_SYS_ADMIN in a user namespace, of its own or of its starter, cannot take its root off:
// under it is a view of the host's /proc.
func TestRootlessNoWayOut(t *testing.T) {
	needRoot(t)
	probe, err := probeBinary()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(probe)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "berth-direct-probe-") // not t.TempDir: another user must come to it
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := errors.Join(os.WriteFile(dir+"/probe", text, 0o755), os.Chmod(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	spec := func() *specs.Spec {
		sp := testSpec(t, "/probe/probe", "escape")
		sp.Mounts = append(sp.Mounts, bindMount(dir, "/probe", "ro"))
		caps := append([]string{"CAP_SYS_ADMIN", "CAP_SYS_PTRACE"}, dockerCaps...)
		sp.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
		sp.Linux.Seccomp = nil
		return sp
	}
	const inside = "<nil> bin dev etc home probe proc root sys tmp\n"
	want := "chroot: " + inside + "setns: " + inside + "umount 1: invalid argument\numount 2: invalid argument\numount 3: invalid argument\n"
	out, errs, code := inUserNS(t, spec(), 65536, true)
	if out != want || code != 0 {
		t.Errorf("in the starter's user namespace: ended with %d\n%s\n%s\nwant\n%s", code, out, errs, want)
	}
	b := testBundle(t, spec())
	b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 65536}}
	b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = ids, ids
	o, err := runBundle(t, testStarter(t), b)
	if err != nil || o.stdout != want {
		t.Errorf("in its own user namespace: %v: %v\nwant\n%s", err, o, want)
	}
}
