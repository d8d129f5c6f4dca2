package docker_test

import (
	"context"
	"net"
	"net/http"
	"net/http/httputil"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
)

// TestHearing: from the second container on a daemon is heard, and not asked, for what happened to them; where what it tells
// breaks off, it is asked.
func TestHearing(t *testing.T) {
	t.Parallel()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	var asked, heard atomic.Int64
	var cut atomic.Value
	cut.Store(context.CancelFunc(func() {}))
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "docker" },
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", strings.TrimPrefix(daemon(t).Host(), "unix://"))
		}},
		FlushInterval: -1,
	}
	server := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !strings.HasSuffix(r.URL.Path, "/events"):
		case r.URL.Query().Has("until"):
			asked.Add(1)
		default:
			heard.Add(1)
			ctx, cancel := context.WithCancel(r.Context())
			defer cancel()
			cut.Store(cancel)
			r = r.WithContext(ctx)
		}
		defer func() { _ = recover() }() // what the proxy does to one that was cut
		proxy.ServeHTTP(w, r)
	})}
	go func() { _ = server.Serve(l) }() // ends with the server
	t.Cleanup(func() { _ = server.Close() })
	e, img := newEngine(t, docker.Config{Host: "unix://" + sock})
	run := func(script, call string, want berth.Reason) {
		t.Helper()
		_, c := begin(t, e, img, script)
		if call != "" {
			if err := post(t, daemon(t).Host(), "/containers/berth-"+e.Owner()+"-"+strings.Join(ids(t, e, c), "-")+"/"+call); err != nil {
				t.Fatal(err)
			}
		}
		if exit := wait(t, c); exit.Reason != want {
			t.Errorf("%s: exit %+v, want %s", script, exit, want)
		}
	}
	run("true", "", berth.Exited)
	if a, h := asked.Swap(0), heard.Load(); a == 0 || h != 0 {
		t.Errorf("of the first container it was asked %d times, and heard %d times", a, h)
	}
	docker.Patient(e, time.Minute) // one that runs for long is asked for, as all may on a busy machine
	until(t, "the daemon is heard", func() bool {
		run("true", "", berth.Exited)
		return docker.Hears(e)
	})
	asked.Store(0)
	run("true", "", berth.Exited)
	run("sleep 1000", "kill?signal=KILL", berth.Signaled)
	if a, h := asked.Load(), heard.Load(); a != 0 || h != 1 {
		t.Errorf("it was asked %d times, and heard %d times", a, h)
	}
	s, c := begin(t, e, img, "sleep 1000")
	cut.Load().(context.CancelFunc)()
	until(t, "the end of the stream", func() bool { return !docker.Hears(e) })
	if err := post(t, daemon(t).Host(), "/containers/berth-"+e.Owner()+"-"+s.ID()+"-"+c.ID()+"/kill?signal=KILL"); err != nil {
		t.Fatal(err)
	}
	if exit := wait(t, c); exit.Reason != berth.Signaled || asked.Load() == 0 {
		t.Errorf("cut off: exit %+v, asked %d times", exit, asked.Load())
	}
	run("true", "", berth.Exited)
	if h := heard.Load(); h != 2 {
		t.Errorf("it was heard %d times, want 2", h)
	}
}

// TestSignalLeftOut: a signal of another's of which the daemon has not told who hears it, as one that is held up may not, is known
// all the same, though the command ended politely, and also where berth has sent one itself.
func TestSignalLeftOut(t *testing.T) {
	t.Parallel()
	h := newHanger(t, daemon(t).Host())
	h.deaf.Store(true)
	e, img := newEngine(t, docker.Config{Host: h.host})
	begin(t, e, img, "true") // from the second on it is heard
	until(t, "it is heard", func() bool {
		begin(t, e, img, "true")
		return docker.Hears(e)
	})
	for name, own := range map[string]syscall.Signal{"theirs alone": 0, "ours, too": syscall.SIGUSR1} {
		s, c := begin(t, e, img, `trap "exit 0" TERM; trap : USR1; echo up; while true; do sleep 0.02; done`)
		until(t, "it runs", func() bool { return logs(t, c, false) == "up\n" })
		if own != 0 {
			if err := c.(berth.Signaler).Signal(t.Context(), own); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(100 * time.Millisecond) // the daemon lets nothing be before
		if err := post(t, daemon(t).Host(), "/containers/berth-"+e.Owner()+"-"+s.ID()+"-"+c.ID()+"/kill?signal=TERM"); err != nil {
			t.Fatal(err)
		}
		if exit := wait(t, c); exit.Reason != berth.Signaled {
			t.Errorf("%s: exit %+v", name, exit)
		}
	}
}

// TestEndHeard: a container whose end the daemon tells unasked is looked at then, be who waits for it not answered yet.
func TestEndHeard(t *testing.T) {
	t.Parallel()
	h := newHanger(t, daemon(t).Host())
	e, img := newEngine(t, docker.Config{Host: h.host})
	until(t, "it is heard", func() bool {
		begin(t, e, img, "true")
		return docker.Hears(e)
	})
	h.calls.Store("/wait")
	_, c := begin(t, e, img, "exit 7")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // of a watchdog that looks after two minutes
	defer cancel()
	if exit, err := c.Wait(ctx); err != nil || exit.Reason != berth.Exited || exit.Code != 7 {
		t.Errorf("exit %+v, %v", exit, err)
	}
}

// TestAskedMeanwhile: what happened to a container that has ended is asked while the daemon says how it has.
func TestAskedMeanwhile(t *testing.T) {
	t.Parallel()
	h := newHanger(t, daemon(t).Host())
	asked := make(chan struct{})
	var once sync.Once
	var late atomic.Bool
	h.meddle = func(_ http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/events"):
			once.Do(func() { close(asked) })
		case strings.Contains(r.URL.Path, "/containers/") && strings.HasSuffix(r.URL.Path, "/json") && !strings.HasSuffix(r.URL.Path, "/containers/json"):
			select {
			case <-asked:
			case <-time.After(10 * time.Second):
				late.Store(true)
			}
		}
		return false
	}
	e, img := newEngine(t, docker.Config{Host: h.host})
	_, c := begin(t, e, img, "exit 7")
	if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 7 {
		t.Errorf("exit %+v", exit)
	}
	if late.Load() {
		t.Error("it was asked only when the daemon had said how it has ended")
	}
}
