package docker_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// TestRemoveIsTriedAgain: what removes a container is asked again, five times at most, where it conflicts with what the daemon
// does, or the connection breaks; and for nothing else.
func TestRemoveIsTriedAgain(t *testing.T) {
	t.Parallel()
	var bad, tries atomic.Int64
	var call atomic.Value // begins with the method
	call.Store("none")
	var answer atomic.Int64 // 0 cuts the connection
	var refuses atomic.Bool // starts
	h := newHanger(t, daemon(t).Host())
	h.meddle = func(w http.ResponseWriter, r *http.Request) bool {
		if refuses.Load() && strings.HasSuffix(r.URL.Path, "/start") {
			http.Error(w, `{"message":"planted"}`, http.StatusInternalServerError)
			return true
		}
		method, path, _ := strings.Cut(call.Load().(string), " ")
		if r.Method != method || !strings.Contains(r.URL.Path, "/containers/") || !strings.HasSuffix(r.URL.Path, path) {
			return false
		}
		if tries.Add(1) > bad.Load() {
			return false
		}
		if code := int(answer.Load()); code != 0 {
			http.Error(w, `{"message":"planted"}`, code)
			return true
		}
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_ = c.Close()
		}
		return true
	}
	e, img := newEngine(t, docker.Config{Host: h.host})
	api, err := client.New(client.WithHost(daemon(t).Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	ended := func(t *testing.T, s berth.Sandbox, c berth.Container) error { wait(t, c); return c.Remove(t.Context()) }
	running := func(t *testing.T, _ berth.Sandbox, c berth.Container) error { return c.Remove(t.Context()) }
	closed := func(t *testing.T, s berth.Sandbox, _ berth.Container) error {
		// One without a record, as a start leaves that could not be undone.
		labels := map[string]string{docker.LabelOwner: e.Owner(), docker.LabelSandbox: s.ID()}
		stray, err := api.ContainerCreate(t.Context(), client.ContainerCreateOptions{Config: &container.Config{Image: testRef, Cmd: []string{"true"}, Labels: labels}, HostConfig: &container.HostConfig{NetworkMode: "none"}})
		if err != nil {
			return err
		}
		call.Store("DELETE " + stray.ID)
		return s.Close(t.Context())
	}
	unstarted := func(t *testing.T, s berth.Sandbox, _ berth.Container) error {
		refuses.Store(true)
		defer refuses.Store(false)
		if err := start(t.Context(), s, img); !errors.Is(err, berth.ErrUnavailable) {
			return fmt.Errorf("a start that is refused: %w", err)
		}
		return nil
	}
	for _, row := range []struct {
		name, call string
		bad        int64
		answer     int64
		do         func(*testing.T, berth.Sandbox, berth.Container) error
		tries      int64
		err        error
	}{
		{"conflicts", "DELETE ", 4, 409, ended, 5, nil},
		{"conflicts for ever", "DELETE ", 9, 409, ended, 5, berth.ErrConflict},
		{"connections cut", "DELETE ", 4, 0, ended, 5, nil},
		{"connections cut for ever", "DELETE ", 9, 0, ended, 5, berth.ErrUnavailable},
		{"an error of the daemon's", "DELETE ", 1, 500, ended, 1, berth.ErrUnavailable},
		{"connections cut while it is ended", "POST /kill", 4, 0, running, 5, nil},
		{"a stray of a closed sandbox", "", 4, 0, closed, 5, nil},
		{"a start that failed", "DELETE ", 4, 409, unstarted, 5, nil},
	} {
		call.Store("none")
		script := "true"
		if row.call == "POST /kill" {
			script = "sleep 1000"
		}
		s, c := begin(t, e, img, script)
		tries.Store(0)
		bad.Store(row.bad)
		answer.Store(row.answer)
		if row.call != "" {
			call.Store(row.call)
		}
		began := time.Now()
		err := row.do(t, s, c)
		if got := tries.Load(); got != row.tries || !errors.Is(err, row.err) || (err != nil) != (row.err != nil) {
			t.Errorf("%s: %d tries in %v, %v; want %d, %v", row.name, got, time.Since(began), err, row.tries, row.err)
		}
		call.Store("none")
		left, err := api.ContainerList(t.Context(), client.ContainerListOptions{All: true, Filters: client.Filters{}.Add("label", docker.LabelSandbox+"="+s.ID())})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range left.Items {
			if row.err == nil && (l.Labels[docker.LabelStep] != c.ID() || row.name != "a start that failed") {
				t.Errorf("%s: it left %v", row.name, l.Names)
			}
		}
	}
}

// TestWatchdog: a container is given up after five failures in a row: looks that fail, that tell no state, or one that is
// none of a running container. One look that succeeds resets their number.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	const every = 300 * time.Millisecond
	state := func(text string) string { return `{"State":` + text + `}` }
	running := state(`{"Status":"running","Running":true}`)
	none, removing := state("null"), state(`{"Status":"removing","Running":false}`)
	for _, row := range []struct {
		name  string
		looks []string // what they are told, in order; "" fails. The last is told for ever
		words string   // of the end as Lost; "" lives
		count int      // of looks until then
	}{
		{"three, one good, three", []string{"", none, removing, running, removing, none, "", running}, "", 0},
		{"fails", []string{""}, "docker watchdog: giving up after 5 failures in a row: error inspecting container: ", 5},
		{"no state", []string{none}, "the daemon says no state", 5},
		{"removing", []string{running, removing}, "docker watchdog: giving up after 5 failures in a row: container is not running: State=removing", 6},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			var looks atomic.Int64
			var armed atomic.Bool
			h := newHanger(t, daemon(t).Host())
			h.meddle = func(w http.ResponseWriter, r *http.Request) bool {
				if !armed.Load() || !strings.HasSuffix(r.URL.Path, "/json") || !strings.Contains(r.URL.Path, "/containers/berth-") && !isID(r.URL.Path) {
					return false
				}
				i := int(looks.Add(1)) - 1
				said := row.looks[min(i, len(row.looks)-1)]
				if said == "" {
					http.Error(w, `{"message":"planted"}`, http.StatusInternalServerError)
					return true
				}
				w.Header().Set("Content-Type", "application/json")
				_, _ = w.Write([]byte(said))
				return true
			}
			e, img := newEngine(t, docker.Config{Host: h.host, Watchdog: every, StreamsMax: time.Second})
			_, c := begin(t, e, img, "sleep 1000")
			began := time.Now()
			armed.Store(true)
			defer armed.Store(false)
			if row.words == "" {
				until(t, "it was looked at often enough", func() bool { return int(looks.Load()) > len(row.looks) })
				ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
				defer cancel()
				if exit, err := c.Wait(ctx); err == nil {
					t.Errorf("exit %+v", exit)
				}
				return
			}
			exit := wait(t, c)
			took := time.Since(began)
			if exit.Reason != berth.Lost || !strings.Contains(exit.Detail, row.words) {
				t.Errorf("exit %+v", exit)
			}
			if least, most := every*time.Duration(row.count-1), 2*every*time.Duration(row.count)+10*time.Second; took < least || took > most {
				t.Errorf("it was given up after %v; want from %v to %v", took, least, most)
			}
		})
	}
}

// isID reports whether a call is about one container by its ID.
func isID(path string) bool {
	_, id, _ := strings.Cut(path, "/containers/")
	id, _, _ = strings.Cut(id, "/")
	return len(id) == 64
}
