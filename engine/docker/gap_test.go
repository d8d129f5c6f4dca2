package docker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/logfile"
)

// TestDroppedByTheDaemon: of what a container writes while no berth is there the daemon keeps a bounded part. Where some
// is gone the logs have a mark; where the daemon has lost only what berth has already, they are whole.
func TestDroppedByTheDaemon(t *testing.T) {
	t.Parallel()
	const keep = 256 << 10
	for _, row := range []struct {
		name          string
		before, after int // lines of 100 bytes, while berth is there and is not
		gap           bool
	}{
		{"too much", 1000, 20000, true},
		{"little", 20000, 1000, false},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			cfg := docker.Config{Host: daemon(t).Host(), Dir: t.TempDir(), LogKeep: keep}
			e, img := newEngine(t, cfg)
			first, err := docker.New(cfg)
			if err != nil {
				t.Fatal(err)
			}
			s, err := first.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/vol"}}})
			if err != nil {
				t.Fatal(err)
			}
			line := strings.Repeat("x", 89)
			c := step(t, s, img, fmt.Sprintf(`say() { awk -v a=$1 -v b=$2 'BEGIN { for (i = a; i <= b; i++) printf "%%010d%s\n", i }'; }; say 1 9; sleep 1; say 10 %d; while ! [ -e /vol/go ]; do sleep 0.05; done; say %d %d; touch /vol/said; while ! [ -e /vol/end ]; do sleep 0.05; done; exit 7`,
				line, row.before, row.before+1, row.before+row.after))
			until(t, "what was written first has come", func() bool { return len(logs(t, c, false)) == 100*row.before })
			dir := filepath.Join(cfg.Dir, "sandboxes", s.ID(), "steps", c.ID(), "logs")
			time.Sleep(1200 * time.Millisecond) // clocks tell now from then
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			root, err := s.Volume(t.Context(), "/vol")
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = root.Close() }()
			touch := func(name string) {
				if err := root.WriteFile(name, nil, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			touch("go")
			until(t, "the container has written all", func() bool { _, err := root.Stat("said"); return err == nil })
			if s, err = e.Attach(t.Context(), s.ID()); err != nil {
				t.Fatal(err)
			}
			if c, err = s.Container(t.Context(), c.ID()); err != nil {
				t.Fatal(err)
			}
			touch("end")
			exit := wait(t, c)
			got := logs(t, c, false)
			ix, err := logfile.ReadIndex(dir, "stdout")
			if err != nil {
				t.Fatal(err)
			}
			all := ""
			for i := range row.before + row.after {
				all += fmt.Sprintf("%010d%s\n", i+1, line)
			}
			ours := 100 * row.before
			switch {
			case exit.Code != 7 || exit.Reason != berth.Exited:
				t.Errorf("exit %+v", exit)
			case row.gap && (!slices.Equal(ix.Gaps, []int64{int64(ours)}) || !strings.Contains(exit.Detail, "may be missing of stdout")):
				t.Errorf("gaps %v, exit %+v", ix.Gaps, exit)
			case row.gap && (got[:ours] != all[:ours] || !strings.HasSuffix(all, got[ours:]) || len(got)-ours < keep/2):
				t.Errorf("%d bytes are not the beginning and the end of what was written", len(got))
			case !row.gap && (len(ix.Gaps) > 0 || got != all || exit.Detail != ""):
				t.Errorf("%d bytes of %d, gaps %v, exit %+v", len(got), len(all), ix.Gaps, exit)
			}
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// until waits until something is so.
func until(t *testing.T, what string, so func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !so(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("it never came to be that " + what)
		}
	}
}

// TestEphemeral: the daemon keeps nothing of what an ephemeral container writes; what berth reads is whole, and where a
// connection broke there is a mark.
func TestEphemeral(t *testing.T) {
	t.Parallel()
	ephemeral(t, daemon(t).Host())
}

// TestPodmanEphemeral is the same on Podman, which makes an ended container ready to start anew for who attaches to it.
func TestPodmanEphemeral(t *testing.T) {
	t.Parallel()
	ephemeral(t, podman(t).Host())
}

func ephemeral(t *testing.T, host string) {
	t.Helper()
	cut := newCutter(t, host)
	dir := t.TempDir()
	e, img := newEngine(t, docker.Config{Host: "unix://" + cut.l.Addr().String(), Dir: dir})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/vol"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	run := func(script string) berth.Container {
		t.Helper()
		c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, Ephemeral: true, Command: []string{"sh", "-c", script}})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := run("seq 20000; echo err >&2; exit 3")
	kept, _ := filepath.Glob(filepath.Join(dataRoot(t), "containers", "*", "local-logs"))
	for _, k := range kept {
		if raw, err := os.ReadFile(filepath.Join(filepath.Dir(k), "config.v2.json")); err == nil && strings.Contains(string(raw), c.ID()) {
			t.Errorf("the daemon keeps a log in %s", k)
		}
	}
	exit := wait(t, c)
	for range 5 {
		if c := run("echo one"); !wait(t, c).OK() || logs(t, c, false) != "one\n" {
			t.Errorf("exit %+v, %q", wait(t, c), logs(t, c, false))
		}
	}
	want := ""
	for i := range 20000 {
		want += fmt.Sprintln(i + 1)
	}
	if got := logs(t, c, false); exit.Code != 3 || exit.Detail != "" || got != want || logs(t, c, true) != "err\n" {
		t.Errorf("%d bytes of %d, exit %+v", len(got), len(want), exit)
	}
	c = run("echo one; while ! [ -e /vol/go ]; do sleep 0.05; done; echo two; exit 4")
	until(t, "the first line has come", func() bool { return logs(t, c, false) == "one\n" })
	cut.cut()
	time.Sleep(6 * time.Second) // it attaches again
	root, err := s.Volume(t.Context(), "/vol")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	if err := root.WriteFile("go", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	exit = wait(t, c)
	if got := logs(t, c, false); exit.Code != 4 || got != "one\ntwo\n" || !strings.Contains(exit.Detail, "stdout after byte 4") {
		t.Errorf("stdout %q, exit %+v", got, exit)
	}
}

func dataRoot(t *testing.T) string {
	return filepath.Join(filepath.Dir(strings.TrimPrefix(daemon(t).Host(), "unix://")), "data")
}
