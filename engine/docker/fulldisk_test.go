package docker_test

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"golang.org/x/sys/unix"
)

// TestFullDataDirectory: what fills the disk of the data directory costs a step some of its log, and says so, but neither its
// exit nor its time; and the daemon is not asked for the same log again and again.
func TestFullDataDirectory(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		name   string
		others bool // somebody else takes all that there is, and that becomes free
		said   string
	}{
		{"by the log itself", false, "were dropped to make room for its last"},
		{"by others", true, "no space left on device"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=2m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
					t.Error(err)
				}
			})
			var asked atomic.Int64
			h := newHanger(t, daemon(t).Host())
			h.answer = func(r *http.Request) {
				if strings.HasSuffix(r.URL.Path, "/logs") {
					asked.Add(1)
				}
			}
			e, img := newEngine(t, docker.Config{Host: h.host, Dir: dir})
			go1 := t.TempDir()
			s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
			if err != nil {
				t.Fatal(err)
			}
			c, err := s.Start(t.Context(), berth.StepSpec{
				ID: berth.NewID(), Image: img, Mounts: []berth.Mount{{Source: go1, Target: "/go"}},
				Command: []string{"sh", "-c", "echo first; while ! [ -e /go/on ]; do sleep 0.05; done; seq 1 1000000; sleep 3; echo last; exit 7"},
			})
			if err != nil {
				t.Fatal(err)
			}
			until(t, "it runs", func() bool { return logs(t, c, false) == "first\n" })
			stop := func() {}
			if row.others {
				stop = fillDisk(t, filepath.Join(dir, "fill"))
			}
			if err := os.WriteFile(filepath.Join(go1, "on"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			exit := wait(t, c)
			stop()
			if exit.Reason != berth.Exited || exit.Code != 7 || !strings.Contains(exit.Detail, row.said) {
				t.Errorf("exit %+v", exit)
			}
			if got := logs(t, c, false); !row.others && !strings.HasSuffix(got, "1000000\nlast\n") {
				t.Errorf("the log ends with %q", got[max(0, len(got)-100):])
			}
			if n := asked.Load(); n > 4 {
				t.Errorf("the daemon was asked for its log %d times", n)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if _, c := begin(t, e, img, "echo again"); !wait(t, c).OK() || logs(t, c, false) != "again\n" {
				t.Error("afterwards nothing can be run")
			}
		})
	}
}

// fillDisk takes every byte that there is, and that becomes free, until stop is called, which gives all back.
func fillDisk(t *testing.T, name string) (stop func()) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	full, end, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() { // ends with stop
		defer close(done)
		first := true
		for b := make([]byte, 4096); ; {
			select {
			case <-end:
				return
			default:
			}
			if _, err := f.Write(b); err != nil {
				if first {
					first = false
					close(full)
				}
				time.Sleep(100 * time.Microsecond)
			}
		}
	}()
	<-full
	return func() {
		close(end)
		<-done
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if err := os.Remove(name); err != nil {
			t.Error(err)
		}
	}
}

// TestFullDaemonDisk: what a daemon drops of a log that berth follows, as its disk is full, is not missing without a word.
func TestFullDaemonDisk(t *testing.T) {
	t.Parallel()
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=64m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(disk, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	d := ownDaemon(t, "--data-root", disk)
	cfg := docker.Config{Host: d.Host(), Dir: t.TempDir()}
	first, err := docker.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	_, img := newEngine(t, docker.Config{Host: d.Host()})
	begun, err := first.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	id := berth.NewID()
	if _, err := begun.Start(t.Context(), berth.StepSpec{
		ID: id, Image: img, Command: []string{"sh", "-c", "i=0; while [ $i -lt 1200 ]; do printf '%01000d\\n' $i; i=$((i+1)); sleep 0.005; done; exit 3"},
	}); err != nil {
		t.Fatal(err)
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	e, _ := newEngine(t, cfg)
	s, err := e.Attach(t.Context(), begun.ID())
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.Container(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	had := len(logs(t, c, false))
	until(t, "it is followed", func() bool { return len(logs(t, c, false)) > had+20 })
	stop := fillDisk(t, filepath.Join(disk, "fill"))
	time.Sleep(2 * time.Second)
	stop()
	exit := wait(t, c)
	if got := strings.Count(logs(t, c, false), "\n"); exit.Code != 3 || got == 1200 || !strings.Contains(exit.Detail, "the disk of the daemon was full") {
		t.Errorf("exit %+v, %d lines", exit, got)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
