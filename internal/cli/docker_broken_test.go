package cli

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth/engine/docker/dockertest"
)

// TestDockerBrokenHook: with a hook for a broken host, tasks whose limits, network or runtime are held to what the daemon has
// wait, too, until one that is gone is back. They are held to it then.
func TestDockerBrokenHook(t *testing.T) {
	d := ownDockerd(t, dockertest.Options{})
	b := newBench(t, "DOCKER_HOST="+d.Host(), "BERTH_ENGINE=docker")
	hook := filepath.Join(b.dir, "hook")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho \"$BERTH_BROKEN_WHY\" >> "+b.dir+"/told\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	told := func() string { raw, _ := os.ReadFile(filepath.Join(b.dir, "told")); return string(raw) }
	if err := d.Stop(); err != nil {
		t.Fatal(err)
	}
	rows := []struct {
		name string
		args []string
		code int
		says string // the last line, where it fails
	}{
		{"limits", []string{"--cpus", "1", "--memory", "64MiB"}, 0, ""},
		{"runtime", []string{"--runtime", "runc"}, 0, ""},
		{"gone", []string{"--network", "gone"}, exitOwn, "berth: network gone: not found: the daemon has none of that name"},
		{"big", []string{"--cpus", "4000", "--over-capacity", "try_with_max"}, 0, ""},
	}
	cmds, errs := make([]*exec.Cmd, len(rows)), make([]bytes.Buffer, len(rows))
	for i, row := range rows {
		cmds[i] = b.berth(append(append([]string{"--broken-hook", hook, "run", "--name", row.name}, row.args...), "bb", "true")...)
		cmds[i].Stderr = &errs[i]
		if err := cmds[i].Start(); err != nil {
			t.Fatal(err)
		}
		b.await(row.name, "ps", "--state", "QUEUED")
		b.await("until this host is mended", "inspect", row.name)
	}
	if n := strings.Count(told(), "\n"); n != 1 || !strings.Contains(told(), "daemon") {
		t.Errorf("the hook was told %d times: %s", n, told())
	}
	// Without a hook they are refused.
	if out, code := b.output("run", "--cpus", "1", "bb", "true"); code != exitOwn || !strings.Contains(out, d.Host()) {
		t.Errorf("without a hook: exit code %d: %s", code, out)
	}
	if err := d.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	if out, code := b.output("system", "mended"); code != 0 {
		t.Fatalf("exit code %d: %s", code, out)
	}
	for i, row := range rows {
		ended := make(chan error, 1)
		go func() { ended <- cmds[i].Wait() }()
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Fatalf("%s goes on: %s", row.name, &errs[i])
		}
		if code := cmds[i].ProcessState.ExitCode(); code != row.code || !strings.HasSuffix(errs[i].String(), row.says+"\n") {
			t.Errorf("%s: exit code %d: %s", row.name, code, &errs[i])
		}
	}
	if told := told(); strings.Count(told, "\n") != 1 {
		t.Errorf("the hook was told again: %s", told)
	}
	b.within(daemonsTime, "nothing is left", func() bool {
		left, err := filepath.Glob(filepath.Join(b.data, "docker", "*", "sandboxes", "*"))
		return err == nil && len(left) == 0
	})
}
