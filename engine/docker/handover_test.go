package docker_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/logfile"
	"golang.org/x/sys/unix"
)

// TestHandedOver: of a task that a process leaves to the keeper nothing is lost, although it writes faster than its daemon's log, of which little
// is kept, can be read.
func TestHandedOver(t *testing.T) {
	t.Parallel()
	const lines = 500_000 // of 17 bytes
	for _, row := range []struct {
		name string
		step berth.StepSpec
	}{
		{"two streams", berth.StepSpec{}},
		{"a terminal", berth.StepSpec{TTY: true}},
		{"ephemeral", berth.StepSpec{Ephemeral: true}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			cfg := docker.Config{Host: daemon(t).Host(), Dir: t.TempDir(), LogKeep: 1 << 20}
			first, img := newEngine(t, cfg)
			s, err := first.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Labels: map[string]string{docker.LabelResume: "1"}})
			if err != nil {
				t.Fatal(err)
			}
			spec := row.step
			spec.ID, spec.Image, spec.LogLimit = berth.NewID(), img, -1
			spec.Command = []string{"awk", fmt.Sprintf(`BEGIN {
				for (i = 1; i <= %d; i++) {
					printf "%%010d......\n", i
					if (i %% 10 == 0) print i >"/dev/stderr"
				}
				exit 7
			}`, lines)}
			c, err := s.Start(t.Context(), spec)
			if err != nil {
				t.Fatal(err)
			}
			until(t, "it writes", func() bool { return logs(t, c, false) != "" })
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			e, _ := newEngine(t, cfg)
			if s, err = e.Attach(t.Context(), s.ID()); err != nil {
				t.Fatal(err)
			}
			if c, err = s.Container(t.Context(), c.ID()); err != nil {
				t.Fatal(err)
			}
			if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 7 || exit.Detail != "" {
				t.Errorf("exit %+v", exit)
			}
			var out, errs strings.Builder
			for i := 1; i <= lines; i++ {
				fmt.Fprintf(&out, "%010d......\n", i)
				if i%10 == 0 {
					fmt.Fprintln(&errs, i)
				}
			}
			all := map[string]string{"stdout": out.String(), "stderr": errs.String()}
			if spec.TTY { // both in one, in whatever order its buffers are written
				got := logs(t, c, false)
				if want := out.Len() + errs.Len() + lines + lines/10; len(got) != want { // with a carriage return each
					t.Errorf("%d bytes of a terminal; want %d", len(got), want)
				}
				all = nil
			}
			for stream, want := range all {
				if got := logs(t, c, stream == "stderr"); got != want {
					t.Errorf("%s: %s", stream, differ(got, want))
				}
				ix, err := logfile.ReadIndex(filepath.Join(cfg.Dir, "sandboxes", s.ID(), "steps", c.ID(), "logs"), stream)
				if err != nil || len(ix.Gaps) > 0 {
					t.Errorf("%s has marks %v, %v", stream, ix.Gaps, err)
				}
			}
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestNotHandedOverWhatLacks: of a log that lacks what was read, as the disk was full, the daemon's has it: it is read from there.
func TestNotHandedOverWhatLacks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	cfg := docker.Config{Host: daemon(t).Host(), Dir: dir}
	first, img := newEngine(t, cfg)
	s, err := first.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Labels: map[string]string{docker.LabelResume: "1"}})
	if err != nil {
		t.Fatal(err)
	}
	signs := t.TempDir()
	c, err := s.Start(t.Context(), berth.StepSpec{
		ID: berth.NewID(), Image: img, Mounts: []berth.Mount{{Source: signs, Target: "/signs"}},
		Command: []string{"sh", "-c", "cd /signs; echo first; while ! [ -e on ]; do sleep 0.05; done; seq 1 200000; touch written; while ! [ -e end ]; do sleep 0.05; done; echo last; exit 7"},
	})
	if err != nil {
		t.Fatal(err)
	}
	sign := func(name string) {
		if err := os.WriteFile(filepath.Join(signs, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	until(t, "it runs", func() bool { return logs(t, c, false) == "first\n" })
	stop := fillDisk(t, filepath.Join(dir, "fill"))
	sign("on")
	until(t, "it has written", func() bool {
		_, err := os.Stat(filepath.Join(signs, "written"))
		return err == nil
	})
	time.Sleep(time.Second) // in which that is read
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	stop()
	e, _ := newEngine(t, cfg)
	if s, err = e.Attach(t.Context(), s.ID()); err != nil {
		t.Fatal(err)
	}
	if c, err = s.Container(t.Context(), c.ID()); err != nil {
		t.Fatal(err)
	}
	sign("end")
	if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 7 || exit.Detail != "" {
		t.Errorf("exit %+v", exit)
	}
	var want strings.Builder
	want.WriteString("first\n")
	for i := range 200000 {
		fmt.Fprintln(&want, i+1)
	}
	want.WriteString("last\n")
	if got := logs(t, c, false); got != want.String() {
		t.Errorf("its log: %s", differ(got, want.String()))
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
