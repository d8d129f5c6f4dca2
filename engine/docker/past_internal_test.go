package docker

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// fakeDaemon has an engine whose daemon answers so, and a container of it that this process has started a while ago.
func fakeDaemon(t *testing.T, answer http.HandlerFunc) *life {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	listener, err := new(net.ListenConfig).Listen(t.Context(), "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Api-Version", "1.41")
		if !strings.HasSuffix(r.URL.Path, "/_ping") {
			answer(w, r)
		}
	})}
	go func() { _ = server.Serve(listener) }() // ends with the server
	t.Cleanup(func() { _ = server.Close() })
	return lifeAt(t, "unix://"+sock)
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
			state, away, err := l.await(t.Context(), before)
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
