package direct

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/thread"
)

// shellHook is a hook that runs a script of the host's shell, with $OUT as a file of the host.
func shellHook(out, script string) specs.Hook {
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: []string{"OUT=" + out}}
}

// look writes down all that a hook finds.
const look = `{ echo "== state"; cat; echo; echo "== env"; tr '\0' '\n' </proc/self/environ | sort; echo "== cwd"; readlink /proc/self/cwd
for n in mnt pid_for_children net ipc uts cgroup user; do echo "== ns $n"; readlink /proc/self/ns/$n; done
echo "== root of the host"; readlink /proc/self/root; ls -d /proc/1 /etc/debian_version
echo "== credentials"; grep -E '^(Uid|Gid|Groups|Cap|NoNewPrivs|Seccomp)' /proc/self/status
echo "== descriptors"; ls -l /proc/self/fd | tail -n +2 | sed "s/.* -> //" | grep -vE "^(pipe|/proc/|/dev/null)"; echo end
echo "== container"; ls bin/busybox rootfs/bin/busybox dev/null proc/self rootfs/dev/null 2>/dev/null; stat -c '%t:%T %a' dev/null 2>/dev/null; true; } >>$OUT`

// hooked runs a container with hooks of both stages that look around; start starts it.
func hooked(t *testing.T, start func(*bundle.Bundle) error) map[string][]string {
	t.Helper()
	b := testBundle(t, testSpec(t, "/bin/true"))
	out := t.TempDir()
	b.Spec.Annotations = map[string]string{"org.example": "x"}
	b.Spec.Process.Env = append(b.Spec.Process.Env, "LD_PRELOAD=/evil.so", "SECRET=1")
	b.Spec.Hooks = &specs.Hooks{
		CreateRuntime:   []specs.Hook{shellHook(out+"/runtime", look)},
		CreateContainer: []specs.Hook{shellHook(out+"/container", look)},
	}
	if err := start(b); err != nil {
		t.Fatal(err)
	}
	found := map[string][]string{}
	for _, stage := range []string{"runtime", "container"} {
		raw, err := os.ReadFile(filepath.Join(out, stage))
		if err != nil {
			t.Fatal(err)
		}
		text := strings.NewReplacer(b.Dir, "BUNDLE", out, "OUT", b.ID, "ID").Replace(string(raw))
		for name, lines := range sections(text) {
			found[stage+" "+name] = normalHook(t, name, lines)
		}
	}
	return found
}

// normalHook makes what two runtimes say comparable: a namespace is the host's or another.
func normalHook(t *testing.T, name string, lines []string) []string {
	t.Helper()
	if ns, ok := strings.CutPrefix(name, "ns "); ok {
		own, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			t.Fatal(err)
		}
		if lines[0] == own {
			return []string{"the host's"}
		}
		return []string{"another"}
	}
	if name != "state" {
		return lines
	}
	var s specs.State
	if err := json.Unmarshal([]byte(strings.Join(lines, "")), &s); err != nil {
		t.Fatalf("%v: %q", err, lines)
	}
	if s.Pid != 1 {
		s.Pid = -1 // as the host sees it
	}
	if s.ID == "" || s.Version == "" {
		t.Errorf("the state has no id or version: %+v", s)
	}
	s.ID, s.Version = "", ""
	return []string{fmt.Sprintf("%+v", s)}
}

// TestHooksAgainstRunc compares what hooks find with what those find that runc runs.
func TestHooksAgainstRunc(t *testing.T) {
	s := testStarter(t)
	// What this test itself was started with is not to be seen.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	got := hooked(t, func(b *bundle.Bundle) error { _, err := runBundle(t, s, b); return err })
	want := hooked(t, func(b *bundle.Bundle) error { _, err := runcRun(t, b); return err })
	if len(want) < 24 {
		t.Errorf("runc's hooks printed only %d sections", len(want))
	}
	compare(t, got, want, map[string]string{
		"runtime cwd":           "runc's is that of who runs it, here of the test",
		"runtime container":     "the root is mounted in the container alone: from outside it lies below /proc/PID/root",
		"runtime descriptors":   "looked at below",
		"container descriptors": "runc hands on what is its own",
	})
	if cwd := got["runtime cwd"]; len(cwd) != 1 || cwd[0] != "BUNDLE" {
		t.Errorf("the working directory of a createRuntime hook is %q", cwd)
	}
	for _, stage := range []string{"runtime", "container"} {
		if d := got[stage+" descriptors"]; len(d) != 1 {
			t.Errorf("a hook has descriptors beside its streams: %q", d)
		}
	}
	if env := got["container env"]; strings.Contains(strings.Join(env, "\n"), "SECRET") {
		t.Errorf("a hook got the container's environment: %q", env)
	}
}

// TestHookWithoutEnvironment: a hook that brings no environment gets none, whatever runtimes have done.
func TestHookWithoutEnvironment(t *testing.T) {
	s := testStarter(t)
	out := filepath.Join(t.TempDir(), "out")
	h := specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "tr '\\0' '\\n' </proc/self/environ >" + out}}
	run(t, s, "true", func(b *bundle.Bundle) {
		b.Spec.Process.Env = append(b.Spec.Process.Env, "LD_PRELOAD=/evil.so")
		b.Spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{h}, CreateContainer: []specs.Hook{h}}
	})
	raw, err := os.ReadFile(out)
	if err != nil || len(raw) > 0 {
		t.Errorf("it has %q, %v", raw, err)
	}
}

// TestHooksChangeTheContainer: what hooks write and mount is there when the command begins, and nowhere else.
func TestHooksChangeTheContainer(t *testing.T) {
	s := testStarter(t)
	src := t.TempDir()
	if err := os.WriteFile(filepath.Join(src, "f"), []byte("mounted\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	dir := ""
	got := run(t, s, "cat /made /target /readonly/x; touch /readonly/y 2>/dev/null || echo read-only; ls /host 2>/dev/null; tail -n1 /order", func(b *bundle.Bundle) {
		b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: "/readonly", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro", "size=1m"}})
		dir = b.Dir
		root := filepath.Join(b.Dir, rootDir)
		b.Spec.Hooks = &specs.Hooks{
			CreateContainer: []specs.Hook{
				shellHook("", "echo made >made; echo 1 >>order; echo x >readonly/x"),
				shellHook("", "touch target && /bin/mount --bind "+src+"/f "+root+"/target; echo 2 >>order"),
			},
		}
	})
	if want := "made\nmounted\nx\nread-only\n2\n"; got.stdout != want {
		t.Errorf("got %v\nwant %s", got, want)
	}
	if mounts := mountsOf(t); strings.Contains(mounts, dir) || strings.Contains(mounts, src) {
		t.Errorf("a mount of the container is on the host:\n%s", mounts)
	}
}

func mountsOf(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

// TestHooksFail: a hook that fails ends the start, with its name and its words; nothing is left, and nothing ran.
func TestHooksFail(t *testing.T) {
	s := testStarter(t)
	second := 1
	for _, tt := range []struct {
		name  string
		hooks specs.Hooks
		says  []string
	}{
		{"createRuntime", specs.Hooks{CreateRuntime: []specs.Hook{shellHook("", "echo no GPU >&2; exit 3")}}, []string{"createRuntime hook /bin/sh -c", "exit status 3", "no GPU"}},
		{"createContainer", specs.Hooks{CreateContainer: []specs.Hook{shellHook("", "echo no cache >&2; exit 1")}}, []string{"createContainer hook /bin/sh", "no cache"}},
		{"not there", specs.Hooks{CreateContainer: []specs.Hook{{Path: "/no/such/hook"}}}, []string{"createContainer hook /no/such/hook", "no such file"}},
		{"one in the image", specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/in-the-image"}}}, []string{"/bin/in-the-image", "no such file"}},
		{"killed", specs.Hooks{CreateContainer: []specs.Hook{shellHook("", "kill -9 $$")}}, []string{"killed"}},
		{"too slow", specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "60"}, Timeout: &second}}}, []string{"longer than 1s"}},
		{"many words", specs.Hooks{CreateRuntime: []specs.Hook{shellHook("", "seq 100000 >&2; exit 1")}}, []string{"100000"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ran := filepath.Join(t.TempDir(), "ran")
			b := testBundle(t, testSpec(t, "/bin/sh", "-c", "echo ran >/ran/it"))
			if err := os.Mkdir(ran, 0o777); err != nil {
				t.Fatal(err)
			}
			b.Spec.Mounts = append(b.Spec.Mounts, bindMount(ran, "/ran"))
			b.Spec.Hooks = &tt.hooks
			begin := time.Now()
			_, err := s.Start(t.Context(), b)
			if err == nil {
				t.Fatal("it started")
			}
			for _, w := range tt.says {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not say %q", err, w)
				}
			}
			if len(err.Error()) > 3000 {
				t.Errorf("the error is %d bytes long", len(err.Error()))
			}
			if d := time.Since(begin); d > 20*time.Second {
				t.Errorf("it took %v", d)
			}
			if _, err := os.Stat(ran + "/it"); err == nil {
				t.Error("the command ran")
			}
			if text := mountsOf(t); strings.Contains(text, b.Dir) {
				t.Errorf("mounts are left: %s", text)
			}
		})
	}
}

// TestHooksEndWithTheContext: a hook without a limit does not hold up who gives the start up.
func TestHooksEndWithTheContext(t *testing.T) {
	s := testStarter(t)
	b := testBundle(t, testSpec(t, "/bin/true"))
	b.Spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "60"}}}}
	ctx, cancel := context.WithTimeoutCause(t.Context(), 300*time.Millisecond, errors.New("given up"))
	defer cancel()
	begin := time.Now()
	if _, err := s.Start(ctx, b); err == nil || !strings.Contains(err.Error(), "given up") {
		t.Errorf("error %v", err)
	}
	if d := time.Since(begin); d > 10*time.Second {
		t.Errorf("it took %v", d)
	}
}

// TestReady: who asks for it sees the container whole, before its command, with hooks and without.
func TestReady(t *testing.T) {
	s := testStarter(t)
	for _, hooks := range []bool{false, true} {
		t.Run(strconv.FormatBool(hooks), func(t *testing.T) {
			sp := func() *specs.Spec {
				sp := testSpec(t, "/bin/sh", "-c", "echo ran")
				sp.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/sub/it", Type: "c", Major: 10, Minor: 237}}
				if hooks {
					sp.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{shellHook("", "mkdir -p dev/hooked")}}
				}
				return sp
			}
			b := testBundle(t, sp())
			seen := 0
			b.Ready = func(c bundle.Created) error {
				seen++
				var st unix.Stat_t
				if err := unix.Fstatat(int(c.Root.Fd()), "dev/sub/it", &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Rdev != unix.Mkdev(10, 237) {
					t.Errorf("its device is %v, %v", st.Rdev, err)
				}
				if err := unix.Fstatat(int(c.Root.Fd()), "dev/hooked", &st, 0); (err == nil) != hooks {
					t.Errorf("what the hook made: %v", err)
				}
				if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Pid)); err != nil || !strings.Contains(string(name), "NSpid:\t"+strconv.Itoa(c.Pid)+"\t1\n") {
					t.Errorf("process %d: %s, %v", c.Pid, name, err)
				}
				return nil
			}
			o, err := runBundle(t, s, b)
			if err != nil || o.stdout != "ran\n" || seen != 1 {
				t.Errorf("%v, %v, looked at %d times", o, err, seen)
			}
			b = testBundle(t, sp())
			refusal := errors.New("it holds too much")
			b.Ready = func(bundle.Created) error { return refusal }
			if o, err := runBundle(t, s, b); !errors.Is(err, refusal) || o.stdout != "" {
				t.Errorf("%v, %v", o, err)
			}
		})
	}
}

// TestMeetsNobody: a start whose child is never made ends, though somebody was to attend to the child.
func TestMeetsNobody(t *testing.T) {
	s := testStarter(t)
	b := testBundle(t, testSpec(t, "/bin/true"))
	ids := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 0, Size: 1000}}
	b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
	b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = ids, ids
	b.Ready = func(bundle.Created) error {
		t.Error("there is a container")
		return nil
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	b.NetNS = null // no namespace to join
	result := make(chan error, 1)
	go func() {
		_, err := s.Start(t.Context(), b)
		result <- err
	}()
	select {
	case err := <-result:
		if !errors.Is(err, unix.EINVAL) {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits for a child that nobody made")
	}
}

// TestHookOutlivesThreads: a hook is killed with the thread that started it, so that it ends with this process; not when another
// goroutine has that thread end.
func TestHookOutlivesThreads(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var ending sync.WaitGroup
	for range 4 {
		ending.Go(func() {
			for ctx.Err() == nil {
				_ = thread.Own(func() error { time.Sleep(time.Millisecond); return nil })
			}
		})
	}
	var hooks sync.WaitGroup
	for range 20 {
		hooks.Go(func() {
			h := shellHook("", "sleep 0.5")
			if err := (&hookOf{"createRuntime", &h}).run(ctx, specs.State{Pid: 2}, "/"); err != nil {
				t.Error(err)
			}
		})
	}
	hooks.Wait()
	cancel()
	ending.Wait()
}
