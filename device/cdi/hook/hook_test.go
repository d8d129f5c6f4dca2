package hook

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCalledWrongly(t *testing.T) {
	for _, c := range []struct {
		name, stdin string
		args        []string
		code        int
		want        string
	}{
		{"no hook", "", nil, 2, "no hook is named; there are apply-cuda-memory-limits, chmod, create-symlinks"},
		{"unknown hook", "", []string{"make-coffee"}, 2, `there is no hook "make-coffee"; there are`},
		{"unknown flag", "", []string{"chmod", "--colour"}, 2, "chmod: flag provided but not defined: -colour"},
		{"argument", "", []string{"chmod", "x"}, 2, `chmod: unexpected argument "x"`},
		{"no state", "", []string{"chmod"}, 1, "the container's OCI state on standard input: EOF"},
		{"no JSON", "nonsense", []string{"chmod"}, 1, "the container's OCI state on standard input: invalid character"},
		{"no bundle", "{}", []string{"chmod"}, 1, `bundle "" is not an absolute path`},
		{"relative bundle", `{"bundle":"b"}`, []string{"chmod"}, 1, `bundle "b" is not an absolute path`},
		{"no such bundle", `{"bundle":"/no/such"}`, []string{"chmod"}, 1, "the container's bundle: open /no/such/config.json: no such file"},
		{"the host's root", `{"bundle":"/b","root":"/"}`, []string{"chmod"}, 1, "the container's root / is that of the host"},
		{"the host's root by another name", `{"bundle":"/b","root":"/usr/.."}`, []string{"chmod"}, 1, "is that of the host"},
	} {
		var out bytes.Buffer
		code := Main(c.args, strings.NewReader(c.stdin), &out)
		if code != c.code || !strings.Contains(out.String(), c.want) || strings.Count(out.String(), "\n") != 1 {
			t.Errorf("%s: exit code %d, %q; want %d, %q", c.name, code, out.String(), c.code, c.want)
		}
	}
}

func TestRootOfTheBundle(t *testing.T) {
	c := newContainer(t, nil)
	for config, want := range map[string]string{
		`{}`:                           "the bundle's config.json names no root",
		`{"root":{"path":"/no/such"}}`: "the container's root: stat /no/such",
		`{"root":{"path":"../../../../../../../"}}`: "is that of the host",
		`[`: "config.json: unexpected EOF",
	} {
		if err := os.WriteFile(filepath.Join(c.bundle, "config.json"), []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		if code, out := c.run("chmod", "--mode=755"); code != 1 || !strings.Contains(out, want) {
			t.Errorf("%s: %d, %q; want %q", config, code, out, want)
		}
	}
}

func TestCreateSymlinks(t *testing.T) {
	c := newContainer(t, map[string]string{
		"usr/lib/real": "lib", "lib64": "-> /usr/lib", "usr/lib/old.so": "-> elsewhere", "usr/lib/file.so": "text",
		"usr/lib/dir.so/x": "", "loop": "-> loop",
	})
	c.put(filepath.Join(c.root, "out"), "-> "+c.outside)
	c.put(filepath.Join(c.root, "victim"), "-> "+filepath.Join(c.outside, "victim"))
	c.put(filepath.Join(c.root, c.outside, "here"), "the container has such a directory too")
	c.must("create-symlinks",
		"--link", "libcuda.so.1::/usr/lib/libcuda.so", "--link=../x::/lib64/new/deep.so", "--link", "new::/usr/lib/old.so",
		"--link", "a::/usr/lib/file.so", "--link", "b::/out/libx.so", "--link", "c::/victim", "--link", "d::../../../up.so")
	for name, want := range map[string]string{
		"usr/lib/libcuda.so": "libcuda.so.1", "usr/lib/new/deep.so": "../x", "usr/lib/old.so": "new", "usr/lib/file.so": "a",
		filepath.Join(c.outside, "libx.so"): "b", "victim": "c", "up.so": "d",
	} {
		if got, err := os.Readlink(filepath.Join(c.root, name)); got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
	// What is right already is left alone, also where nothing can be written.
	c.must("create-symlinks", "--link", "libcuda.so.1::/usr/lib/libcuda.so")
	for _, link := range []string{"a", "a::", "::b", "a::b::c", "a::/loop/x", "a::/usr/lib/real/x", "a::/usr/lib/dir.so", "a::/"} {
		if code, out := c.run("create-symlinks", "--link", link); code != 1 || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: exit code %d, %q", link, code, out)
		}
	}
}

func TestChmod(t *testing.T) {
	c := newContainer(t, map[string]string{"dev/dri/card0": "", "dev/link": "-> dri", "set": ""})
	c.put(filepath.Join(c.root, "victim"), "-> "+filepath.Join(c.outside, "victim"))
	c.must("chmod", "--mode", "755", "--path", "/dev/dri", "--path", "/dev/dri/card0", "--path", "/not/there", "--path", "/dev/link/card0")
	c.must("chmod", "--mode", "700", "--path", "/dev/dri")
	if st, err := os.Stat(filepath.Join(c.root, "dev/dri")); err != nil || st.Mode().Perm() != 0o700 {
		t.Error(st, err)
	}
	before, _ := os.Stat(filepath.Join(c.outside, "victim"))
	if code, out := c.run("chmod", "--mode", "777", "--path", "/victim"); code != 0 || !strings.Contains(out, "/victim is a link") {
		t.Errorf("%d, %q", code, out)
	}
	if after, _ := os.Stat(filepath.Join(c.outside, "victim")); after.Mode() != before.Mode() {
		t.Error("the mode of a file of the host was changed")
	}
	for _, mode := range []string{"", "9", "4755", "-1", "u+x"} {
		if code, out := c.run("chmod", "--path", "/set", "--mode", mode); code != 1 || !strings.Contains(out, "is not octal permissions") {
			t.Errorf("mode %q: %d, %q", mode, code, out)
		}
	}
}

func TestUpdateApplicationProfile(t *testing.T) {
	c := newContainer(t, map[string]string{"dev/nvidia7": "a file", "dev/nvidiactl": "", "etc/x": ""})
	c.put(filepath.Join(c.root, "etc/nvidia"), "-> "+c.outside)
	c.must("update-application-profile") // no GPU: nothing to write
	if err := os.Remove(filepath.Join(c.root, "etc/nvidia")); err != nil {
		t.Fatal(err)
	}
	for name, minor := range map[string]uint32{"nvidia0": 4, "nvidia1": 0, "nvidia9": 64} {
		if err := unix.Mknod(filepath.Join(c.root, "dev", name), unix.S_IFCHR|0o600, int(unix.Mkdev(195, minor))); err != nil {
			t.Fatal(err)
		}
	}
	code, out := c.run("update-application-profile")
	if code != 0 || !strings.Contains(out, "GPU minor 64") {
		t.Errorf("%d, %q", code, out)
	}
	const want = `{"profiles":[{"name":"_container_","settings":["EGLVisibleDGPUDevices",0x11]}],"rules":[{"pattern":[],"profile":"_container_"}]}`
	if got := c.read(profileFile); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	// A link out, on the way or as the file, leads nowhere outside.
	if err := os.RemoveAll(filepath.Join(c.root, "etc/nvidia")); err != nil {
		t.Fatal(err)
	}
	c.put(filepath.Join(c.root, "etc/nvidia"), "-> "+c.outside)
	if code, out := c.run("update-application-profile"); code != 1 || !strings.Contains(out, "no such file") {
		t.Errorf("%d, %q", code, out)
	}
}

func TestApplyCUDAMemoryLimits(t *testing.T) {
	c := newContainer(t, nil)
	c.must("apply-cuda-memory-limits", "--driver-root", "/", "--gpu-id", "GPU-1")
	c.put(filepath.Join(c.bundle, "config.json"), `{"root":{"path":"rootfs"},"process":{"env":["NVIDIA_GPU_MEMORY_LIMIT=9"]}}`)
	if code, out := c.run("apply-cuda-memory-limits", "--gpu-id", "GPU-1"); code != 1 || !strings.Contains(out, "NVIDIA_GPU_MEMORY_LIMIT=9, and this program cannot set limits") {
		t.Errorf("%d, %q", code, out)
	}
}

// inMountNamespace runs f on a thread in a mount namespace of its own.
func inMountNamespace(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with its namespace
		err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS)
		if err == nil {
			err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestMountOver(t *testing.T) {
	c := newContainer(t, map[string]string{"proc/version": "not procfs", "etc/x": ""})
	root := c.job().root
	if err := mountOver(root, "/proc/version", []byte("x")); err == nil || !strings.Contains(err.Error(), "is not in a procfs") {
		t.Errorf("an ordinary file: %v", err)
	}
	if err := mountOver(root, "/missing", []byte("x")); err == nil {
		t.Error("a missing file: no error")
	}
	const text = "ModifyDeviceFiles: 0\n"
	inMountNamespace(t, func() error {
		if err := unix.Mount("proc", filepath.Join(c.root, "proc"), "proc", 0, ""); err != nil {
			return err
		}
		root := c.job().root // of this namespace
		before, err := os.ReadFile("/proc/thread-self/mountinfo")
		if err != nil {
			return err
		}
		if err := mountOver(root, "/proc/version", []byte(text)); err != nil {
			return err
		}
		got, err := root.ReadFile("/proc/version", 1000)
		if err != nil || string(got) != text {
			return fmt.Errorf("read %q, %w", got, err)
		}
		if _, err := os.Stat(filepath.Join(c.root, "proc/cmdline")); err != nil {
			return fmt.Errorf("the rest of /proc is hidden: %w", err)
		}
		if err := os.WriteFile(filepath.Join(c.root, "proc/version"), []byte("x"), 0); err == nil || !strings.Contains(err.Error(), "read-only") {
			return fmt.Errorf("can be written: %w", err)
		}
		after, err := os.ReadFile("/proc/thread-self/mountinfo")
		if n := bytes.Count(after, []byte("\n")) - bytes.Count(before, []byte("\n")); n != 1 {
			return fmt.Errorf("%d more mounts, %w; want 1:\n%s", n, err, after)
		}
		return nil
	})
	if left, _ := os.ReadDir(filepath.Join(c.root, "etc")); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

// TestSeveral: hooks of one run come one after another, and end with the first that fails.
func TestSeveral(t *testing.T) {
	c := newContainer(t, map[string]string{"dev/dri/card0": ""})
	mode := func(want os.FileMode) {
		t.Helper()
		if st, err := os.Stat(filepath.Join(c.root, "dev/dri")); err != nil || st.Mode().Perm() != want {
			t.Error(st, err)
		}
	}
	set := func(m string) []string { return []string{"chmod", "--mode", m, "--path", "/dev/dri"} }
	c.must(slices.Concat(set("755"), []string{"++"}, set("711"), []string{"++"}, set("700"))...)
	mode(0o700)
	if code, out := c.run(slices.Concat(set("711"), []string{"++"}, set("x"), []string{"++"}, set("755"))...); code != 1 || !strings.Contains(out, "octal") {
		t.Errorf("%d, %q", code, out)
	}
	mode(0o711)
	for _, args := range [][]string{{"++"}, append(set("711"), "++"), append([]string{"++"}, set("711")...)} {
		if code, out := c.run(args...); code != 2 || !strings.Contains(out, "no hook is named") {
			t.Errorf("%q: %d, %q", args, code, out)
		}
	}
}

func init() { //nolint:gochecknoinits // this alone runs on the main thread, which stands for the process in /proc: no test is to change it for good
	runtime.LockOSThread()
}
