package docker

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// TestEndedWithoutRecord: of a container whose record is gone the daemon's code is told, also one that its init has when it cannot
// execute a command.
func TestEndedWithoutRecord(t *testing.T) {
	l := fakeDaemon(t, func(w http.ResponseWriter, r *http.Request) {
		if !strings.HasSuffix(r.URL.Path, "/json") {
			http.Error(w, "{}", http.StatusNotFound)
			return
		}
		_, _ = io.WriteString(w, `{"Id":"x","State":{"Status":"exited","ExitCode":1,"StartedAt":"2020-01-01T00:00:00Z","FinishedAt":"2020-01-01T00:00:01Z"}}`)
	})
	state, exit, err := l.look(t.Context(), "x")
	if err != nil || state != berth.ContainerEnded || exit.Code != 1 || exit.Reason != berth.Exited {
		t.Errorf("%s, %+v, %v", state, exit, err)
	}
}

// TestUnsentTwice: that berth ends a container is taken back each time that no signal of it can have come to that.
func TestUnsentTwice(t *testing.T) {
	l := lifeAt(t, "unix://"+filepath.Join(t.TempDir(), "nobody"))
	for range 2 {
		if err := l.end(t.Context(), intent{Reason: berth.Stopped}, time.Second); !errors.Is(err, berth.ErrUnavailable) {
			t.Errorf("told: %v", err)
		}
		if _, err := os.Stat(filepath.Join(l.dir, intentFile)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("it is said to be berth's end: %v", err)
		}
	}
}

// TestEndUnrecorded: how a container ended is told though it cannot be recorded, for whatever reason.
func TestEndUnrecorded(t *testing.T) {
	l := lifeAt(t, "unix://"+filepath.Join(t.TempDir(), "nobody"))
	if err := os.MkdirAll(filepath.Join(l.dir, exitFile, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := l.conclude(berth.Exit{Reason: berth.Exited, Code: 7}, l.rec); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if exit, err := l.wait(ctx); err != nil || exit.Code != 7 {
		t.Errorf("%+v, %v", exit, err)
	}
}

// TestKeeperOpenedAnew: a sandbox that one connection has closed and opened anew has it for a user, until it is gone.
func TestKeeperOpenedAnew(t *testing.T) {
	l := lifeAt(t, "unix://"+filepath.Join(t.TempDir(), "nobody"))
	dir := l.e.sandboxDir("t")
	open := func() {
		if err := errors.Join(os.MkdirAll(dir, 0o700), writeJSON(filepath.Join(dir, sandboxFile), berth.SandboxSpec{ID: "t"})); err != nil {
			t.Fatal(err)
		}
	}
	k := &keeper{e: l.e, handed: map[string]*handed{}, tended: map[string]*tended{}}
	k.e.cfg.Logger = slog.New(slog.DiscardHandler)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		if conns[i], err = net.FileConn(f); err != nil {
			t.Fatal(err)
		}
		_ = f.Close()
	}
	served := make(chan struct{})
	go func() { k.handle(t.Context(), conns[1].(*net.UnixConn)); close(served) }() // ends with the connection
	answers := bufio.NewScanner(conns[0])
	name := func() *tended {
		if _, err := fmt.Fprintln(conns[0], "t"); err != nil || !answers.Scan() {
			t.Fatal("not answered:", err)
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		return k.tended["t"]
	}
	open()
	first := name()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	k.idle()
	open()
	second := name()
	k.mu.Lock()
	users := second.users
	k.mu.Unlock()
	if first == second || users != 1 {
		t.Errorf("the same: %v; %d users", first == second, users)
	}
	_ = conns[0].Close()
	<-served
	if second.users != 0 {
		t.Errorf("%d users of a connection that is gone", second.users)
	}
}
