package cli

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// TestDockerWaits: the watchdog's interval and the time for the rest of the output come from the command line, the environment
// or the configuration, to the engine and to workers.
func TestDockerWaits(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("docker_watchdog: 30s\ndocker_output_wait: 1h\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name              string
		args, env         []string
		watchdog, streams time.Duration
		says              string
	}{
		{"nothing", nil, nil, 0, 0, ""},
		{"flags", []string{"--docker-watchdog", "1s", "--docker-output-wait=90s"}, nil, time.Second, 90 * time.Second, ""},
		{"environment", nil, []string{"BERTH_DOCKER_WATCHDOG=3m"}, 3 * time.Minute, 0, ""},
		{"configuration", nil, []string{"BERTH_CONFIG=" + file}, 30 * time.Second, time.Hour, ""},
		{"too short", nil, []string{"BERTH_DOCKER_WATCHDOG=10ms"}, 0, 0, `BERTH_DOCKER_WATCHDOG: "10ms" is not from 1s to 1d`},
		{"too long", nil, []string{"BERTH_DOCKER_OUTPUT_WAIT=2d"}, 0, 0, `BERTH_DOCKER_OUTPUT_WAIT: "2d" is not from 1s to 1d`},
		{"no duration", nil, []string{"BERTH_DOCKER_WATCHDOG=5"}, 0, 0, "there is no unit"},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := &app{in: strings.NewReader(""), out: io.Discard, err: io.Discard, env: append(row.env, "HOME="+t.TempDir())}
			cmd, _, err := a.root().Find([]string{"ps"})
			if err == nil {
				err = cmd.ParseFlags(row.args)
			}
			if err != nil {
				t.Fatal(err)
			}
			err = a.configure(cmd)
			if row.says != "" {
				if !errors.Is(err, berth.ErrInvalid) || !strings.Contains(err.Error(), row.says) {
					t.Errorf("error %v, want %s", err, row.says)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			cfg := a.dockerConfig("/data", "owner")
			if cfg.Watchdog != row.watchdog || cfg.StreamsMax != row.streams {
				t.Errorf("watchdog %v, output %v", cfg.Watchdog, cfg.StreamsMax)
			}
			// A worker, which may not have that command line, reads the same.
			again := &app{in: a.in, out: a.out, err: a.err}
			worker, rest, err := again.root().Find(cfg.Worker[1:])
			if err == nil {
				err = worker.ParseFlags(rest)
			}
			if err != nil || again.global.watchdog != row.watchdog || again.global.outputWait != row.streams || !slices.Contains(cfg.Worker, "worker") {
				t.Errorf("%q: watchdog %v, output %v, %v", cfg.Worker, again.global.watchdog, again.global.outputWait, err)
			}
		})
	}
}
