package cli

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berth-project/berth/device/devicetest"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/internal/cli/userns"
)

// asBerth in the environment makes the test binary berth, whatever name it is executed under: workers have
// none of their own.
const asBerth = "_BERTH_TEST_AS_BERTH"

// noSleep keeps the race detector from sleeping for a second at the end of each process.
const noSleep = "GORACE=atexit_sleep_ms=0"

func TestMain(m *testing.M) {
	userns.HelperMain()
	hiddenMains()
	if os.Getenv(asBerth) != "" {
		os.Exit(Main())
	}
	testscript.Main(dockerless{m}, map[string]func(){"berth": func() { os.Exit(Main()) }})
}

// dockerless runs the tests, and ends the daemons that they may have started.
type dockerless struct{ *testing.M }

func (m dockerless) Run() int {
	defer stopDaemons()
	defer func() { _ = os.RemoveAll(hookDir) }()
	return m.M.Run()
}

// TestScripts runs the scripts, each with a data directory of its own, in which the image bb is busybox.
func TestScripts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: the scripts run containers with limits")
	}
	testscript.Run(t, params(t, setup, engineOCI))
}

// params are those of the scripts. The condition of an engine's name holds on that engine, remote where that is on
// another machine, and again where TestScriptsDocker has run the script on the same engine's code with another daemon: a
// script in which the daemon has no part is left out there, as Podman takes a second for each task. apparmor holds where the
// kernel runs with it.
func params(t *testing.T, setup func(*testscript.Env) error, holds ...string) testscript.Params {
	return testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			env.Values[testKey{}] = t
			return setup(env)
		},
		Condition: func(cond string) (bool, error) {
			if cond == "apparmor" {
				on, _ := os.ReadFile("/sys/module/apparmor/parameters/enabled")
				return bytes.HasPrefix(on, []byte("Y")), nil
			}
			if !slices.Contains(append(engines(), "remote", "again"), cond) {
				return false, fmt.Errorf("there is no engine %q", cond)
			}
			return slices.Contains(holds, cond), nil
		},
		Cmds: map[string]func(ts *testscript.TestScript, neg bool, args []string){
			"code": cmdCode, "says": cmdSays, "clean": cmdClean, "await": cmdAwait, "cmp-result": cmdCmpResult, "gpus": cmdGPUs, "cdihook": cmdCDIHook,
		},
	}
}

func setup(env *testscript.Env) error {
	data := filepath.Join(env.WorkDir, "data")
	env.Vars = append(env.Vars, asBerth+"=1", noSleep, "CPUS="+strconv.Itoa(runtime.NumCPU()), "BERTH_DATA_DIR="+data, "HOME="+env.WorkDir, "XDG_CONFIG_HOME="+filepath.Join(env.WorkDir, ".config"))
	env.Defer(func() { endMonitor(data) })
	archive, err := busybox()
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(env.WorkDir, "bb.tar"), archive, 0o600)
}

// busybox is a root file system with busybox alone, and empty files of these names.
func busybox(more ...string) ([]byte, error) {
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("the scripts need busybox-static: %w", err)
	}
	list, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	put := func(h *tar.Header, body []byte) {
		h.Size = int64(len(body))
		err = errors.Join(err, w.WriteHeader(h))
		_, bad := w.Write(body)
		err = errors.Join(err, bad)
	}
	for _, d := range []string{"bin/", "tmp/", "etc/"} {
		put(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o1777}, nil)
	}
	put(&tar.Header{Name: "bin/busybox", Mode: 0o755}, program)
	put(&tar.Header{Name: "etc/passwd", Mode: 0o644}, []byte("root:x:0:0::/:/bin/sh\nalice:x:1000:1000::/:/bin/sh\n"))
	put(&tar.Header{Name: "bin/windows", Mode: 0o755}, []byte("#!/bin/sh\r\necho hi\r\n"))
	put(&tar.Header{Name: "bin/plain", Mode: 0o644}, []byte("text\n"))
	for _, name := range more {
		put(&tar.Header{Name: name, Mode: 0o644}, nil)
	}
	for name := range strings.FieldsSeq(string(list)) {
		if name != "busybox" {
			put(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}, nil)
		}
	}
	err = errors.Join(err, w.Close())
	return b.Bytes(), err
}

// cmdCode runs a program that must end with an exit code: code N PROGRAM ARG...
func cmdCode(ts *testscript.TestScript, _ bool, args []string) {
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		if got == 0 && slices.Contains(args, "--detach") && waited(ts, strings.TrimSpace(ts.ReadFile("stdout"))) {
			cmdCode(ts, false, args)
			return
		}
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

// waited reports whether a detached task had to wait for room, as that of another test: nobody waits for such. Then it
// waits for its end.
func waited(ts *testscript.TestScript, id string) bool {
	_ = ts.Exec("berth", "wait", id)
	ts.Check(ts.Exec("berth", "inspect", id))
	return strings.Contains(ts.ReadFile("stdout"), `"waiting for `)
}

// waits is what a task says that had to wait, since tests that run at once share the machine's ledger; and of what takes long,
// on a machine that is busy.
var waits = regexp.MustCompile(`(?m)^berth: (waiting for .*|no longer waiting|(pulling|importing) \S+|(fetching inputs|collecting outputs)(, for .*)?)\n`)

// lasts is what a command says, on a machine that is busy, of what takes it long.
var lasts = regexp.MustCompile(`(?m)^berth: (fetching inputs|collecting outputs)(, for .*)?\n`)

// cmdSays checks that the last command wrote one line to standard error, and nothing to standard output:
// says LINE, of which … is any text.
func cmdSays(ts *testscript.TestScript, _ bool, args []string) {
	out, got := ts.ReadFile("stdout"), ts.ReadFile("stderr")
	if out != "" {
		ts.Fatalf("standard output is %q", out)
	}
	if !strings.Contains(args[0], "waiting") {
		got = waits.ReplaceAllString(got, "")
	}
	line, ok := strings.CutSuffix(got, "\n")
	if !ok || strings.Contains(line, "\n") || !matches(line, args[0]) {
		ts.Fatalf("standard error is\n%swant one line\n%s", got, args[0])
	}
}

// cmdCmpResult compares r.json: cmp-result STATE REASON EXIT-CODE BERTH-EXIT-CODE.
func cmdCmpResult(ts *testscript.TestScript, _ bool, args []string) {
	var r struct {
		State, Reason string
		Code          *int `json:"exit_code"`
		Own           *int `json:"berth_exit_code"`
	}
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("r.json")), &r))
	if r.Code == nil || r.Own == nil {
		ts.Fatalf("an exit code is missing: %s", ts.ReadFile("r.json"))
	}
	if got, want := fmt.Sprint(r.State, " ", dash(r.Reason), " ", *r.Code, " ", *r.Own), strings.Join(args, " "); got != want {
		ts.Fatalf("the result is %s, want %s", got, want)
	}
}

func matches(line, pattern string) bool {
	parts := strings.Split(pattern, "…")
	if len(parts) == 1 {
		return line == pattern
	}
	rest, ok := strings.CutPrefix(line, parts[0])
	if !ok || !strings.HasSuffix(rest, parts[len(parts)-1]) {
		return false
	}
	rest = strings.TrimSuffix(rest, parts[len(parts)-1])
	for _, p := range parts[1 : len(parts)-1] {
		if _, rest, ok = strings.Cut(rest, p); !ok {
			return false
		}
	}
	return true
}

// cmdClean checks that nothing is left of tasks but their records and logs.
func cmdClean(ts *testscript.TestScript, _ bool, _ []string) {
	data := ts.Getenv("BERTH_DATA_DIR")
	for _, glob := range []string{"sandboxes/*", "docker/*/sandboxes/*", "docker/*/trash/*", "tasks/*/work", "images/work/*", "images/tmp/*"} {
		left, err := filepath.Glob(filepath.Join(data, glob))
		// What a daemon that was asked has yet to take away, berth's keeper removes when it has.
		for end := time.Now().Add(daemonsTime); ts.Getenv("BERTH_ENGINE") == "docker" && len(left) > 0 && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			left, err = filepath.Glob(filepath.Join(data, glob))
		}
		ts.Check(err)
		if len(left) > 0 {
			ts.Fatalf("left over: %q", left)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	ts.Check(err)
	if bytes.Contains(mounts, []byte(data)) {
		ts.Fatalf("a mount of %s is left over", data)
	}
	if instance, err := os.ReadFile(filepath.Join(data, "instance")); err == nil {
		for _, glob := range []string{"/sys/fs/cgroup/*/*", "/sys/fs/cgroup/*", "/sys/fs/cgroup/*/*/*", "/sys/fs/cgroup/*/*/*/*"} {
			cgroups, err := filepath.Glob(glob + "/cgroup.procs")
			ts.Check(err)
			for _, procs := range cgroups {
				if raw, err := os.ReadFile(procs); err == nil && len(raw) > 0 && strings.Contains(procs, strings.TrimSpace(string(instance))) &&
					filepath.Base(filepath.Dir(procs)) != "conmon" { // Podman's, for five minutes after an exec

					ts.Fatalf("processes are left over in %s", procs)
				}
			}
		}
	}
}

// cmdGPUs makes a host with GPUs, whose GPUs are lent from here on: gpus NVIDIA AMD [SLICES], how many there are of each, and of
// the first of NVIDIA's.
func cmdGPUs(ts *testscript.TestScript, _ bool, args []string) {
	var o devicetest.Options
	_, err := fmt.Sscan(strings.Join(append(args, "0"), " "), &o.NVIDIA, &o.AMD, &o.MIG)
	ts.Check(err)
	h := devicetest.New(ts.Value(testKey{}).(testing.TB), o)
	ts.Setenv("BERTH_GPU_ROOT", h.Root)
	for i, g := range append(slices.Clone(h.NVIDIA), h.AMD...) {
		ts.Setenv(fmt.Sprintf("GPU%d", i), g.UUID)
		ts.Setenv(fmt.Sprintf("NODE%d", i), g.Node.Path)
		ts.Setenv(fmt.Sprintf("HOSTNODE%d", i), h.Path(g.Node.Path))
		for j, s := range g.Slices {
			ts.Setenv(fmt.Sprintf("SLICE%d", j), s.UUID)
			ts.Setenv(fmt.Sprintf("SLICENODE%d", j), s.Node.Path)
		}
	}
}

// cmdCDIHook puts berth-cdi-hook into the path, as it is shipped: static, so that it runs in any image.
func cmdCDIHook(ts *testscript.TestScript, _ bool, _ []string) {
	dir, err := cdiHook()
	ts.Check(err)
	ts.Setenv("PATH", dir+":"+ts.Getenv("PATH"))
}

// hookDir is where cdiHook has built; "" if it has not.
var hookDir string

// cdiHook builds it once for all scripts.
var cdiHook = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "berth-test-hook"); err != nil {
		return "", err
	}
	hookDir = dir
	if err = os.Chmod(dir, 0o755); err != nil { // a task's user goes there
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir, "github.com/berth-project/berth/cmd/"+hookName)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", hookName, err, out)
	}
	return dir, nil
})

// testKey is under what scripts find the test that they are of.
type testKey struct{}

// cmdAwait runs a command again and again until its output has a text: await TEXT PROGRAM ARG...
func cmdAwait(ts *testscript.TestScript, _ bool, args []string) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		_ = ts.Exec(args[1], args[2:]...)
		if strings.Contains(ts.ReadFile("stdout")+ts.ReadFile("stderr"), args[0]) {
			return
		}
	}
	ts.Fatalf("%q never came", args[0])
}

// endMonitor ends the monitor of a data directory, which would stay for a while.
func endMonitor(data string) {
	pids := processes("berth-monitor\x00--data-dir\x00" + data + "\x00")
	for _, pid := range append(pids, processes(docker.KeeperName+"\x00--data-dir\x00"+data+"/")...) {
		_ = syscall.Kill(pid, syscall.SIGTERM)
		for range 500 {
			if syscall.Kill(pid, 0) != nil {
				break
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// processes are those whose command line holds a text.
func processes(text string) (pids []int) {
	files, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range files {
		if raw, err := os.ReadFile(f); err == nil && bytes.Contains(raw, []byte(text)) {
			if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(f))); err == nil {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}
