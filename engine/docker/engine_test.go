package docker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/cdi/grant"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/client"
)

// begin starts a script in a sandbox of its own, with a volume at /vol.
func begin(t *testing.T, e *docker.Engine, img berth.Image, script string) (berth.Sandbox, berth.Container) {
	t.Helper()
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/vol"}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := s.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return s, step(t, s, img, script)
}

func step(t *testing.T, s berth.Sandbox, img berth.Image, script string) berth.Container {
	t.Helper()
	c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"sh", "-c", script}})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func wait(t *testing.T, c berth.Container) berth.Exit {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	exit, err := c.Wait(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return exit
}

func logs(t *testing.T, c berth.Container, stderr bool) string {
	t.Helper()
	r, err := c.(berth.LogReader).Logs(t.Context(), berth.LogOptions{Stderr: stderr})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestSignals holds what the suite's "end by signal" asks for, as far as the daemon can say it.
func TestSignals(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{})
	_, c := begin(t, e, img, "kill -9 $$; sleep 10")
	exit := wait(t, c)
	if exit.Reason != berth.Exited || exit.Code != 137 || exit.Signal != 0 || !strings.Contains(exit.Detail, "signal 9") {
		t.Errorf("exit %+v; want Exited, 137, and a detail that names signal 9", exit)
	}
}

func TestExecEnds(t *testing.T) {
	t.Parallel()
	execEnds(t, daemon(t).Host(), "OCI runtime exec failed: exec")
}

// execEnds: words are those of the daemon of an exec that it cannot start.
func execEnds(t *testing.T, host, words string) {
	t.Helper()
	e, img := newEngine(t, docker.Config{Host: host})
	s, c := begin(t, e, img, "sleep 1000")
	for _, row := range []struct {
		name    string
		command []string
		reason  berth.Reason
		code    int
		out     string
		detail  string
	}{
		{"not there", []string{"no-such-command"}, berth.NeverStarted, 127, "", "exec no-such-command: no such file or directory"},
		{"not there by its path", []string{"/no/such"}, berth.NeverStarted, 127, "", "exec /no/such: no such file or directory"},
		{"cannot be run", []string{"/etc/passwd"}, berth.NeverStarted, 126, "", "exec /etc/passwd: permission denied"},
		{"a directory", []string{"/etc"}, berth.NeverStarted, 126, "", "exec /etc: permission denied"},
		{"below a file", []string{"/etc/passwd/x"}, berth.NeverStarted, 126, "", "exec /etc/passwd/x: not a directory"},
		{"a code of a signal", []string{"sh", "-c", "exit 137"}, berth.Exited, 137, "", ""},
		{"a code of a command not there", []string{"sh", "-c", "echo x; exit 127"}, berth.Exited, 127, "x\n", ""},
		{"the daemon's words from the command", []string{"sh", "-c", "echo '" + words + "'"}, berth.Exited, 0, words + "\n", ""},
		{"the same to standard error", []string{"sh", "-c", "echo '" + words + "' >&2; echo out"}, berth.Exited, 0, "out\n" + words + "\n", ""},
	} {
		var out, errs bytes.Buffer
		exit, err := c.(berth.Execer).Exec(t.Context(), berth.ExecSpec{Command: row.command}, berth.Stdio{Out: &out, Err: &errs})
		_, _ = errs.WriteTo(&out)
		if err != nil || exit.Reason != row.reason || exit.Code != row.code || out.String() != row.out || exit.Detail != row.detail {
			t.Errorf("%s: %+v, output %q, error %v; want %s, %d, %q, %q", row.name, exit, out.String(), err, row.reason, row.code, row.out, row.detail)
		}
		if row.reason != berth.NeverStarted {
			continue
		}
		bare, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, Command: row.command, NoInit: true})
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
			continue
		}
		if exit := wait(t, bare); exit.Reason != row.reason || exit.Code != row.code || exit.Detail != row.detail {
			t.Errorf("%s, as the step's own: %+v; want %s, %d, %q", row.name, exit, row.reason, row.code, row.detail)
		}
	}
	exit, err := c.(berth.Execer).Exec(t.Context(), berth.ExecSpec{Command: []string{"true"}, WorkingDir: "/nothere"}, berth.Stdio{})
	if err != nil || exit.Reason != berth.NeverStarted || exit.Detail != "working directory /nothere: no such file or directory" {
		t.Errorf("in a directory that is not there: %+v, %v", exit, err)
	}
	if _, err := c.(berth.Execer).Exec(t.Context(), berth.ExecSpec{Command: []string{"true"}, Privileged: true}, berth.Stdio{}); !errors.Is(err, berth.ErrUnsupported) {
		t.Errorf("a privileged exec: %v", err)
	}
}

// TestStoppedTwice: of two who stop a container at once, neither takes the other for its end by itself.
func TestStoppedTwice(t *testing.T) {
	t.Parallel()
	for name, start := range map[string]func(testing.TB) *dockertest.Daemon{"docker": daemon, "podman": podman} {
		t.Run(name, func(t *testing.T) {
			e, img := newEngine(t, docker.Config{Host: start(t).Host()})
			s, _ := begin(t, e, img, "true")
			for range 4 {
				c := step(t, s, img, "sleep 1000")
				var wg sync.WaitGroup
				for range 3 {
					wg.Go(func() {
						if err := c.Stop(t.Context(), 0); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				if exit := wait(t, c); exit.Reason != berth.Stopped {
					t.Fatalf("exit %+v", exit)
				}
			}
		})
	}
}

// TestNoHostFiles: no mount shows a directory of the host but volumes, files under /etc, and the daemon's init.
func TestNoHostFiles(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{})
	_, c := begin(t, e, img, "awk '{print $5}' /proc/self/mountinfo | grep -vE '^/($|proc|sys|dev|etc/(hosts|hostname|resolv.conf)$)' | sort -u")
	if exit, got := wait(t, c), logs(t, c, false); exit.Code != 0 || got != "/sbin/docker-init\n/vol\n" {
		t.Errorf("exit %d, mounts %q", exit.Code, got)
	}
}

// chatter writes lines of all lengths to both streams, some of them without an end, before and after it is told to go.
const chatter = `say() { printf "$1 unfinished"; sleep 0.3; printf ", finished\n\n"; head -c 40000 /dev/zero | tr '\0' x; echo; seq 1 3000; seq 1 3000 >&2; printf "$1 last"; }
say before; touch /vol/said; while ! [ -e /vol/go ]; do sleep 0.05; done; say after; exit 7`

// TestRestart: what a container writes while no berth is there is read from the daemon's log, to the byte.
func TestRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, img := newEngine(t, docker.Config{Dir: dir})
	whole, c := begin(t, e, img, strings.ReplaceAll(chatter, "while ! [ -e /vol/go ]", "while false"))
	wait(t, c)
	wantOut, wantErr := logs(t, c, false), logs(t, c, true)
	if len(wantOut) < 2*40000 || whole.ID() == "" {
		t.Fatalf("%d bytes", len(wantOut))
	}

	first, err := docker.New(docker.Config{Host: daemon(t).Host(), Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	s, err := first.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/vol"}}})
	if err != nil {
		t.Fatal(err)
	}
	c = step(t, s, img, chatter)
	root, err := s.Volume(t.Context(), "/vol")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	for {
		if _, err := root.Stat("said"); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err := first.Close(); err != nil { // berth is gone
		t.Fatal(err)
	}
	if _, err := c.Wait(t.Context()); !errors.Is(err, berth.ErrShutdown) {
		t.Errorf("Wait of an engine that was closed: %v", err)
	}
	if err := root.WriteFile("go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	time.Sleep(500 * time.Millisecond) // it writes on

	s, err = e.Attach(t.Context(), s.ID())
	if err != nil {
		t.Fatal(err)
	}
	c, err = s.Container(t.Context(), c.ID())
	if err != nil {
		t.Fatal(err)
	}
	exit := wait(t, c)
	if exit.Reason != berth.Exited || exit.Code != 7 {
		t.Errorf("exit %+v", exit)
	}
	for name, p := range map[string][2]string{"stdout": {logs(t, c, false), wantOut}, "stderr": {logs(t, c, true), wantErr}} {
		if p[0] != p[1] {
			t.Errorf("%s: %d bytes, which are not the %d that were written", name, len(p[0]), len(p[1]))
		}
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

// TestOwners: two berths on one daemon see and touch their own only.
func TestOwners(t *testing.T) {
	t.Parallel()
	one, img := newEngine(t, docker.Config{})
	two, _ := newEngine(t, docker.Config{})
	s, c := begin(t, one, img, "while ! [ -e /vol/go ]; do sleep 0.05; done; exit 3")
	other, err := two.Open(t.Context(), berth.SandboxSpec{ID: s.ID(), Volumes: []berth.Volume{{Path: "/vol"}}}) // the same name
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := other.Start(t.Context(), berth.StepSpec{ID: c.ID(), Image: img, Command: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	all, err := two.List(t.Context())
	if err != nil || len(all) != 2 {
		t.Errorf("the second lists %+v, error %v; want its sandbox and its container", all, err)
	}
	if err := other.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, theirs); exit.Reason != berth.Stopped {
		t.Errorf("a container of a closed sandbox: %+v", exit)
	}
	step(t, s, img, "touch /vol/go")
	if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 3 {
		t.Errorf("the first's container: %+v", exit)
	}
}

func TestNew(t *testing.T) {
	for name, row := range map[string]struct {
		cfg  docker.Config
		want error
	}{
		"an address that makes no sense": {docker.Config{Host: "nonsense"}, berth.ErrInvalid},
		"another machine without TLS":    {docker.Config{Host: "tcp://10.0.0.1:2375"}, berth.ErrDenied},
		"an owner that is no id":         {docker.Config{Host: "unix:///x", Owner: "A B"}, berth.ErrInvalid},
	} {
		row.cfg.Dir = t.TempDir()
		if _, err := docker.New(row.cfg); !errors.Is(err, row.want) {
			t.Errorf("%s: %v; want %v", name, err, row.want)
		}
	}
	e, err := docker.New(docker.Config{Host: "unix://" + filepath.Join(t.TempDir(), "none"), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	if _, err := e.Info(t.Context()); !errors.Is(err, berth.ErrUnavailable) {
		t.Errorf("no daemon: %v; want %v", err, berth.ErrUnavailable)
	}
}

func TestInfo(t *testing.T) {
	e, _ := newEngine(t, docker.Config{})
	info, err := e.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Name != "docker" || !strings.Contains(info.Version, "runc ") || info.Total.CPU != float64(runtime.NumCPU()) || info.Total.Memory < 1<<28 {
		t.Errorf("%+v", info)
	}
}

func TestImage(t *testing.T) {
	t.Parallel()
	e, _ := newEngine(t, docker.Config{})
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer server.Close()
	repo := strings.TrimPrefix(server.URL, "http://") + "/test/image"
	img, err := random.Image(1<<20, 3)
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	cfg = cfg.DeepCopy()
	cfg.OS, cfg.Architecture, cfg.Config.Env = "linux", runtime.GOARCH, []string{"A=1"}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		t.Fatal(err)
	}
	ref, err := name.ParseReference(repo+":latest", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(ref, img, remote.WithContext(t.Context())); err != nil {
		t.Fatal(err)
	}
	digest, err := img.Digest()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.Image(t.Context(), berth.ImageRequest{Ref: repo, Policy: berth.PullNever}); !errors.Is(err, berth.ErrNotFound) {
		t.Errorf("an image that is not there, never pulled: %v", err)
	}
	var mu sync.Mutex
	phases := map[string]bool{}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			got, err := e.Image(t.Context(), berth.ImageRequest{Ref: repo, Progress: func(p berth.Progress) {
				mu.Lock()
				defer mu.Unlock()
				phases[p.Phase] = true
			}})
			if err != nil || got.Ref != repo+":latest" || got.Digest != digest.String() || len(got.Config.Env) != 1 {
				t.Errorf("%+v, %v; want %s:latest, %s", got, err, repo, digest)
			}
		})
	}
	wg.Wait()
	if !phases["resolve"] || !phases["done"] {
		t.Errorf("phases %v", phases)
	}
	server.Close()
	if _, err := e.Image(t.Context(), berth.ImageRequest{Ref: repo}); err != nil { // present: the registry is not asked
		t.Error(err)
	}
	for ref, want := range map[string]error{
		"library://x/y":             berth.ErrUnsupported,
		"UPPER":                     berth.ErrInvalid,
		repo + ":other":             berth.ErrUnavailable,
		"localhost/no-such-image:1": berth.ErrNotFound,
	} {
		policy := berth.PullMissing
		if strings.HasPrefix(ref, "localhost/") { // not to ask the registry of this host
			policy = berth.PullNever
		}
		if _, err := e.Image(t.Context(), berth.ImageRequest{Ref: ref, Policy: policy}); !errors.Is(err, want) {
			t.Errorf("%s: %v; want %v", ref, err, want)
		}
	}
}

// TestLongLastLine: a command that closes its streams long before its end has them read again from the daemon's
// log, which does not say whether a long last line was finished.
func TestLongLastLine(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{})
	_, c := begin(t, e, img, "head -c 20000 /dev/zero | tr '\\0' x; exec >&- 2>&-; sleep 7; exit 4")
	exit := wait(t, c)
	if got := logs(t, c, false); exit.Code != 4 || got != strings.Repeat("x", 20000) {
		t.Errorf("exit %+v, %d bytes of 20000", exit, len(got))
	}
}

// TestLentDevices: a daemon that cannot run the hooks of what was lent starts nothing; why a container's devices were
// not looked at is in its exit; and one that holds something else is ended.
func TestLentDevices(t *testing.T) {
	nodes := fakeGPUs(t)
	e, img := newEngine(t, docker.Config{})
	open := func(edits string) berth.Sandbox {
		t.Helper()
		n := nodes[0]
		n.Container = "/dev/nvidia0"
		sb, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Grants: []berth.Grant{{Vendor: "nvidia", UUID: "GPU-0", Nodes: []berth.Node{n}, Edits: json.RawMessage(edits)}}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = sb.Close(context.Background()) })
		return sb
	}
	sb := open(`{"hooks":[{"hookName":"createContainer","path":"/bin/true","args":["true","update-ldcache"]}]}`)
	_, err := sb.Start(t.Context(), berth.StepSpec{ID: "s", Image: img, Command: []string{"true"}})
	if cdi := injectsDevices(t); cdi && err != nil || !cdi && (!errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), "update-ldcache")) {
		t.Errorf("hooks, on a daemon that injects CDI devices (%v): %v", cdi, err)
	}
	sb = open(`{}`)
	_, err = sb.Start(t.Context(), berth.StepSpec{
		ID: "other", Image: img, Command: []string{"sleep", "60"},
		Mounts: []berth.Mount{{Source: nodes[1].Host, Target: "/dev/nvidia0"}},
	})
	if !errors.Is(err, grant.ErrDiffers) || !strings.Contains(err.Error(), "/dev/nvidia0") {
		t.Errorf("another device in its place: %v", err)
	}
	if left, err := e.List(t.Context()); err != nil || slices.ContainsFunc(left, func(s berth.Status) bool { return s.Container == "other" }) {
		t.Errorf("it is left: %+v, %v", left, err)
	}
	for name, tt := range map[string]struct {
		command string
		seen    bool
	}{"long": {"sleep 5; exit 3", true}, "short": {"exit 3", false}} {
		c, err := sb.Start(t.Context(), berth.StepSpec{ID: name, Image: img, Command: []string{"sh", "-c", tt.command}})
		if err != nil {
			t.Fatal(err)
		}
		exit := wait(t, c)
		if exit.Code != 3 || tt.seen && exit.Unverified != "" {
			t.Errorf("%s: %+v", name, exit)
		}
	}
}

// TestGroup: a container of another user works in a directory of the invoker's group, of mode 0770.
func TestGroup(t *testing.T) {
	t.Parallel()
	const group = 4242
	e, img := newEngine(t, docker.Config{Group: group})
	dir := t.TempDir()
	if err := errors.Join(os.Chown(dir, 0, group), os.Chmod(dir, 0o770), os.Chmod(filepath.Dir(dir), 0o755)); err != nil {
		t.Fatal(err)
	}
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	c, err := s.Start(t.Context(), berth.StepSpec{
		ID: berth.NewID(), Image: img, User: "1234:1234", Groups: []string{"77"}, Command: []string{"sh", "-c", "id -G; echo done > /work/file"},
		Mounts: []berth.Mount{{Source: dir, Target: "/work"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if exit, got := wait(t, c), logs(t, c, false); exit.Code != 0 || got != "1234 77 4242\n" {
		t.Errorf("exit %+v, groups %q", exit, got)
	}
}

// TestKeys: no keys are anybody else's than the command's: the daemon's own, by which people detach, are what shells go
// back in their history with.
func TestKeys(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, docker.Config{})
	const script = "stty raw -echo; echo ready; head -c 2 | od -An -tx1"
	keys := []byte{16, 17} // ctrl-p, ctrl-q
	s, c := begin(t, e, img, "sleep 1000")
	r, w := io.Pipe()
	out, done := &syncBuffer{}, make(chan error, 1)
	go func() {
		_, err := c.(berth.Execer).Exec(t.Context(), berth.ExecSpec{Command: []string{"sh", "-c", script}, TTY: true}, berth.Stdio{In: r, Out: out})
		done <- err
	}()
	until(t, "the command is ready", func() bool { return strings.Contains(out.String(), "ready") })
	if _, err := w.Write(keys); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil || !strings.Contains(out.String(), "10 11") {
		t.Errorf("an exec reads %q, %v", out.String(), err)
	}
	c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"sh", "-c", script}, TTY: true, OpenStdin: true})
	if err != nil {
		t.Fatal(err)
	}
	until(t, "the container is ready", func() bool { return strings.Contains(logs(t, c, false), "ready") })
	in, err := c.(berth.StdinWriter).Stdin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := in.Write(keys); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, c); exit.Code != 0 || !strings.Contains(logs(t, c, false), "10 11") {
		t.Errorf("a container reads %q, %+v", logs(t, c, false), exit)
	}
}

// syncBuffer is written and read at once.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestCloseRemovesStrays: a container of a sandbox that has no record, as of a start that could not be undone, ends with the
// sandbox, and with the volume that it holds; what that had on the disk is gone when the engine is closed.
func TestCloseRemovesStrays(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	e, img := newEngine(t, docker.Config{Dir: dir})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/vol", CopyUp: true}}})
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(client.WithHost(daemon(t).Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	labels := map[string]string{docker.LabelOwner: e.Owner(), docker.LabelSandbox: s.ID(), docker.LabelStep: "stray"}
	made, err := api.ContainerCreate(t.Context(), client.ContainerCreateOptions{
		Config: &container.Config{Image: img.ID, Cmd: []string{"true"}, Labels: labels},
		HostConfig: &container.HostConfig{Mounts: []mount.Mount{{
			Type: mount.TypeVolume, Source: "stray-" + s.ID(), Target: "/vol", VolumeOptions: &mount.VolumeOptions{Labels: labels},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := api.ContainerInspect(t.Context(), made.ID, client.ContainerInspectOptions{}); err == nil {
		t.Error("the container is left")
		_, _ = api.ContainerRemove(t.Context(), made.ID, client.ContainerRemoveOptions{Force: true})
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"sandboxes", "trash"} {
		if left, err := os.ReadDir(filepath.Join(dir, d)); err != nil || len(left) > 0 {
			t.Errorf("%s has %v, %v", d, left, err)
		}
	}
}
