package direct

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/seccomp"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: namespaces and mounts")
	}
}

// dockerCaps are the capabilities of a Docker container.
var dockerCaps = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// testSpec is what a container of berth looks like.
func testSpec(t testing.TB, args ...string) *specs.Spec {
	t.Helper()
	profile, err := seccomp.Default(dockerCaps)
	if err != nil {
		t.Fatal(err)
	}
	return &specs.Spec{
		Version: "1.0.2",
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: args, Env: []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}, Cwd: "/",
			Capabilities:    &specs.LinuxCapabilities{Bounding: dockerCaps, Effective: dockerCaps, Permitted: dockerCaps},
			NoNewPrivileges: true,
		},
		Hostname: "berth",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=67108864"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace},
				{Type: specs.MountNamespace},
				{Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace},
				{Type: specs.NetworkNamespace},
				{Type: specs.CgroupNamespace},
			},
			MaskedPaths: []string{
				"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
				"/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			Seccomp:       profile,
		},
	}
}

// What TestMain removes.
var layerDir, probeDir string

// busyboxLayer is a directory with a busybox and a link for each of its commands.
var busyboxLayer = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "berth-direct-layer-")
	if err != nil {
		return "", err
	}
	layerDir = dir
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "root", "home"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return "", err
		}
	}
	bb, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "bin/busybox"), bb, 0o755); err != nil {
		return "", err
	}
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return "", err
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			if err := os.Link(filepath.Join(dir, "bin/busybox"), filepath.Join(dir, "bin", name)); err != nil {
				return "", err
			}
		}
	}
	return dir, nil
})

// The variables that make this test binary something else than a test.
const (
	trapVar     = "BERTH_DIRECT_TRAP"     // it was executed in a container, and says so
	rootlessVar = "BERTH_DIRECT_ROOTLESS" // it runs a container as root of a user namespace
	victimVar   = "BERTH_DIRECT_VICTIM"   // it starts a container over this layer, and waits to be killed
)

func TestMain(m *testing.M) {
	if os.Getenv(trapVar) != "" {
		fmt.Fprintln(os.Stdout, "berth's own binary runs in the container")
		os.Exit(0)
	}
	if dir := os.Getenv(rootlessVar); dir != "" {
		os.Exit(rootless(dir))
	}
	if dir := os.Getenv(victimVar); dir != "" {
		victim(dir)
	}
	code := m.Run()
	for _, made := range []*string{&layerDir, &probeDir} {
		if *made != "" {
			_ = os.RemoveAll(*made)
		}
	}
	os.Exit(code)
}

// testBundle is a bundle of the spec over the busybox layer.
func testBundle(t testing.TB, spec *specs.Spec) *bundle.Bundle {
	t.Helper()
	layer, err := busyboxLayer()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	b := &bundle.Bundle{
		ID: "test", Dir: dir, Spec: spec,
		Root: bundle.Root{Layers: []string{layer}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Volatile: true},
	}
	for _, d := range []string{b.Root.Upper, b.Root.Work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

func testStarter(t testing.TB) *Starter {
	t.Helper()
	needRoot(t)
	s, err := New(Config{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// outcome is what a container wrote and how it ended.
type outcome struct {
	stdout, stderr string
	status         bundle.Status
	notes          []string
}

func (o outcome) String() string {
	return fmt.Sprintf("%+v\nstdout:\n%s\nstderr:\n%s", o.status, o.stdout, o.stderr)
}

// runBundle starts b with pipes and waits for its end.
func runBundle(t testing.TB, s bundle.Starter, b *bundle.Bundle) (outcome, error) {
	t.Helper()
	out, stdout := drain(t)
	errs, stderr := drain(t)
	b.Stdout, b.Stderr = stdout, stderr
	p, err := s.Start(t.Context(), b)
	_ = stdout.Close()
	_ = stderr.Close()
	if err != nil {
		return outcome{}, err
	}
	st, err := p.Wait()
	if err != nil {
		t.Fatal(err)
	}
	o := outcome{stdout: out(), stderr: errs(), status: st}
	if n, ok := p.(interface{ Notes() []string }); ok {
		o.notes = n.Notes()
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	return o, nil
}

// drain makes a pipe that is read to its end.
func drain(t testing.TB) (text func() string, w *os.File) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan string)
	go func() {
		var sb strings.Builder
		_, _ = r.WriteTo(&sb)
		_ = r.Close()
		done <- sb.String()
	}()
	return func() string { return <-done }, w
}

// run starts a container of the shell script with the default spec, changed by edit.
func run(t testing.TB, s bundle.Starter, script string, edit func(*bundle.Bundle)) outcome {
	t.Helper()
	b := testBundle(t, testSpec(t, "/bin/sh", "-c", script))
	if edit != nil {
		edit(b)
	}
	o, err := runBundle(t, s, b)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// specs1000 is a user that is not root.
var specs1000 = specs.User{UID: 1000, GID: 1000}

func bindMount(from, to string, opts ...string) specs.Mount {
	return specs.Mount{Source: from, Destination: to, Type: "bind", Options: append([]string{"rbind"}, opts...)}
}

// testContext is the context of what runs outside a test.
var testContext = context.Background()

func init() { //nolint:gochecknoinits // this alone runs on the main thread, which stands for the process in /proc: no test is to change it for good
	runtime.LockOSThread()
}
