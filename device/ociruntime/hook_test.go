package ociruntime

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	oci "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-project/berth/device/devicetest"
)

// hooked is a bundle with the prestart hook, to be run without berth's runtime.
func (p *place) hooked(script string, env ...string) (dir string) {
	p.t.Helper()
	dir = p.bundle(script, env...)
	p.edit(dir, func(s *oci.Spec) {
		s.Hooks = &oci.Hooks{Prestart: []oci.Hook{{Path: p.self, Args: []string{"berth", ociHook, flagConfig, p.config, "prestart"}, Env: []string{pathEnv}}}} //nolint:staticcheck // engines use it
	})
	return dir
}

// directly runs a container with an OCI runtime.
func (p *place) directly(runtime []string, dir string) (string, error) {
	p.t.Helper()
	args := append(runtime[1:], "--root", filepath.Join(p.dir, "direct"), "run", "--bundle", dir, p.id())
	return p.output(runtime[0], args...)
}

// crun cannot work beside the v2 hierarchy of a hybrid host.
var crun = []string{"unshare", "--mount", "sh", "-c", `umount /sys/fs/cgroup/unified 2>/dev/null; exec crun "$@"`, "crun"}

// v2 gives a runtime the v2 hierarchy alone.
var v2 = []string{"unshare", "--mount", "--cgroup", "sh", "-c", `mount --make-rprivate / && umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec runc "$@"`, "runc"}

func TestHook(t *testing.T) {
	for name, runtime := range map[string][]string{"runc": {"runc"}, "crun": crun, "runc on cgroup v2": v2} {
		t.Run(name, func(t *testing.T) {
			p := newPlace(t, devicetest.Options{NVIDIA: 2}, "runc")
			gpu, other := p.host.NVIDIA[0], p.host.NVIDIA[1]
			out, err := p.directly(runtime, p.hooked(opens(gpu, other), "NVIDIA_VISIBLE_DEVICES=0"))
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, want := range []string{"opened\n", "refused\n", "no library"} {
				if !strings.Contains(out, want) {
					t.Errorf("it says not %q but\n%s", want, out)
				}
			}
			if strings.Contains(out, other.Node.Path) {
				t.Errorf("it has another GPU:\n%s", out)
			}
			if got := p.holder(gpu); got != "" {
				t.Errorf("it has ended, and the GPU is held by %q", got)
			}
		})
	}
}

// TestHookNothingAsked: a container that asks for nothing starts, whatever the hook could not do for it.
func TestHookNothingAsked(t *testing.T) {
	p := newPlace(t, devicetest.Options{}, "runc")
	if out, err := p.directly([]string{"runc"}, p.hooked("echo hello")); err != nil || !strings.Contains(out, "hello") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestHookRefuses: the container does not start, and holds nothing.
func TestHookRefuses(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc")
	for name, c := range map[string]struct {
		env, says string
		edit      func(*oci.Spec)
	}{
		"an unknown GPU":       {"NVIDIA_VISIBLE_DEVICES=7", `oci-hook: GPU \"7\": not found`, func(*oci.Spec) {}},
		"an unmet requirement": {"NVIDIA_VISIBLE_DEVICES=0 NVIDIA_REQUIRE_CUDA=cuda>=99.0", `the image requires \"cuda>=99.0\"`, func(*oci.Spec) {}},
		"a library that leads to a volume of the host": {"NVIDIA_VISIBLE_DEVICES=0", "nothing is written there", func(s *oci.Spec) {
			s.Mounts = append(s.Mounts, oci.Mount{Destination: "/usr/lib", Source: p.t.TempDir(), Type: "bind", Options: []string{"bind"}})
		}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := p.hooked("echo ran", strings.Fields(c.env)...)
			p.edit(dir, c.edit)
			out, err := p.directly([]string{"runc"}, dir)
			if err == nil || !strings.Contains(out, c.says) || strings.Contains(out, "ran\n") {
				t.Errorf("%v: %s", err, out)
			}
			if got := p.holder(p.host.NVIDIA[0]); got != "" {
				t.Errorf("the GPU is held by %q", got)
			}
		})
	}
}

// TestHookInHostileImage: links of the image lead the hook nowhere but into the container.
func TestHookInHostileImage(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc")
	victim := t.TempDir()
	dir := p.hooked("echo ran", "NVIDIA_VISIBLE_DEVICES=0")
	root := filepath.Join(dir, "rootfs")
	if err := os.MkdirAll(filepath.Join(root, victim), 0o755); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"usr": "../../../../../../../.." + victim, "etc/ld.so.cache": victim + "/cache"} {
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	out, err := p.directly([]string{"runc"}, dir)
	left, bad := os.ReadDir(victim)
	if bad != nil || len(left) > 0 {
		t.Errorf("the host has %v, %v; the container: %v: %s", left, bad, err, out)
	}
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Stat(filepath.Join(root, victim, "lib/x86_64-linux-gnu", fmt.Sprintf("libcuda.so.%s", devicetest.DriverVersion))); err != nil {
		t.Error(err)
	}
}

func TestParseHook(t *testing.T) {
	for line, says := range map[string]string{
		"":                               "no hook is named",
		"prestart poststop":              "a hook too many",
		"start":                          `no hook or flag "start"`,
		"lent --lease x --node c:1:/dev": "is not of the form",
		"lent --node c:1:3:/dev/null":    "is not of the form",
		"lent --node c:1:3:x:/dev/null":  "is not of the form",
	} {
		if h, err := parseHook(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %+v, %v", line, h, err)
		}
	}
	for _, line := range []string{"prestart", "--berth-config=/x prestart", "-config /x prestart"} {
		if h, err := parseHook(strings.Fields(line)); err != nil || h.name != "prestart" || line != "prestart" && h.config != "/x" {
			t.Errorf("%q: %+v, %v", line, h, err)
		}
	}
}

const ociHook = "oci-hook"

// TestHookOrdinaryUser: a user who is in no group of the host's can open the nodes that only a group may.
func TestHookOrdinaryUser(t *testing.T) {
	p := newPlace(t, devicetest.Options{AMD: 1}, "runc")
	dir := p.hooked("exec 3<>"+p.host.AMD[0].Node.Path+" && echo opened by $(id -u)", "AMD_VISIBLE_DEVICES=0")
	p.edit(dir, func(s *oci.Spec) { s.Process.User = oci.User{UID: 1000, GID: 1000} })
	if out, err := p.directly([]string{"runc"}, dir); err != nil || !strings.Contains(out, "opened by 1000\n") {
		t.Errorf("%v: %s", err, out)
	}
}

// TestHookUserNamespace: nodes that are made in a user namespace cannot be opened, so those of the host are mounted.
func TestHookUserNamespace(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 1}, "runc")
	dir := p.hooked("exec 3<>"+p.host.NVIDIA[0].Node.Path+" && echo opened; cat /usr/lib/x86_64-linux-gnu/libcuda.so."+devicetest.DriverVersion, "NVIDIA_VISIBLE_DEVICES=0")
	p.edit(dir, func(s *oci.Spec) {
		s.Linux.Namespaces = append(s.Linux.Namespaces, oci.LinuxNamespace{Type: oci.UserNamespace})
		s.Linux.UIDMappings = []oci.LinuxIDMapping{{HostID: 100000, Size: 65536}}
		s.Linux.GIDMappings = s.Linux.UIDMappings
	})
	for d := dir; d != "/"; d = filepath.Dir(d) { // the user of the namespace looks for the root
		if err := os.Chmod(d, 0o755); err != nil && d != "/tmp" {
			t.Fatal(err)
		}
		if filepath.Dir(d) == os.TempDir() {
			break
		}
	}
	if out, err := p.directly([]string{"runc"}, dir); err != nil || !strings.Contains(out, "opened\n") || !strings.Contains(out, "no library") {
		t.Errorf("%v: %s", err, out)
	}
}
