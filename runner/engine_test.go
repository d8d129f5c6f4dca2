package runner

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// diskEngine is an engine whose containers are processes of this host, each with a supervisor that outlives
// whoever started it, and whose state lies in files: so that drivers can be killed around it. A container
// sees its root as $R. Each start of a command is a line in the file runs.
type diskEngine struct {
	dir  string
	pull func(ctx context.Context, ref string) error // may be nil
	// fault, where not nil, is asked before each call.
	mu    sync.Mutex
	fault func(call string) error
}

const superviseEnv = "RUNNER_TEST_SUPERVISE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(superviseEnv); dir != "" {
		supervise(dir)
		return
	}
	if os.Getenv(driverEnv) != "" {
		driverMain()
		return
	}
	os.Exit(m.Run())
}

func newDiskEngine(dir string) *diskEngine {
	if err := os.MkdirAll(filepath.Join(dir, "sandboxes"), 0o700); err != nil {
		panic(err)
	}
	return &diskEngine{dir: dir}
}

func (e *diskEngine) failing(call string) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fault == nil {
		return nil
	}
	return e.fault(call)
}

func (e *diskEngine) Info(context.Context) (berth.Info, error) {
	return berth.Info{Name: "disk", Version: "1"}, nil
}

func (e *diskEngine) Image(ctx context.Context, req berth.ImageRequest) (berth.Image, error) {
	if req.Progress != nil {
		req.Progress(berth.Progress{Phase: "resolve"})
	}
	if e.pull != nil {
		if err := e.pull(ctx, req.Ref); err != nil {
			return berth.Image{}, err
		}
	}
	sum := sha256.Sum256([]byte(req.Ref))
	return berth.Image{Ref: req.Ref, ID: "id-" + req.Ref, Digest: "sha256:" + hex.EncodeToString(sum[:])}, nil
}

func (e *diskEngine) sandbox(id string) *diskSandbox {
	return &diskSandbox{e, id, filepath.Join(e.dir, "sandboxes", id)}
}

func (e *diskEngine) Open(_ context.Context, spec berth.SandboxSpec) (berth.Sandbox, error) {
	if err := e.failing("open"); err != nil {
		return nil, err
	}
	s := e.sandbox(spec.ID)
	want := mustJSON(spec)
	if have, err := os.ReadFile(filepath.Join(s.dir, "spec")); err == nil {
		if !bytes.Equal(have, want) {
			return nil, fmt.Errorf("sandbox %s: %w", spec.ID, berth.ErrConflict)
		}
		return s, nil
	}
	tmp, err := os.MkdirTemp(filepath.Join(e.dir, "sandboxes"), ".new-")
	if err != nil {
		return nil, err
	}
	for _, v := range spec.Volumes {
		if err := os.MkdirAll(filepath.Join(tmp, "vol", v.Path), 0o755); err != nil {
			return nil, err
		}
	}
	files := map[string]string{"spec": string(want), "opener": strconv.Itoa(os.Getpid())}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte(content), 0o600); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(filepath.Join(tmp, "c"), 0o700); err != nil {
		return nil, err
	}
	return s, os.Rename(tmp, s.dir)
}

func (e *diskEngine) Attach(_ context.Context, id string) (berth.Sandbox, error) {
	if err := e.failing("attach"); err != nil {
		return nil, err
	}
	s := e.sandbox(id)
	if _, err := os.Stat(s.dir); err != nil {
		return nil, fmt.Errorf("sandbox %s: %w", id, berth.ErrNotFound)
	}
	return s, nil
}

func (e *diskEngine) List(context.Context) ([]berth.Status, error) {
	var out []berth.Status
	dirs, err := filepath.Glob(filepath.Join(e.dir, "sandboxes", "*"))
	if err != nil {
		return nil, err
	}
	for _, d := range dirs {
		out = append(out, berth.Status{Sandbox: filepath.Base(d), State: berth.ContainerCreated})
		cs, err := filepath.Glob(filepath.Join(d, "c", "*"))
		if err != nil {
			return nil, err
		}
		for _, c := range cs {
			st := berth.Status{Sandbox: filepath.Base(d), Container: filepath.Base(c), State: berth.ContainerRunning}
			if exit, ok := readExit(c); ok {
				st.State, st.Exit = berth.ContainerEnded, &exit
			}
			out = append(out, st)
		}
	}
	return out, nil
}

type diskSandbox struct {
	e   *diskEngine
	id  string
	dir string
}

func (s *diskSandbox) ID() string { return s.id }

func (s *diskSandbox) spec() (spec berth.SandboxSpec) {
	b, err := os.ReadFile(filepath.Join(s.dir, "spec"))
	if err == nil {
		err = json.Unmarshal(b, &spec)
	}
	if err != nil {
		panic(err)
	}
	return spec
}

func (s *diskSandbox) Start(_ context.Context, spec berth.StepSpec) (berth.Container, error) {
	if err := s.e.failing("start"); err != nil {
		return nil, err
	}
	c := &diskContainer{s, spec.ID, filepath.Join(s.dir, "c", spec.ID)}
	want := mustJSON(spec)
	if have, err := os.ReadFile(filepath.Join(c.dir, "spec")); err == nil {
		if !bytes.Equal(have, want) {
			return nil, fmt.Errorf("container %s: %w", spec.ID, berth.ErrConflict)
		}
		return c, nil
	}
	if err := c.makeRoot(spec); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(c.dir, "spec"), want, 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), superviseEnv+"="+c.dir, driverEnv+"=")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() { _ = cmd.Wait() }()
	for !exists(filepath.Join(c.dir, "pid")) && !exists(filepath.Join(c.dir, "exit")) {
		time.Sleep(time.Millisecond)
	}
	return c, nil
}

func (s *diskSandbox) Container(_ context.Context, id string) (berth.Container, error) {
	if err := s.e.failing("container"); err != nil {
		return nil, err
	}
	c := &diskContainer{s, id, filepath.Join(s.dir, "c", id)}
	if !exists(c.dir) {
		return nil, fmt.Errorf("container %s: %w", id, berth.ErrNotFound)
	}
	return c, nil
}

func (s *diskSandbox) Volume(_ context.Context, path string) (*os.Root, error) {
	if err := s.e.failing("volume"); err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(filepath.Join(s.dir, "vol", path))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("volume %s: %w", path, berth.ErrNotFound)
	}
	return root, err
}

func (s *diskSandbox) DiskEnforcement() berth.DiskEnforcement { return berth.DiskNone }

func (s *diskSandbox) Monitor(context.Context) (int, error) { return monitorPID(), nil }

func (s *diskSandbox) Close(ctx context.Context) error {
	if err := s.e.failing("close"); err != nil {
		return err
	}
	if !exists(s.dir) {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(s.dir, "spec"))
	if err != nil {
		return os.RemoveAll(s.dir) // a supervisor is removing it
	}
	var spec berth.SandboxSpec
	if err := json.Unmarshal(b, &spec); err != nil {
		return err
	}
	cs, _ := filepath.Glob(filepath.Join(s.dir, "c", "*"))
	for _, c := range cs {
		if err := (&diskContainer{s, filepath.Base(c), c}).Stop(ctx, 0); err != nil {
			return err
		}
	}
	for _, p := range spec.Scratch {
		if err := os.RemoveAll(p); err != nil {
			return err
		}
	}
	return os.RemoveAll(s.dir)
}

type diskContainer struct {
	s   *diskSandbox
	id  string
	dir string
}

// makeRoot makes a root in which volumes and mounts are symbolic links.
func (c *diskContainer) makeRoot(spec berth.StepSpec) error {
	root := filepath.Join(c.dir, "root")
	links := map[string]string{}
	for _, v := range c.s.spec().Volumes {
		links[v.Path] = filepath.Join(c.s.dir, "vol", v.Path)
	}
	for _, m := range spec.Mounts {
		links[m.Target] = m.Source
	}
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	for _, at := range outermost(keys(links)) {
		p := filepath.Join(root, at)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			return err
		}
		if err := os.Symlink(links[at], p); err != nil {
			return err
		}
	}
	for at, to := range links {
		if p := filepath.Join(root, at); !exists(p) {
			if err := os.Symlink(to, p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *diskContainer) ID() string { return c.id }

func (c *diskContainer) Runtime() string { return "sh" }

func (c *diskContainer) Pid() int {
	b, err := os.ReadFile(filepath.Join(c.dir, "pid"))
	if err != nil {
		return 0
	}
	return must(strconv.Atoi(string(b)))
}

func (c *diskContainer) Wait(ctx context.Context) (berth.Exit, error) {
	if err := c.s.e.failing("wait"); err != nil {
		return berth.Exit{}, err
	}
	for {
		if exit, ok := readExit(c.dir); ok {
			return exit, nil
		}
		if !exists(c.dir) {
			return berth.Exit{Reason: berth.Lost, Code: -1}, nil
		}
		select {
		case <-ctx.Done():
			return berth.Exit{}, context.Cause(ctx)
		case <-time.After(3 * time.Millisecond):
		}
	}
}

func (c *diskContainer) Stop(ctx context.Context, grace time.Duration) error {
	if err := c.s.e.failing("stop"); err != nil {
		return err
	}
	end := time.Now().Add(grace)
	sig := syscall.SIGTERM
	for sent := syscall.Signal(0); ; {
		if _, ok := readExit(c.dir); ok || !exists(c.dir) {
			return nil
		}
		if !time.Now().Before(end) {
			sig = syscall.SIGKILL
		}
		if sig != sent {
			_ = os.WriteFile(filepath.Join(c.dir, "stopped"), nil, 0o600)
			if b, err := os.ReadFile(filepath.Join(c.dir, "pid")); err == nil {
				pid, _ := strconv.Atoi(string(b))
				_ = syscall.Kill(-pid, sig)
				sent = sig
			}
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(3 * time.Millisecond):
		}
	}
}

func (c *diskContainer) Remove(ctx context.Context) error {
	if err := c.s.e.failing("remove"); err != nil {
		return err
	}
	if err := c.Stop(ctx, 0); err != nil {
		return err
	}
	return os.RemoveAll(c.dir)
}

func (c *diskContainer) Archive(_ context.Context, path string) (io.ReadCloser, error) {
	p := filepath.Join(c.dir, "root", path)
	b, err := os.ReadFile(p)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("archive %s: %w", path, berth.ErrNotFound)
	} else if err != nil {
		return nil, err
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	err = w.WriteHeader(&tar.Header{Name: filepath.Base(path), Mode: 0o644, Size: int64(len(b))})
	if err == nil {
		_, err = w.Write(b)
	}
	return io.NopCloser(&buf), errors.Join(err, w.Close())
}

// supervise runs the command of the container in dir, in a process that nobody waits for.
func supervise(dir string) {
	var spec berth.StepSpec
	b, err := os.ReadFile(filepath.Join(dir, "spec"))
	if err == nil {
		err = json.Unmarshal(b, &spec)
	}
	if err != nil {
		panic(err)
	}
	sandbox := filepath.Dir(filepath.Dir(dir))
	engine := filepath.Dir(filepath.Dir(sandbox))
	appendLine(filepath.Join(engine, "runs"), spec.ID)
	root := filepath.Join(dir, "root")
	cmd := exec.Command("/bin/sh", "-c", strings.Join(spec.Command, " "))
	cmd.Env = append([]string{"R=" + root, "PATH=/bin:/usr/bin"}, spec.Env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	// As of the embedded engine: what lies there is another's.
	out, err := os.OpenFile(filepath.Join(spec.LogDir, "stdout"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o666)
	if err == nil {
		cmd.Stdout = out
		cmd.Stderr, err = os.Create(filepath.Join(spec.LogDir, "stderr"))
	}
	if err != nil {
		panic(err)
	}
	exit := berth.Exit{Started: time.Now(), Runtime: "sh"}
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	writeFile(filepath.Join(dir, "pid"), strconv.Itoa(cmd.Process.Pid))
	var timedOut bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	var limit <-chan time.Time
	if spec.Timeout > 0 {
		limit = time.After(spec.Timeout)
	}
	bound := bytes.Contains(must(os.ReadFile(filepath.Join(sandbox, "spec"))), []byte(`"bound":true`))
	opener, _ := strconv.Atoi(string(must(os.ReadFile(filepath.Join(sandbox, "opener")))))
	for ended := false; !ended; {
		select {
		case <-done:
			ended = true
		case <-limit:
			timedOut = true
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		case <-time.After(20 * time.Millisecond):
			if bound && syscall.Kill(opener, 0) != nil {
				_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
				_ = os.RemoveAll(sandbox)
				return
			}
		}
	}
	for _, p := range []struct{ path, stream string }{{spec.Stdout, "stdout"}, {spec.Stderr, "stderr"}} {
		if p.path != "" {
			if err := copyFile(filepath.Join(spec.LogDir, p.stream), filepath.Join(root, p.path)); err != nil {
				panic(err)
			}
			if filepath.Base(p.path) == "full" {
				exit.Unfilled = fmt.Sprintf("file %s of %s: it ends after byte 2: no space left on device", p.path, p.stream)
			}
		}
	}
	exit.Ended = time.Now()
	ws := cmd.ProcessState.Sys().(syscall.WaitStatus)
	switch {
	case timedOut:
		exit.Reason, exit.Code, exit.Signal = berth.TimedOut, 137, 9
	case exists(filepath.Join(dir, "stopped")):
		exit.Reason, exit.Code = berth.Stopped, 143
	case ws.Signaled():
		exit.Reason, exit.Code, exit.Signal = berth.Signaled, 128+int(ws.Signal()), int(ws.Signal())
	default:
		exit.Reason, exit.Code = berth.Exited, ws.ExitStatus()
	}
	writeFile(filepath.Join(dir, "exit"), string(mustJSON(exit)))
}

func readExit(dir string) (exit berth.Exit, ok bool) {
	b, err := os.ReadFile(filepath.Join(dir, "exit"))
	if err != nil {
		return exit, false
	}
	if err := json.Unmarshal(b, &exit); err != nil {
		panic(err)
	}
	return exit, true
}

func writeFile(name, content string) {
	tmp := filepath.Join(filepath.Dir(name), ".new-"+filepath.Base(name))
	if err := os.WriteFile(tmp, []byte(content), 0o600); err != nil {
		return // the sandbox was closed
	}
	_ = os.Rename(tmp, name)
}

func appendLine(name, line string) {
	f := must(os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600))
	must(f.WriteString(line + "\n"))
	_ = f.Close()
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func written(name string) bool {
	st, err := os.Stat(name)
	return err == nil && st.Size() > 0
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func mustJSON(v any) []byte { return must(json.Marshal(v)) }

func keys[V any](m map[string]V) (out []string) {
	for k := range m {
		out = append(out, k)
	}
	return out
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
