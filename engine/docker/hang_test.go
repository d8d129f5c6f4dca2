package docker_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/image"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// hanger passes a daemon's API on, but for calls that it leaves without an answer, or without the rest of one.
type hanger struct {
	host string
	// calls are those whose path has this in it; "" are none. bodies are those whose answer begins, and stops short.
	calls, bodies atomic.Value
	done          chan struct{}
	// lossy: starts come to the daemon, and their answers do not come back; removals do not come to it.
	lossy atomic.Bool
	// deaf: what is told of signals, to who hears, is left out.
	deaf   atomic.Bool
	saw    func(path string, body []byte) // may be nil; of calls with a body that is JSON
	answer func(r *http.Request)          // may be nil; called before a call's answer is passed on
	// meddle may be nil; it answers in the daemon's place, or not. rewrite may be nil; it changes the daemon's answers.
	meddle  func(w http.ResponseWriter, r *http.Request) bool
	rewrite func(*http.Response) error
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
			if h.answer != nil {
				h.answer(r.Request)
			}
			if h.rewrite != nil {
				if err := h.rewrite(r); err != nil {
					return err
				}
			}
			if h.deaf.Load() && strings.HasSuffix(r.Request.URL.Path, "/events") && !r.Request.URL.Query().Has("until") {
				r.Body = without(r.Body, `"kill"`)
			}
			if in(&h.bodies, r.Request.URL.Path) {
				r.Body = &halting{ReadCloser: r.Body, done: h.done}
			}
			return nil
		},
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if h.meddle != nil && h.meddle(w, r) {
			return
		}
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

// without leaves out lines that have something in them.
func without(body io.ReadCloser, what string) io.ReadCloser {
	pr, pw := io.Pipe()
	go func() { // ends with the answer
		_ = pw.CloseWithError(lines(pw, body, func(raw []byte) (kept []byte) {
			for line := range bytes.Lines(raw) {
				if !bytes.Contains(line, []byte(what)) {
					kept = append(kept, line...)
				}
			}
			return kept
		}))
	}()
	return struct {
		io.Reader
		io.Closer
	}{pr, closers{pr, body}}
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

// hung is what the calls of TestDeadlines are made with.
type hung struct {
	e      *docker.Engine
	s      berth.Sandbox
	c      berth.Container
	filled berth.Sandbox // its volume is the daemon's to fill
	img    berth.Image
}

// TestDeadlines: a call that the daemon does not answer ends, and says so; so does an answer that stops short.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	const callMax, stall = 8 * time.Second, 6 * time.Second
	server := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	t.Cleanup(server.Close)
	repo := strings.TrimPrefix(server.URL, "http://") + "/hung/image"
	push(t, repo, randomImage(t))
	for _, row := range []struct {
		name, calls, bodies string
		do                  func(context.Context, hung) error
	}{
		{"create", "/containers/create", "", func(ctx context.Context, h hung) error { return start(ctx, h.s, h.img) }},
		{"attach", "/attach", "", func(ctx context.Context, h hung) error { return start(ctx, h.s, h.img) }},
		{"start", "/start", "", func(ctx context.Context, h hung) error { return start(ctx, h.s, h.img) }},
		{"exec", "/exec", "", func(ctx context.Context, h hung) error { return execute(ctx, h.c) }},
		{"exec's streams", "/start", "", func(ctx context.Context, h hung) error { return execute(ctx, h.c) }},
		{"archive", "/archive", "", func(ctx context.Context, h hung) error { return read(ctx, h.c) }},
		{"archive's body", "", "/archive", func(ctx context.Context, h hung) error { return read(ctx, h.c) }},
		{"resize", "/resize", "", func(ctx context.Context, h hung) error { return h.c.(berth.Terminal).Resize(ctx, 20, 20) }},
		{"address", "/json", "", func(ctx context.Context, h hung) error { _, err := h.c.(berth.Addresser).Address(ctx); return err }},
		{"published ports", "/json", "", func(ctx context.Context, h hung) error { _, err := h.c.(berth.Publisher).Published(ctx); return err }},
		{"signal", "/kill", "", func(ctx context.Context, h hung) error { return h.c.Stop(ctx, 0) }},
		{"remove", "/containers/", "", func(ctx context.Context, h hung) error { return h.c.Remove(ctx) }},
		{"load", "/images/load", "", func(ctx context.Context, h hung) error {
			_, err := h.e.Images().Import(ctx, bytes.NewReader(make([]byte, 1024)), "localhost/x:1", image.ImportOptions{})
			return err
		}},
		{"pull", "/images/create", "", func(ctx context.Context, h hung) error {
			_, err := h.e.Image(ctx, berth.ImageRequest{Ref: repo, Policy: berth.PullAlways})
			return err
		}},
		{"pull's body", "", "/images/create", func(ctx context.Context, h hung) error {
			_, err := h.e.Image(ctx, berth.ImageRequest{Ref: repo, Policy: berth.PullAlways})
			return err
		}},
		{"image inspect", "/images/", "", func(ctx context.Context, h hung) error { _, err := h.e.Images().Inspect(ctx, testRef); return err }},
		{"image ls", "/images/json", "", func(ctx context.Context, h hung) error { _, err := h.e.Images().List(ctx); return err }},
		{"image rm", "/images/", "", func(ctx context.Context, h hung) error {
			_, err := h.e.Images().Remove(ctx, "localhost/nothing:1")
			return err
		}},
		{"image tag", "/tag", "", func(ctx context.Context, h hung) error {
			_, err := h.e.Images().LoadReader(ctx, archiveOf(t, "localhost/hung:1"), image.LoadOptions{Name: "localhost/hung:2"})
			return err
		}},
		{"network inspect", "/networks/", "", func(ctx context.Context, h hung) error {
			return h.e.Check(ctx, berth.SandboxSpec{Network: berth.Network{Mode: "any"}}, nil)
		}},
		{"volume create", "/volumes/create", "", func(ctx context.Context, h hung) error {
			return start(ctx, h.filled, h.img)
		}},
		{"volume ls", "/volumes", "", func(ctx context.Context, h hung) error { return h.filled.Close(ctx) }},
		{"list", "/containers/json", "", func(ctx context.Context, h hung) error { _, err := h.e.List(ctx); return err }},
		{"info", "/info", "", func(ctx context.Context, h hung) error { _, err := h.e.Info(ctx); return err }},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			patient, img := newEngine(t, docker.Config{Host: daemon(t).Host(), Dir: dir}) // though the machine be busy
			s, c := begin(t, patient, img, "echo up; sleep 1000")
			h := newHanger(t, daemon(t).Host())
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
			filled, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/vol", CopyUp: true}}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := filled.Close(t.Context()); err != nil {
					t.Error(err)
				}
			}()
			h.calls.Store(row.calls)
			h.bodies.Store(row.bodies)
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("it has no deadline"))
			defer cancel()
			began := time.Now()
			err = row.do(ctx, hung{e, s, c, filled, img})
			if took := time.Since(began); !errors.Is(err, berth.ErrUnavailable) || took < min(callMax, stall) || !strings.Contains(err.Error(), "the daemon") {
				t.Errorf("after %v: %v", took, err)
			}
			h.calls.Store("")
			h.bodies.Store("")
			// A start whose answer did not come may have left its container, which goes with the sandbox.
			if all, err := patient.List(t.Context()); row.name != "start" && (err != nil || len(all) != 3) {
				t.Errorf("left over: %+v, %v", all, err)
			}
		})
	}
}

// archiveOf is an archive of an image of that name.
func archiveOf(t *testing.T, ref string) *bytes.Buffer {
	t.Helper()
	tag, err := name.NewTag(ref)
	if err != nil {
		t.Fatal(err)
	}
	var whole bytes.Buffer
	if err := tarball.Write(tag, randomImage(t), &whole); err != nil {
		t.Fatal(err)
	}
	return &whole
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

// TestCloseWhileStartIsAnswered: a container that a close of its sandbox removes before its start is answered has ended, also
// where the daemon does not answer who waits for it, as Podman may not.
func TestCloseWhileStartIsAnswered(t *testing.T) {
	t.Parallel()
	h := newHanger(t, daemon(t).Host())
	startedA, removedA, haveA := make(chan struct{}), make(chan struct{}), make(chan struct{})
	ids := []string{"a" + berth.NewID(), "b" + berth.NewID()} // a close goes by name
	var containerA atomic.Value                               // the first that is started
	var removedOnce sync.Once
	h.answer = func(r *http.Request) {
		_, call, _ := strings.Cut(r.URL.Path, "/containers/")
		id, call, _ := strings.Cut(call, "/")
		isA := call == "start" && containerA.CompareAndSwap(nil, id) || containerA.Load() == id
		switch {
		case call == "start" && isA:
			close(startedA)
			<-removedA
		case r.Method == http.MethodDelete && isA:
			removedOnce.Do(func() { close(removedA) })
		case r.Method == http.MethodDelete:
			<-haveA
		case call == "wait" && isA:
			<-r.Context().Done()
		}
	}
	e, img := newEngine(t, docker.Config{Host: h.host})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	type started struct {
		berth.Container
		err error
	}
	a := make(chan started, 1)
	sleep := func(id string) berth.StepSpec {
		return berth.StepSpec{ID: id, Image: img, Command: []string{"sleep", "1000"}, NoInit: true}
	}
	go func() {
		c, err := s.Start(t.Context(), sleep(ids[0]))
		a <- started{c, err}
	}()
	<-startedA
	if _, err := s.Start(t.Context(), sleep(ids[1])); err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close(t.Context()) }()
	st := <-a
	if st.err != nil {
		t.Fatal(st.err)
	}
	close(haveA)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if exit, err := st.Wait(ctx); err != nil || exit.Reason != berth.Lost {
		t.Errorf("%+v, %v", exit, err)
	}
	if err := errors.Join(<-closed, st.Stop(ctx, 0), st.Remove(ctx)); err != nil {
		t.Error(err)
	}
}

// TestHangIsTold: a daemon that keeps its connections and does not answer is told of, one that is only slow is not, and that it
// answers again is. It is no loss of what the container writes.
func TestHangIsTold(t *testing.T) {
	t.Parallel()
	h := newHanger(t, daemon(t).Host())
	var pinged atomic.Int64
	h.answer = func(r *http.Request) {
		if strings.Contains(r.URL.Path, "_ping") {
			time.Sleep(800 * time.Millisecond) // as of a daemon that has much to do
			pinged.Add(1)
		}
	}
	type word struct {
		since time.Duration
		err   error
	}
	words := make(chan word, 10)
	e, img := newEngine(t, docker.Config{Host: h.host, Watchdog: 8 * time.Second, CallMax: time.Minute, Away: func(since time.Duration, err error) {
		words <- word{since, err}
	}})
	s, c := begin(t, e, img, "while ! [ -e /vol/go ]; do sleep 0.05; done; echo down; exit 7")
	other := step(t, s, img, "sleep 1000")
	seen := pinged.Load()
	until(t, "it was asked for an answer again and again", func() bool { return pinged.Load() >= seen+5 })
	select {
	case w := <-words:
		t.Errorf("of one that answers late: %+v", w)
	default:
	}
	h.calls.Store("/")
	for range 2 { // one for each container
		select {
		case w := <-words:
			if w.since < 10*time.Second || !errors.Is(w.err, berth.ErrUnavailable) || !strings.Contains(w.err.Error(), "no answer to a ping within 2s") {
				t.Errorf("%+v", w)
			}
		case <-time.After(30 * time.Second):
			t.Fatal("nobody is told that it hangs")
		}
	}
	h.calls.Store("")
	for range 2 {
		select {
		case w := <-words:
			if w.since < 10*time.Second || w.err != nil {
				t.Errorf("%+v", w)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("nobody is told that it answers again")
		}
	}
	root, err := s.Volume(t.Context(), "/vol")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	if err := root.WriteFile("go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 7 || exit.Detail != "" {
		t.Errorf("exit %+v", exit)
	}
	if err := other.Stop(t.Context(), 0); err != nil {
		t.Error(err)
	}
}

// TestCloseAfterStart: a container that a close finds when it has taken the sandbox away, since its start came in between, has
// ended, also where the daemon does not answer who waits for it, as Podman may not.
func TestCloseAfterStart(t *testing.T) {
	t.Parallel()
	h := newHanger(t, daemon(t).Host())
	listed, started := make(chan struct{}), make(chan struct{})
	var once sync.Once
	h.answer = func(r *http.Request) {
		switch _, call, _ := strings.Cut(r.URL.Path, "/containers/"); {
		case call == "json":
			once.Do(func() {
				close(listed)
				<-started
			})
		case strings.HasSuffix(call, "/wait"):
			<-r.Context().Done()
		}
	}
	e, img := newEngine(t, docker.Config{Host: h.host})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close(t.Context()) }()
	<-listed
	c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"sleep", "1000"}})
	close(started)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if exit, err := c.Wait(ctx); err != nil || exit.Reason != berth.Lost {
		t.Errorf("%+v, %v", exit, err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}
