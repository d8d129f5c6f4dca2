package docker_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/image"
)

// hanger passes a daemon's API on, but for calls that it leaves without an answer, or without the rest of one.
type hanger struct {
	host string
	// calls are those whose path has this in it; "" are none. bodies are those whose answer begins, and stops short.
	calls, bodies atomic.Value
	done          chan struct{}
	// lossy: starts come to the daemon, and their answers do not come back; removals do not come to it.
	lossy atomic.Bool
	saw   func(path string, body []byte) // may be nil; of calls with a body that is JSON
}

func newHanger(t *testing.T, to string) *hanger {
	t.Helper()
	h := &hanger{host: "unix://" + filepath.Join(t.TempDir(), "s"), done: make(chan struct{})}
	h.calls.Store("")
	h.bodies.Store("")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", strings.TrimPrefix(h.host, "unix://"))
	if err != nil {
		t.Fatal(err)
	}
	sock := strings.TrimPrefix(to, "unix://")
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", sock)
		}},
		FlushInterval: -1,
		ModifyResponse: func(r *http.Response) error {
			if h.lossy.Load() && strings.HasSuffix(r.Request.URL.Path, "/start") {
				return errors.New("the answer is lost")
			}
			if in(&h.bodies, r.Request.URL.Path) {
				r.Body = &halting{ReadCloser: r.Body, done: h.done}
			}
			return nil
		},
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.lossy.Load() && r.Method == http.MethodDelete {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		if in(&h.calls, r.URL.Path) {
			select {
			case <-h.done:
			case <-r.Context().Done():
			}
			return
		}
		if h.saw != nil && r.Header.Get("Content-Type") == "application/json" {
			body, _ := io.ReadAll(r.Body)
			h.saw(r.URL.Path, body)
			r.Body = io.NopCloser(bytes.NewReader(body))
		}
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(l) }() // ends with the server
	t.Cleanup(func() { close(h.done); _ = server.Close() })
	return h
}

func in(v *atomic.Value, path string) bool {
	s := v.Load().(string)
	return s != "" && strings.Contains(path, s)
}

// halting brings the first bytes, and then none.
type halting struct {
	io.ReadCloser
	had  bool
	done chan struct{}
}

func (h *halting) Read(p []byte) (int, error) {
	if h.had {
		<-h.done
		return 0, io.EOF
	}
	h.had = true
	return h.ReadCloser.Read(p[:min(len(p), 100)])
}

func (h *halting) Write(p []byte) (int, error) { return h.ReadCloser.(io.Writer).Write(p) }

// TestDeadlines: a call that the daemon does not answer ends, and says so; so does an answer that stops short.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	h := newHanger(t, daemon(t).Host())
	const callMax, stall = 3 * time.Second, 2 * time.Second
	dir := t.TempDir()
	patient, img := newEngine(t, docker.Config{Host: daemon(t).Host(), Dir: dir}) // though the machine be busy
	s, c := begin(t, patient, img, "echo up; sleep 1000")
	e, err := docker.New(docker.Config{Host: h.host, Dir: dir, CallMax: callMax, Stall: stall, StreamsMax: 3 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	if s, err = e.Attach(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	if c, err = s.Container(t.Context(), c.ID()); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, calls, bodies string
		do                  func(context.Context) error
	}{
		{"create", "/containers/create", "", func(ctx context.Context) error { return start(ctx, s, img) }},
		{"attach", "/attach", "", func(ctx context.Context) error { return start(ctx, s, img) }},
		{"exec", "/exec", "", func(ctx context.Context) error { return execute(ctx, c) }},
		{"exec's streams", "/start", "", func(ctx context.Context) error { return execute(ctx, c) }},
		{"archive", "/archive", "", func(ctx context.Context) error { return read(ctx, c) }},
		{"archive's body", "", "/archive", func(ctx context.Context) error { return read(ctx, c) }},
		{"resize", "/resize", "", func(ctx context.Context) error { return c.(berth.Terminal).Resize(ctx, 20, 20) }},
		{"address", "/json", "", func(ctx context.Context) error { _, err := c.(berth.Addresser).Address(ctx); return err }},
		{"signal", "/kill", "", func(ctx context.Context) error { return c.Stop(ctx, 0) }},
		{"load", "/images/load", "", func(ctx context.Context) error {
			_, err := e.Images().Import(ctx, bytes.NewReader(make([]byte, 1024)), "localhost/x:1", image.ImportOptions{})
			return err
		}},
		{"list", "/containers/json", "", func(ctx context.Context) error { _, err := e.List(ctx); return err }},
		{"info", "/info", "", func(ctx context.Context) error { _, err := e.Info(ctx); return err }},
	} {
		h.calls.Store(row.calls)
		h.bodies.Store(row.bodies)
		ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("it has no deadline"))
		began := time.Now()
		err := row.do(ctx)
		cancel()
		if took := time.Since(began); !errors.Is(err, berth.ErrUnavailable) || took < min(callMax, stall) || !strings.Contains(err.Error(), "the daemon") {
			t.Errorf("%s: after %v: %v", row.name, took, err)
		}
		h.calls.Store("")
		h.bodies.Store("")
	}
	all, err := patient.List(t.Context())
	if err != nil || len(all) != 2 {
		t.Errorf("left over: %+v, %v", all, err)
	}
}

func start(ctx context.Context, s berth.Sandbox, img berth.Image) error {
	_, err := s.Start(ctx, berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"true"}})
	return err
}

func execute(ctx context.Context, c berth.Container) error {
	_, err := c.(berth.Execer).Exec(ctx, berth.ExecSpec{Command: []string{"true"}}, berth.Stdio{})
	return err
}

func read(ctx context.Context, c berth.Container) error {
	r, err := c.(berth.Archiver).Archive(ctx, "/bin")
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	_, err = io.Copy(io.Discard, r)
	return err
}

// TestStreamsEnd: streams that do not end after the container has are given up, with an exit that is true and says so.
func TestStreamsEnd(t *testing.T) {
	t.Parallel()
	h := newHanger(t, daemon(t).Host())
	const most = 2 * time.Second
	e, img := newEngine(t, docker.Config{Host: h.host, StreamsMax: most})
	h.bodies.Store("/attach")
	_, c := begin(t, e, img, "echo all of it; exit 7")
	began := time.Now()
	exit := wait(t, c)
	if took := time.Since(began); exit.Code != 7 || exit.Reason != berth.Exited || took < most {
		t.Errorf("after %v: exit %+v", took, exit)
	}
	if got := logs(t, c, false); got != "all of it\n" || exit.Detail != "" { // the daemon's log had it
		t.Errorf("stdout %q, exit %+v", got, exit)
	}
	_, c = begin(t, e, img, "echo all of it; exit 7")
	h.calls.Store("/logs")
	exit = wait(t, c)
	if exit.Code != 7 || !strings.Contains(exit.Detail, "container finished, but stdout/stderr did not complete") {
		t.Errorf("exit %+v", exit)
	}
}

// TestStartAnswerLost: a command whose start's answer was lost, and which could not be removed then, is found by the next
// start, and not run again.
func TestStartAnswerLost(t *testing.T) {
	t.Parallel()
	h := newHanger(t, daemon(t).Host())
	e, img := newEngine(t, docker.Config{Host: h.host})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/vol"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	root, err := s.Volume(t.Context(), "/vol")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	spec := berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{
		"sh", "-c", "echo run; echo run >>/vol/runs; while ! [ -e /vol/go ]; do sleep 0.05; done; exit 7",
	}}
	h.lossy.Store(true)
	_, err = s.Start(t.Context(), spec)
	h.lossy.Store(false)
	if !errors.Is(err, berth.ErrUnavailable) {
		t.Fatalf("a start without an answer: %v", err)
	}
	until(t, "it has run", func() bool {
		raw, err := root.ReadFile("runs")
		return err == nil && len(raw) > 0
	})
	c, err := s.Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := root.WriteFile("go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 7 {
		t.Errorf("exit %+v", exit)
	}
	if raw, err := root.ReadFile("runs"); string(raw) != "run\n" || err != nil {
		t.Errorf("it ran as %q, %v", raw, err)
	}
	if got := logs(t, c, false); got != "run\n" {
		t.Errorf("stdout %q", got)
	}
}
