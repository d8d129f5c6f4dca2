package main

import (
	"debug/elf"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// build builds the program as it is shipped.
func build(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "berth-cdi-hook")
	cmd := exec.Command("go", "build", "-o", file, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return file
}

func TestIsStatic(t *testing.T) {
	f, err := elf.Open(build(t))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			t.Errorf("it has a segment %v: it is not static", p.Type)
		}
	}
}

// TestUnderRuntimes starts containers whose program finds its libraries only if the hooks did their work, with an
// environment that would have a dynamic program load the image's code.
func TestUnderRuntimes(t *testing.T) {
	hook := build(t)
	for _, runtime := range []string{"runc", "crun"} {
		t.Run(runtime, func(t *testing.T) {
			bundle := t.TempDir()
			root := filepath.Join(bundle, "rootfs")
			makeRoot(t, root)
			run := func(hooks ...[]string) (string, error) {
				t.Helper()
				writeConfig(t, bundle, hook, hooks)
				// crun refuses hosts with both versions of cgroups: it gets a view of one.
				cmd := exec.Command("unshare", "-m", "sh", "-c", `! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; exec "$@"`, "sh",
					runtime, "--root", filepath.Join(bundle, "state"), "run", "--bundle", bundle, "berth-hook-"+filepath.Base(filepath.Dir(bundle)))
				out, err := cmd.CombinedOutput()
				return string(out), err
			}
			if out, err := run(); err == nil || !strings.Contains(out, "error while loading shared libraries") {
				t.Fatalf("without hooks: %v, %s; the test sees nothing", err, out)
			}
			out, err := run(
				[]string{"create-symlinks", "--link", "libc.so.6::/opt/driver/libdriver.so", "--link", "x::/escape/link"},
				[]string{"enable-cuda-compat", "--host-driver-version=550.1.1"},
				[]string{"update-ldcache", "--folder", "/opt/driver"},
				[]string{"disable-device-node-modification"},
				[]string{"update-application-profile"},
				[]string{"chmod", "--mode", "711", "--path", "/tmp"},
			)
			if err != nil || !strings.Contains(out, "libdriver.so") {
				t.Errorf("%v: %s", err, out)
			}
			if to, err := os.Readlink(filepath.Join(root, "link")); err != nil || to != "x" {
				t.Errorf("a link that leads up ended at %q, %v; want the container's root", to, err)
			}
			if st, err := os.Stat(filepath.Join(root, "tmp")); err != nil || st.Mode().Perm() != 0o711 {
				t.Error(st, err)
			}
			// What fails keeps the container from starting, and says why.
			out, err = run([]string{"create-symlinks", "--link", "nonsense"})
			if err == nil || strings.Contains(out, "libdriver.so") {
				t.Errorf("started although a hook failed: %s", out)
			}
		})
	}
}

func makeRoot(t *testing.T, root string) {
	t.Helper()
	for _, dir := range []string{"proc", "dev", "etc", "tmp", "bin", "opt/driver", "lib64", "lib"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../../../../..", filepath.Join(root, "escape")); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("ldd", "/bin/ls").Output()
	if err != nil {
		t.Fatal(err)
	}
	copyFile(t, "/bin/ls", filepath.Join(root, "bin/ls"))
	for _, m := range regexp.MustCompile(`(?m)^\s+(?:\S+ => )?(/\S+) \(`).FindAllStringSubmatch(string(out), -1) {
		to := m[1]
		if !strings.HasPrefix(filepath.Base(to), "ld-") {
			to = filepath.Join("/opt/driver", filepath.Base(to))
		}
		copyFile(t, m[1], filepath.Join(root, to))
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func writeConfig(t *testing.T, bundle, hook string, hooks [][]string) {
	t.Helper()
	var list []map[string]any
	for _, args := range hooks {
		// No env: runc 1.1 then gives a hook that of the container.
		list = append(list, map[string]any{"path": hook, "args": append([]string{"berth-cdi-hook"}, args...)})
	}
	config := map[string]any{
		"ociVersion": "1.0.2",
		"root":       map[string]any{"path": "rootfs"},
		"process": map[string]any{
			"cwd": "/", "args": []string{"/bin/ls", "/opt/driver"}, "user": map[string]any{"uid": 0, "gid": 0},
			"env": []string{"LD_PRELOAD=/evil.so", "LD_LIBRARY_PATH=/evil", "GODEBUG=nonsense"},
		},
		"mounts": []map[string]any{{"destination": "/proc", "type": "proc", "source": "proc"}},
		"hooks":  map[string]any{"createContainer": list},
		"linux":  map[string]any{"namespaces": []map[string]any{{"type": "mount"}, {"type": "pid"}}},
	}
	data, err := json.Marshal(config)
	if err == nil {
		err = os.WriteFile(filepath.Join(bundle, "config.json"), data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}
