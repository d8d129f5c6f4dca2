package docker_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
)

// TestPodmanLogGoneOnWith: what a container on Podman writes after its berth is gone is whole: without newlines, by two streams, and with a terminal. Of
// more than its log keeps some is missing, and told.
func TestPodmanLogGoneOnWith(t *testing.T) {
	t.Parallel()
	const lines = 60_000
	for _, row := range []struct {
		name  string
		tty   bool
		keep  int64
		awk   string // of each i
		lines int
	}{
		{"without newlines", false, 0, `printf "%07d", i; if (i % 10000 == 0) print ""; if (i % 100 == 0) fflush()`, 20 * lines},
		{"two streams", false, 0, `print i; if (i % 3 == 0) print i >"/dev/stderr"`, lines},
		{"a terminal", true, 0, `print i`, lines},
		{"more than is kept", false, 1 << 20, `print i`, 20 * lines},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			cfg := docker.Config{Host: podman(t).Host(), Dir: t.TempDir(), LogKeep: row.keep}
			first, img := newEngine(t, cfg)
			s, err := first.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
			if err != nil {
				t.Fatal(err)
			}
			pauses := 10
			if row.name == "without newlines" { // as fast as it can
				pauses = 1
			}
			script := fmt.Sprintf(`BEGIN { for (i = 1; i <= %d; i++) { %s; if (i %% %d == 0) { fflush(); system("sleep 0.3") } } exit 7 }`, row.lines, row.awk, row.lines/pauses)
			c, err := s.Start(t.Context(), berth.StepSpec{ID: berth.NewID(), Image: img, TTY: row.tty, LogLimit: -1, Command: []string{"awk", script}})
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
			exit := wait(t, c)
			if exit.Reason != berth.Exited || exit.Code != 7 || (exit.Detail == "") != (row.keep == 0) {
				t.Errorf("exit %+v", exit)
			}
			var out, errs strings.Builder
			nl := "\n"
			if row.tty {
				nl = "\r\n"
			}
			for i := 1; i <= row.lines; i++ {
				if row.name == "without newlines" {
					fmt.Fprintf(&out, "%07d", i)
					if i%10000 == 0 {
						out.WriteString(nl)
					}
					continue
				}
				fmt.Fprint(&out, i, nl)
				if row.name == "two streams" && i%3 == 0 {
					fmt.Fprint(&errs, i, nl)
				}
			}
			got := logs(t, c, false)
			if row.keep == 0 && got != out.String() {
				t.Errorf("stdout: %s", differ(got, out.String()))
			} else if row.keep > 0 && (!strings.HasSuffix(got, out.String()[out.Len()-1000:]) || !strings.Contains(exit.Detail, "some may be missing")) {
				t.Errorf("it ends with %.100q; %s", got[max(0, len(got)-100):], exit.Detail)
			}
			if !row.tty {
				if got := logs(t, c, true); got != errs.String() {
					t.Errorf("stderr: %s", differ(got, errs.String()))
				}
			}
			if err := s.Close(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
}
