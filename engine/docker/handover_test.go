package docker_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/logfile"
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
