package docker

import (
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/api/types/container"
)

// TestForeign: whether a container ended by itself, by what the daemon remembers of it, or why it was not asked.
func TestForeign(t *testing.T) {
	now := time.Now()
	for _, row := range []struct {
		name string
		h    history
		live bool
		code int
		want berth.Reason
	}{
		{"started anew, and 255, of which it has seen nothing", history{known: true, restarted: true}, true, 255, berth.Lost},
		{"started anew, and 255, which it has seen", history{known: true, restarted: true, died: true}, true, 255, berth.Exited},
		{"started anew, and has found a code", history{known: true, restarted: true}, true, 7, berth.Exited},
		{"as it was, and 255", history{known: true}, true, 255, berth.Exited},
		{"it says that nothing was", history{known: true}, false, 0, berth.Exited},
		{"a signal of another's", history{known: true, killed: []int{15}}, false, 0, berth.Signaled},
		{"started anew", history{known: true, restarted: true}, false, 0, berth.Lost},
		{"started anew, and a code of its stop", history{known: true, restarted: true}, false, 143, berth.Signaled},
		{"started anew, and it has seen the end", history{known: true, restarted: true, died: true}, false, 0, berth.Exited},
		{"started anew, and it has ended it", history{known: true, restarted: true, died: true, killed: []int{15}}, false, 0, berth.Signaled},
		{"it does not answer", history{}, false, 143, berth.Exited},
		{"it is being stopped", history{gone: true}, false, 0, berth.Lost},
		{"it is being stopped, and a code of that", history{gone: true}, false, 143, berth.Signaled},
		{"it is being stopped, and leaves containers alone", history{gone: true}, true, 143, berth.Exited},
	} {
		l := &life{dir: t.TempDir(), rec: &record{}}
		e := berth.Exit{Reason: berth.Exited, Code: row.code, Ended: time.Now()}
		if l.foreign(&e, row.h, row.live, time.Time{}); e.Reason != row.want {
			t.Errorf("%s, code %d: %s, want %s", row.name, row.code, e.Reason, row.want)
		}
	}
	// It has been away, and the start is forgotten, as so much happened since: was it started anew?
	for oldest, want := range map[time.Duration]berth.Reason{-time.Second: berth.Exited, time.Second: berth.Signaled} {
		l := &life{dir: t.TempDir(), rec: &record{}}
		e := berth.Exit{Reason: berth.Exited, Code: 143, Ended: now}
		if l.foreign(&e, history{known: true, oldest: now.Add(oldest)}, false, now); e.Reason != want {
			t.Errorf("it remembers what was %v after it went: %s, want %s", oldest, e.Reason, want)
		}
	}
}

// TestSignalWords: a signal that the daemon sent, and berth did not ask for, is told as somebody's only where it may be.
func TestSignalWords(t *testing.T) {
	now := time.Now()
	for _, row := range []struct {
		name string
		sigs []int
		live bool
		away time.Time
		want string
	}{
		{"it has not been away", []int{15}, false, time.Time{}, "signal 15 (SIGTERM), which the daemon sent, and not for berth: for somebody else, or as it was stopped"},
		{"it went away", []int{15}, false, now, "signal 15 (SIGTERM), which the daemon sent as it was stopped"},
		{"it went away, and leaves containers alone", []int{15}, true, now, "signal 15 (SIGTERM), which the daemon sent, and not for berth: for somebody else, or as it was stopped"},
	} {
		l := &life{dir: t.TempDir(), rec: &record{}}
		e := berth.Exit{Reason: berth.Exited, Ended: now}
		if l.foreign(&e, history{known: true, killed: row.sigs}, row.live, row.away); e.Reason != berth.Signaled || e.Detail != row.want {
			t.Errorf("%s: %s, %q; want %q", row.name, e.Reason, e.Detail, row.want)
		}
	}
}

// TestEndingSignal: a signal of somebody else's that a command has lived through is not how it ended.
func TestEndingSignal(t *testing.T) {
	for _, row := range []struct {
		name   string
		killed []int
		sent   string // by berth
		code   int
		want   int // 0: none has ended it
	}{
		{"none", nil, "", 137, 0},
		{"HUP, to read its configuration anew", []int{1}, "", 0, 0},
		{"HUP, hours before it failed", []int{1}, "", 3, 0},
		{"HUP, which ended it", []int{1}, "", 129, 1},
		{"USR1 for checkpoints, and an end of its own", []int{10, 10, 10}, "", 0, 0},
		{"TERM, which it obeyed", []int{15}, "", 0, 15},
		{"TERM and KILL", []int{15, 9}, "", 137, 9},
		{"TERM, and a window's change", []int{15, 28}, "", 0, 15},
		{"HUP of another's, TERM of berth's", []int{1, 15}, "15\n", 0, 0},
		{"TERM of another's, HUP of berth's", []int{1, 15}, "1\n", 0, 15},
		{"TERM twice, once of berth's", []int{15, 15}, "15\n", 0, 15},
		{"Podman's, which it lived through", []int{0}, "", 0, 0},
		{"Podman's, which ended it", []int{0}, "", 143, 15},
		{"Podman's, of berth's", []int{0}, "15\n", 143, 0},
	} {
		l := &life{dir: t.TempDir(), rec: &record{}}
		if err := os.WriteFile(filepath.Join(l.dir, signalsFile), []byte(row.sent), 0o600); err != nil {
			t.Fatal(err)
		}
		if sig, ended := l.endingSignal(row.killed, row.code); sig != row.want || ended != (row.want != 0) {
			t.Errorf("%s: %d, %v; want %d", row.name, sig, ended, row.want)
		}
	}
}

// TestUnseenEnd: a container of which the daemon knows no end has none that it could tell, be the code 0; that berth has ended it is
// known.
func TestUnseenEnd(t *testing.T) {
	for code, name := range map[int]string{0: "its code was never known", 255: "none is known"} {
		l := &life{e: &Engine{host: &hostInfo{}}, dir: t.TempDir(), rec: &record{}}
		state := &container.State{Status: container.StateExited, ExitCode: code, StartedAt: "2020-01-01T00:00:00Z", FinishedAt: "0001-01-01T00:00:00Z"}
		if exit := l.exitOf(l.rec, state, nil, nil); exit.Reason != berth.Lost || exit.Code != -1 || exit.Detail == "" {
			t.Errorf("%s: %+v", name, exit)
		}
		if err := writeJSON(filepath.Join(l.dir, intentFile), intent{Reason: berth.TimedOut, At: time.Now()}); err != nil {
			t.Fatal(err)
		}
		if exit := l.exitOf(l.rec, state, nil, nil); exit.Reason != berth.TimedOut {
			t.Errorf("%s, and berth has ended it: %+v", name, exit)
		}
	}
}

// TestLiveRestoreTurnedOff: whether a daemon leaves its containers alone is asked of one that has been away, as it may have been told
// otherwise since.
func TestLiveRestoreTurnedOff(t *testing.T) {
	l := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/info") {
			_, _ = io.WriteString(w, `{"LiveRestoreEnabled":false}`)
			return
		}
		_, _ = io.WriteString(w, `{"Version":"20.10.24","ApiVersion":"1.41"}`)
	})
	l.e.host.live = true
	if !l.e.liveRestore(t.Context(), false) || l.e.liveRestore(t.Context(), true) {
		t.Error("one that was not away is asked, or one that was is not")
	}
}

// TestStopUnsent: a stop that cannot have come to the daemon is not what a container ends by, later.
func TestStopUnsent(t *testing.T) {
	for name, grace := range map[string]time.Duration{"stop": time.Minute, "kill": 0} {
		l := lifeAt(t, "unix://"+filepath.Join(t.TempDir(), "nobody"))
		if err := l.end(t.Context(), intent{Reason: berth.Stopped}, grace); !errors.Is(err, berth.ErrUnavailable) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := os.Stat(filepath.Join(l.dir, intentFile)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: that berth ends it is noted: %v", name, err)
		}
	}
}
