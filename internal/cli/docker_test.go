package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
)

// startedDaemon is a daemon of all tests here, started by the first that needs it.
type startedDaemon struct {
	once   sync.Once
	daemon *dockertest.Daemon
	err    error
}

var dockerd, podmand, remoted startedDaemon

func (s *startedDaemon) start(t testing.TB, name string, f func(dir string) (*dockertest.Daemon, error)) *dockertest.Daemon {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: a daemon is started")
	}
	s.once.Do(func() {
		dir, err := os.MkdirTemp("/var/tmp", "berth-"+name+"-")
		if err != nil {
			s.err = err
			return
		}
		s.daemon, s.err = f(dir)
	})
	if s.err != nil {
		t.Fatalf("needs %s: %v", name, s.err)
	}
	return s.daemon
}

func startDockerd(t testing.TB) *dockertest.Daemon {
	t.Helper()
	return dockerd.start(t, "dockerd", func(dir string) (*dockertest.Daemon, error) {
		return dockertest.Start(context.Background(), dockertest.Options{Dir: dir, Bridge: true})
	})
}

func startPodman(t testing.TB) *dockertest.Daemon {
	t.Helper()
	return podmand.start(t, "podman", func(dir string) (*dockertest.Daemon, error) {
		return dockertest.StartPodman(context.Background(), dir)
	})
}

// ownDockerd is a daemon of the test's own, to do things to.
func ownDockerd(t *testing.T, opts dockertest.Options) *dockertest.Daemon {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: a daemon is started")
	}
	dir, err := os.MkdirTemp("/var/tmp", "berth-dockerd-")
	if err != nil {
		t.Fatal(err)
	}
	opts.Dir = dir
	d, err := dockertest.Start(context.Background(), opts)
	if err != nil {
		t.Fatal("needs a Docker daemon:", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// startRemote starts a daemon that is as on another machine.
func startRemote(t testing.TB) *dockertest.Daemon {
	t.Helper()
	return remoted.start(t, "dockerd", func(dir string) (*dockertest.Daemon, error) {
		return dockertest.Start(context.Background(), dockertest.Options{Dir: dir, Bridge: true, Remote: true})
	})
}

// stopDaemons ends the tests' daemons, where there are any.
func stopDaemons() {
	for _, s := range []*startedDaemon{&dockerd, &podmand, &remoted} {
		if s.daemon == nil {
			continue
		}
		if err := s.daemon.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "stop a daemon:", err)
		}
	}
}

// TestScriptsDocker runs the scripts on a Docker daemon: the same tasks, the same answers.
func TestScriptsDocker(t *testing.T) { scriptsOn(t, startDockerd(t)) }

// TestScriptsPodman runs them on Podman's service.
func TestScriptsPodman(t *testing.T) { scriptsOn(t, startPodman(t), "again") }

// TestScriptsRemote runs them on a Docker daemon on another machine.
func TestScriptsRemote(t *testing.T) {
	scriptsWith(t, startRemote(t).Remote().Env(), "remote", "again")
}

func scriptsOn(t *testing.T, d *dockertest.Daemon, conditions ...string) {
	t.Helper()
	scriptsWith(t, []string{"DOCKER_HOST=" + d.Host()}, conditions...)
}

func scriptsWith(t *testing.T, vars []string, conditions ...string) {
	t.Helper()
	testscript.Run(t, params(t, func(env *testscript.Env) error {
		env.Vars = append(env.Vars, append(vars, "BERTH_ENGINE=docker")...)
		return setup(env)
	}, append(conditions, engineDocker)...))
}

// onDaemons runs a test on each daemon, with a data directory in which berth runs tasks there. At its end nothing of that
// directory's is left on one that is on another machine.
func onDaemons(t *testing.T, f func(*testing.T, *bench)) {
	t.Helper()
	for name, vars := range map[string]func(testing.TB) []string{
		"docker": func(t testing.TB) []string { return []string{"DOCKER_HOST=" + startDockerd(t).Host()} },
		"podman": func(t testing.TB) []string { return []string{"DOCKER_HOST=" + startPodman(t).Host()} },
		"remote": func(t testing.TB) []string { return startRemote(t).Remote().Env() },
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, append(vars(t), "BERTH_ENGINE=docker")...)
			f(t, b)
			if name == "remote" {
				b.goneFrom(remoted.daemon)
			}
		})
	}
}

// goneFrom checks that a daemon has nothing with this data directory's label.
func (b *bench) goneFrom(d *dockertest.Daemon) {
	b.t.Helper()
	instance, err := os.ReadFile(filepath.Join(b.data, "instance"))
	if err != nil {
		b.t.Fatal(err)
	}
	api, err := client.New(client.WithHost(d.Host()))
	if err != nil {
		b.t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	own := client.Filters{}.Add("label", docker.LabelOwner+"="+strings.TrimSpace(string(instance)))
	var left []string
	for end := time.Now().Add(daemonsTime); ; time.Sleep(50 * time.Millisecond) {
		left = nil
		containers, err := api.ContainerList(b.t.Context(), client.ContainerListOptions{All: true, Filters: own})
		if err != nil {
			b.t.Fatal(err)
		}
		for _, c := range containers.Items {
			left = append(left, "container "+strings.Join(c.Names, ","))
		}
		volumes, err := api.VolumeList(b.t.Context(), client.VolumeListOptions{Filters: own})
		if err != nil {
			b.t.Fatal(err)
		}
		for _, v := range volumes.Items {
			left = append(left, "volume "+v.Name)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("left on the daemon: %q", left)
		}
	}
}

// word is a word by which processes of this data directory's tasks can be told from all others of the host, where they have it in
// their command lines.
func (b *bench) word() string { return "in-the-task:" + b.data }

// gone waits until nothing is left of the tasks but their records and logs: no process with the word.
func (b *bench) gone(within time.Duration) {
	b.t.Helper()
	var left, pids []string
	for end := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		left, _ = filepath.Glob(filepath.Join(b.data, "docker", "*", "sandboxes", "*"))
		pids = pids[:0]
		for _, pid := range processes(b.word()) {
			pids = append(pids, fmt.Sprint(pid))
		}
		if len(left)+len(pids) == 0 {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("left over after %v: %q, processes %v", within, left, pids)
		}
	}
}

func (b *bench) keeper() int {
	b.t.Helper()
	pids := processes(docker.KeeperName + "\x00--data-dir\x00" + b.data + "/")
	if len(pids) != 1 {
		b.t.Fatalf("keepers: %v", pids)
	}
	return pids[0]
}

// workersEnd waits until no worker brings a task of this data directory forward; those of other tests are none of its business.
func (b *bench) workersEnd() {
	b.t.Helper()
	b.within(time.Minute, "its workers have ended", func() bool {
		for _, pid := range processes("\x00--data-dir\x00" + b.data + "\x00") {
			if slices.Contains(processes("\x00worker\x00"), pid) {
				return false
			}
		}
		return true
	})
}

// await runs berth until its output has a text.
func (b *bench) await(text string, args ...string) {
	b.t.Helper()
	out := ""
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if out, _ = b.output(args...); strings.Contains(out, text) {
			return
		}
	}
	b.t.Fatalf("%q never came: %s", text, out)
}

func TestDockerKilledInTheForeground(t *testing.T) { onDaemons(t, dockerKilledInTheForeground) }

func dockerKilledInTheForeground(t *testing.T, b *bench) {
	t.Helper()
	cmd, _, _ := b.start("bb", "sh", "-c", `echo up; while true; do sleep 0.05; done`, b.word())
	b.signal(cmd, syscall.SIGKILL)
	_ = cmd.Wait()
	b.gone(daemonsTime) // two on a machine that has nothing else to do
	b.await(`"state":"SYSTEM_ERROR","reason":"Lost"`, "ps", "-a", "--format", "json")
	if out, code := b.output("system", "cleanup"); out != "" || code != 0 {
		t.Errorf("a cleanup finds %q, exit code %d", out, code)
	}
}

// daemonsTime is how long a daemon, which may be busy, may take until nothing is left of a task.
const daemonsTime = 30 * time.Second

// TestDockerKeeperKilled: in the foreground nothing ends with the keeper, and another takes its place.
func TestDockerKeeperKilled(t *testing.T) { onDaemons(t, dockerKeeperKilled) }

func dockerKeeperKilled(t *testing.T, b *bench) {
	t.Helper()
	cmd, rest, _ := b.start("bb", "sh", "-c", `echo up; sleep 3; echo done`, b.word())
	first := b.keeper()
	if err := syscall.Kill(first, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := rest(); got != "done\n" {
		t.Errorf("the task wrote %q", got)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	b.gone(daemonsTime)
	cmd, _, _ = b.start("bb", "sh", "-c", `echo up; while true; do sleep 0.05; done`, b.word())
	second := b.keeper()
	if err := syscall.Kill(second, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	another := func(pid int) bool { return pid != second } // that may be there still, for a moment
	for end := time.Now().Add(20 * time.Second); !slices.ContainsFunc(processes(docker.KeeperName+"\x00--data-dir\x00"+b.data+"/"), another); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no keeper took the place of the one that was killed")
		}
	}
	time.Sleep(500 * time.Millisecond)
	b.signal(cmd, syscall.SIGKILL)
	_ = cmd.Wait()
	b.gone(daemonsTime)
}

// TestDockerDetached: a task of two steps goes on although all of berth is killed while the first runs. Its logs are
// whole, and its exit is its own.
func TestDockerDetached(t *testing.T) { onDaemons(t, dockerDetached) }

func dockerDetached(t *testing.T, b *bench) {
	t.Helper()
	doc := `{"name": "job", "executors": [
	  {"image": "bb", "command": ["sh", "-c", "echo one; while [ ! -e /v/go ]; do sleep 0.05; done; seq 1000", "` + b.word() + `"]},
	  {"image": "bb", "command": ["sh", "-c", "echo two; exit 6", "` + b.word() + `"]}], "volumes": ["/v"]}`
	if err := os.WriteFile(filepath.Join(b.dir, "task.json"), []byte(doc), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := b.output("run", "--detach", "-f", "task.json"); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	b.await("one", "logs", "job")
	b.workersEnd()
	if err := syscall.Kill(b.keeper(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if out, code := b.output("exec", "job", "touch", "/v/go"); code != 0 {
		t.Fatalf("exec: exit code %d: %s", code, out)
	}
	if out, _ := b.output("wait", "job"); out != "6\n" {
		t.Errorf("wait: %s", out)
	}
	want := "one\n"
	for i := 1; i <= 1000; i++ {
		want += fmt.Sprintln(i)
	}
	if out, _ := b.output("logs", "job"); out != want+"two\n" {
		t.Errorf("logs: %d bytes, want %d", len(out), len(want)+4)
	}
	b.gone(daemonsTime)
}

// TestDockerRemoteOutputs: a detached task whose berth and keeper are killed has its outputs, of a daemon on another machine
// whose TLS files the environment names no more.
func TestDockerRemoteOutputs(t *testing.T) {
	b := newBench(t, append(startRemote(t).Remote().Env(), "BERTH_ENGINE=docker")...)
	if err := os.WriteFile(filepath.Join(b.dir, "in"), []byte("content\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, code := b.output("run", "--detach", "--name", "job", "--input", "in:/in/file", "--output", "out:/v/out", "--volume", "/v", "bb",
		"sh", "-c", "echo up; while [ ! -e /v/go ]; do sleep 0.05; done; cp /in/file /v/out", b.word()); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	b.env = nil
	b.await("up", "logs", "job")
	b.workersEnd()
	if err := syscall.Kill(b.keeper(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if out, code := b.output("exec", "job", "touch", "/v/go"); code != 0 {
		t.Fatalf("exec: exit code %d: %s", code, out)
	}
	if out, _ := b.output("wait", "job"); out != "0\n" {
		t.Errorf("wait: %s", out)
	}
	if raw, err := os.ReadFile(filepath.Join(b.dir, "out")); string(raw) != "content\n" {
		t.Errorf("the output is %q, %v", raw, err)
	}
	b.gone(daemonsTime)
	b.goneFrom(remoted.daemon)
}

// TestDockerElsewhere: what is asked about a task is asked of its own engine, whatever the environment says now.
func TestDockerElsewhere(t *testing.T) { onDaemons(t, dockerElsewhere) }

func dockerElsewhere(t *testing.T, b *bench) {
	t.Helper()
	if out, code := b.output("run", "--detach", "--name", "job", "bb", "sh", "-c", "echo up; while true; do sleep 0.1; done", b.word()); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	b.env = nil // the embedded engine
	b.await("up", "logs", "job")
	if out, code := b.output("exec", "job", "sh", "-c", "exit 9"); code != 9 {
		t.Errorf("exec: exit code %d: %s", code, out)
	}
	if out, code := b.output("system", "cleanup"); out != "" || code != 0 {
		t.Errorf("cleanup: exit code %d, %s", code, out)
	}
	if out, code := b.output("stop", "--now", "job"); code != 0 {
		t.Errorf("stop: exit code %d: %s", code, out)
	}
	if out, _ := b.output("wait", "job"); out != "130\n" {
		t.Errorf("wait: %s", out)
	}
	b.gone(daemonsTime)
}
