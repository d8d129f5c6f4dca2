package docker

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
)

// fakeDaemon has an engine whose daemon answers so, and a container of it that this process has started a while ago.
func fakeDaemon(t *testing.T, answer http.HandlerFunc) *life {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	serveFake(t, listenAt(t, sock), answer)
	return lifeAt(t, "unix://"+sock)
}

func listenAt(t *testing.T, sock string) net.Listener {
	t.Helper()
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", sock)
	if err != nil {
		panic(err) // it is called by others than the test
	}
	t.Cleanup(func() { _ = listener.Close() })
	return listener
}

func serveFake(t *testing.T, listener net.Listener, answer http.HandlerFunc) {
	t.Helper()
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		if !strings.HasSuffix(r.URL.Path, "/_ping") {
			answer(w, r)
		}
	})}
	go func() { _ = server.Serve(listener) }() // ends with the server
	t.Cleanup(func() { _ = server.Close() })
}

// lifeAt is such a container of the daemon that is there.
func lifeAt(t *testing.T, host string) *life {
	t.Helper()
	e, err := New(Config{Host: host, Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close() })
	e.host = &hostInfo{}
	l := e.life("s", "c")
	l.dir, l.id, l.rec, l.started = t.TempDir(), "x", &record{Created: time.Now()}, time.Now().Add(-time.Minute)
	return l
}

const (
	itStarted = `{"Type":"container","Action":"start","Actor":{"ID":"x"},"timeNano":1}` + "\n"
	itKilled  = `{"Type":"container","Action":"kill","Actor":{"ID":"x","Attributes":{"signal":"15"}},"timeNano":2}` + "\n"
)

// exited is a container's end by the daemon's word.
const exited = `{"Id":"x","State":{"Status":"exited","ExitCode":0,"StartedAt":"2020-01-01T00:00:00Z","FinishedAt":"2020-01-01T00:01:00Z"}}`

func has(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestAskedBeforeItsEnd: what happened to a container is not asked before it has ended, as where the daemon tells no more, or cannot
// say to who waits: what comes then would be missing.
func TestAskedBeforeItsEnd(t *testing.T) {
	t.Parallel()
	for name, untold := range map[string]bool{"the stream breaks": false, "who waits gets no answer": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			asked, ended := make(chan struct{}), make(chan struct{})
			l := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case strings.HasSuffix(r.URL.Path, "/events"):
					said := itStarted
					if has(ended) {
						said += itKilled
					} else {
						close(asked)
					}
					_, _ = io.WriteString(w, said)
				case strings.HasSuffix(r.URL.Path, "/wait") && untold:
					_ = json.NewEncoder(w).Encode(map[string]any{"StatusCode": -1, "Error": map[string]string{"Message": "context canceled"}})
				case strings.HasSuffix(r.URL.Path, "/wait"):
					<-r.Context().Done()
				default:
					select { // it is killed meanwhile
					case <-asked:
						time.Sleep(100 * time.Millisecond) // the answer gets there
					case <-time.After(500 * time.Millisecond):
					}
					close(ended)
					_, _ = io.WriteString(w, exited)
				}
			})
			l.told = &told{history: history{known: true}, done: make(chan struct{})}
			if !untold {
				close(l.told.done)
			} else {
				l.e.hearing.told = map[string]*told{"x": l.told}
			}
			before := &past{l: l, r: l.rec}
			state, away, err := l.await(t.Context(), before, &pipeGuard{})
			if err != nil {
				t.Fatal(err)
			}
			e := berth.Exit{Reason: berth.Exited, Code: state.ExitCode, Ended: time.Now()}
			if l.foreign(&e, before.of(t.Context(), state), false, away.since); e.Reason != berth.Signaled || away.ever {
				t.Errorf("exit %+v, away %+v", e, away)
			}
		})
	}
}

// TestPastOfGone: what ended as its daemon was not there to be asked, or went as it was, is not taken to have ended by itself,
// until a daemon that has gone on says so.
func TestPastOfGone(t *testing.T) {
	t.Parallel()
	const while = 2500 * time.Millisecond
	cut := func(w http.ResponseWriter) {
		_, _ = io.WriteString(w, itStarted)
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	started := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, itStarted) }
	hangs := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for _, row := range []struct {
		name   string
		after  time.Duration
		daemon func(t *testing.T, sock string)
		want   berth.Reason
	}{
		{"it takes no connections", 0, func(*testing.T, string) {}, berth.Lost},
		{"it takes none for a while", while, func(t *testing.T, sock string) { serveFake(t, listenAt(t, sock), started) }, berth.Exited},
		{"it takes none for a while, and is another then", while, func(t *testing.T, sock string) {
			serveFake(t, listenAt(t, sock), func(http.ResponseWriter, *http.Request) {})
		}, berth.Lost},
		{"it takes none, then takes and does not answer", 200 * time.Millisecond, func(t *testing.T, sock string) { listenAt(t, sock) }, berth.Lost},
		{"its socket is another's", 0, func(t *testing.T, sock string) { listenAt(t, sock) }, berth.Lost},
		{"it breaks off", 0, func(t *testing.T, sock string) {
			serveFake(t, listenAt(t, sock), func(w http.ResponseWriter, _ *http.Request) { cut(w) })
		}, berth.Lost},
		{"it breaks off as it is asked for all", 0, func(t *testing.T, sock string) {
			serveFake(t, listenAt(t, sock), func(w http.ResponseWriter, r *http.Request) {
				if !strings.Contains(r.URL.RawQuery, "filters") {
					cut(w)
				}
			})
		}, berth.Lost},
		{"it is there, and cannot say", 0, func(t *testing.T, sock string) { serveFake(t, listenAt(t, sock), hangs) }, berth.Exited},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			sock := filepath.Join(t.TempDir(), "s")
			l := lifeAt(t, "unix://"+sock)
			l.e.cfg.CallMax = 3 * time.Second
			var there sync.WaitGroup
			there.Go(func() {
				time.Sleep(row.after)
				row.daemon(t, sock)
			})
			defer there.Wait()
			if row.after == 0 {
				there.Wait()
			}
			e := berth.Exit{Reason: berth.Exited, Ended: time.Now()}
			if l.foreign(&e, (&past{l: l, r: l.rec}).of(t.Context(), nil), false, time.Time{}); e.Reason != row.want {
				t.Errorf("exit %+v, want %s", e, row.want)
			}
		})
	}
}

// TestAskedAgain: who has asked a daemon that does not answer, as it takes no more connections but leaves them waiting, asks once more
// on the one that the answer to another question has left.
func TestAskedAgain(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	l := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		if asked.Add(1) == 1 {
			<-r.Context().Done()
			return
		}
		_, _ = io.WriteString(w, itStarted+itKilled)
	})
	before := &past{l: l, r: l.rec}
	before.begin(t.Context())
	began := time.Now()
	for asked.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if h := before.of(t.Context(), nil); len(h.killed) != 1 || time.Since(began) > eventsTime/2 {
		t.Errorf("after %v: %+v", time.Since(began), h)
	}
}

// TestToldThenUnknown: a signal that was told of is known, though what came after was not told, and cannot be asked for.
func TestToldThenUnknown(t *testing.T) {
	t.Parallel()
	l := fakeDaemon(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	l.told = &told{history: history{known: true, killed: []int{15}}, done: make(chan struct{})}
	close(l.told.done)
	e := berth.Exit{Reason: berth.Exited, Ended: time.Now()}
	if l.foreign(&e, (&past{l: l, r: l.rec}).of(t.Context(), nil), false, time.Time{}); e.Reason != berth.Signaled {
		t.Errorf("exit %+v", e)
	}
}

// TestHarmlessThenUnknown: a signal that a container lived through does not keep the daemon from being asked how that ended which was
// ended since, nor from being believed.
func TestHarmlessThenUnknown(t *testing.T) {
	t.Parallel()
	l := fakeDaemon(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, itStarted+itKilled) })
	l.told = &told{history: history{known: true, killed: []int{1}}, done: make(chan struct{})}
	close(l.told.done)
	e := berth.Exit{Reason: berth.Exited, Ended: time.Now()}
	if l.foreign(&e, (&past{l: l, r: l.rec}).of(t.Context(), nil), false, time.Time{}); e.Reason != berth.Signaled || e.Signal != 15 {
		t.Errorf("exit %+v", e)
	}
}

// TestOutOfMemoryToldLate: where the daemon alone can say that the memory limit was reached, and says it after it has told of the end,
// be it of what happened or of the container, that is waited for if the container failed. In what it remembers it is seen in any case.
func TestOutOfMemoryToldLate(t *testing.T) {
	t.Parallel()
	const reached = "the memory limit of 64 MiB was reached"
	for _, row := range []struct {
		name   string
		cgroup string
		code   int
		flag   bool // the daemon notes it in the container's state, too, as of version 23
		past   history
		want   berth.Reason
		detail string
	}{
		{"killed", "", 137, false, history{}, berth.OutOfMemory, reached},
		{"killed, and noted", "", 137, true, history{}, berth.OutOfMemory, reached},
		{"killed, and remembered", "", 137, false, history{oom: true}, berth.OutOfMemory, reached},
		{"killed, with a cgroup that counts", "/nothere", 137, false, history{oom: true}, berth.Exited, "exit code 137, or killed by signal 9: the daemon does not tell them apart"},
		{"ended by itself", "", 1, true, history{}, berth.Exited, ""},
		{"ended well", "", 0, true, history{}, berth.Exited, ""},
	} {
		var asked atomic.Int64
		l := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
			late := asked.Add(1) > 4
			switch {
			case !strings.HasSuffix(r.URL.Path, "/events"):
				_, _ = fmt.Fprintf(w, `{"Id":"x","State":{"Status":"exited","ExitCode":137,"OOMKilled":%v}}`, late && row.flag)
			case late && !row.flag:
				_, _ = fmt.Fprintln(w, `{"Type":"container","Action":"oom","Actor":{"ID":"x"},"timeNano":3}`)
			}
		})
		r := &record{Created: time.Now(), Cgroup: row.cgroup, Limits: berth.Limits{Memory: 1 << 26}, Spec: berth.StepSpec{NoInit: true}}
		state := &container.State{Status: container.StateExited, ExitCode: row.code, StartedAt: "2020-01-01T00:00:00Z", FinishedAt: "2020-01-01T00:01:00Z"}
		if e := l.exitOf(r, state, nil, func() history { return row.past }); e.Reason != row.want || e.Detail != row.detail {
			t.Errorf("%s: %+v, want %s, %q", row.name, e, row.want, row.detail)
		}
	}
}

// TestOutOfMemoryElsewhere: a container of a daemon elsewhere that ended well, and whose memory was out, has that told as far as the daemon
// has said it by then; one that was killed in its first moments may have been so for what no daemon sees.
func TestOutOfMemoryElsewhere(t *testing.T) {
	t.Parallel()
	l := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/events") {
			_, _ = fmt.Fprint(w, `{"Id":"x","State":{"Status":"exited","ExitCode":137}}`)
		}
	})
	l.sb = &Sandbox{e: l.e, remote: true}
	l.e.host = &hostInfo{remote: true}
	r := &record{Created: time.Now(), Limits: berth.Limits{Memory: 1 << 26}, Spec: berth.StepSpec{NoInit: true}}
	state := &container.State{Status: container.StateExited, StartedAt: "2020-01-01T00:00:00Z", FinishedAt: "2020-01-01T00:01:00Z"}
	e := l.exitOf(r, state, nil, func() history { return history{oom: true} })
	if want := "the memory limit of 64 MiB was reached; the kernel killed some of its processes"; e.Reason != berth.Exited || e.Code != 0 || e.Detail != want {
		t.Errorf("%+v, want the detail %q", e, want)
	}
	if e := l.exitOf(r, state, nil, func() history { return history{} }); e.Reason != berth.Exited || e.Detail != "" {
		t.Errorf("%+v of one whose memory was not out", e)
	}
	state.ExitCode, state.FinishedAt = 137, "2020-01-01T00:00:00.5Z"
	e = l.exitOf(r, state, nil, nil)
	if want := "exit code 137, or killed by signal 9: the daemon does not tell them apart, and may not have seen that the memory limit of 64 MiB was reached so soon"; e.Reason != berth.Exited || e.Detail != want {
		t.Errorf("%+v, want the detail %q", e, want)
	}
}
