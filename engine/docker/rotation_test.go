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

// TestFollowedAcrossFiles: of a container that another berth has started, and whose log has many of the daemon's files, all comes, once:
// of a stream that writes much, one that writes a little all the time, and one that writes something now and then.
func TestFollowedAcrossFiles(t *testing.T) {
	t.Parallel()
	const (
		keep  = 16 << 20
		lines = 4000 // of 10 KB
	)
	for _, row := range []struct{ name, quiet string }{
		{"and a little", "i % 50 == 0"},
		{"and hardly anything", "i == 10 || i == 3000"},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			cfg := docker.Config{Host: daemon(t).Host(), Dir: t.TempDir(), LogKeep: keep}
			first, img := newEngine(t, cfg)
			s, err := first.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
			if err != nil {
				t.Fatal(err)
			}
			pad := strings.Repeat("x", 500)
			c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, LogLimit: -1, Command: []string{"awk", fmt.Sprintf(`BEGIN {
				for (i = 0; i < 20; i++) pad = pad "%s"
				print "up"; fflush(); system("sleep 2")
				for (i = 1; i <= %d; i++) {
					printf "%%010d%%s\n", i, pad
					if (i %% 20 == 0) { fflush(); system("sleep 0.05") }
					if (%s) { printf "%%d\n", i >"/dev/stderr"; fflush("/dev/stderr") }
				}
				exit 7
			}`, pad, lines, row.quiet)}})
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
			out.WriteString("up\n")
			pad = strings.Repeat(pad, 20)
			for i := 1; i <= lines; i++ {
				fmt.Fprintf(&out, "%010d%s\n", i, pad)
				if i%50 == 0 && strings.Contains(row.quiet, "%") || (i == 10 || i == 3000) && !strings.Contains(row.quiet, "%") {
					fmt.Fprintln(&errs, i)
				}
			}
			for stream, want := range map[string]string{"stdout": out.String(), "stderr": errs.String()} {
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
