package docker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/moby/moby/client"
)

// followEnv has the test's program be a berth that follows a container until it is killed: see followerMain.
const followEnv = "BERTH_TEST_FOLLOW"

// following is what such a berth does.
type following struct {
	Host, Dir string
	Sandbox   berth.SandboxSpec
	Step      berth.StepSpec // started; where it has no command, found
}

// followerMain takes over the test's program where it is to be a berth that follows a container. It never returns then.
func followerMain() {
	text := os.Getenv(followEnv)
	if text == "" {
		return
	}
	if err := follow([]byte(text)); err != nil {
		fmt.Fprintln(os.Stderr, "follow:", err)
	}
	os.Exit(1)
}

func follow(text []byte) error {
	var f following
	if err := json.Unmarshal(text, &f); err != nil {
		return err
	}
	ctx := context.Background()
	e, err := docker.New(docker.Config{Host: f.Host, Dir: f.Dir})
	if err != nil {
		return err
	}
	s, err := e.Open(ctx, f.Sandbox)
	if err != nil {
		return err
	}
	var c berth.Container
	if f.Step.Command != nil {
		c, err = s.Start(ctx, f.Step)
	} else {
		c, err = s.Container(ctx, f.Step.ID)
	}
	if err != nil {
		return err
	}
	exit, err := c.Wait(ctx) // for ever
	return fmt.Errorf("the container has ended: %+v, %w", exit, err)
}

// flood writes numbered lines to both streams, a hundred at a time, until it is told to stop, and then how many they were.
const flood = `BEGIN {
	pad = "` + floodPad + `"
	for (i = 1; ; i++) {
		printf "%010d%s\n", i, pad
		if (i % 10 == 0) printf "%010d\n", i > "/dev/stderr"
		if (i % 100 == 0) {
			fflush()
			if ((getline line < "/vol/stop") >= 0) break
			if (i % 1000 == 0) system("sleep 0.005")
		}
	}
	print i > "/vol/count"
	exit 7
}`

const floodPad = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"

// flooded is what it wrote by its line n.
func flooded(n int) (out, errs string) {
	var o, e bytes.Buffer
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&o, "%010d%s\n", i, floodPad)
		if i%10 == 0 {
			fmt.Fprintf(&e, "%010d\n", i)
		}
	}
	return o.String(), e.String()
}

// TestBerthKilled: berths that are killed while a container writes as fast as it can, one after another, cost no byte and no
// exit, whatever becomes of the daemon meanwhile. A daemon that is itself restarted in the middle of that loses what it has
// read from the container and written nowhere yet: of that alone nobody can know.
func TestBerthKilled(t *testing.T) {
	t.Parallel()
	again := func(ends ...func() error) func(*dockertest.Daemon) error {
		return func(d *dockertest.Daemon) error {
			for _, end := range ends {
				if err := errors.Join(end(), d.Run(context.Background())); err != nil {
					return err
				}
			}
			return nil
		}
	}
	t.Run("and the daemon is untouched", func(t *testing.T) {
		t.Parallel()
		berthKilled(t, daemon(t), again(), false, 0)
	})
	t.Run("and the daemon is restarted", func(t *testing.T) {
		t.Parallel()
		d := ownDaemon(t)
		berthKilled(t, d, again(d.Stop), true, 0)
		t.Log("and the host ends with the daemon")
		berthKilled(t, d, again(func() error { return errors.Join(d.Kill(), d.KillRest()) }), true, 0)
	})
	t.Run("and the daemon is restarted, with live-restore", func(t *testing.T) {
		t.Parallel()
		d := ownDaemon(t, "--live-restore")
		berthKilled(t, d, again(d.Stop, d.Kill), false, 2*handMax)
		t.Log("and the host ends with the daemon")
		berthKilled(t, d, again(func() error { return errors.Join(d.Kill(), d.KillRest()) }), true, 0)
	})
}

// berthKilled has berths killed that follow a container, then something done to the daemon, which ends its containers by it or
// not, and a berth see what became of them. inHand is how much the daemon may lose of what it had in hand, in bytes.
func berthKilled(t *testing.T, d *dockertest.Daemon, then func(*dockertest.Daemon) error, ends bool, inHand int) {
	t.Helper()
	dir := t.TempDir()
	_, img := newEngine(t, docker.Config{Host: d.Host()})
	f := following{
		Host: d.Host(), Dir: dir,
		Sandbox: berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/vol"}}},
		Step:    berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"awk", flood}, LogLimit: -1},
	}
	for range 3 {
		followAndKill(t, f)
		f.Step.Command = nil
	}
	if err := then(d); err != nil {
		t.Fatal(err)
	}
	e, err := docker.New(docker.Config{Host: d.Host(), Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = e.Close() }()
	s, err := e.Attach(t.Context(), f.Sandbox.ID)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	c, err := s.Container(t.Context(), f.Step.ID)
	if err != nil {
		t.Fatal(err)
	}
	root, err := s.Volume(t.Context(), "/vol")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = root.Close() }()
	if !ends {
		had := len(logs(t, c, false))
		until(t, "it is followed again, and writes on", func() bool { return len(logs(t, c, false)) > had+100_000 })
		if err := root.WriteFile("stop", nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	exit := wait(t, c)
	has := map[string]string{"stdout": logs(t, c, false), "stderr": logs(t, c, true)}
	if ends {
		if exit.Reason != berth.Signaled && exit.Reason != berth.Lost {
			t.Errorf("exit %+v", exit)
		}
		out, errs := flooded(len(has["stdout"])/100 + 10000)
		for stream, whole := range map[string]string{"stdout": out, "stderr": errs} {
			daemons := daemonLog(t, d.Host(), e.Owner(), f, stream)
			if got := has[stream]; !strings.HasPrefix(whole, got) || len(got) < len(daemons) || got == "" {
				t.Errorf("%s: %s; the daemon has %d bytes of it", stream, differ(got, whole), len(daemons))
			}
		}
		return
	}
	raw, err := root.ReadFile("count")
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	if exit.Reason != berth.Exited || exit.Code != 7 || exit.Detail != "" {
		t.Errorf("exit %+v", exit)
	}
	out, errs := flooded(n)
	for stream, whole := range map[string]string{"stdout": out, "stderr": errs} {
		if lost := missing(has[stream], whole); lost < 0 || lost > inHand {
			t.Errorf("%s: %d bytes are missing: %s", stream, lost, differ(has[stream], whole))
		}
	}
}

// handMax is more than a daemon has in hand of what a container writes. What that is when it ends, it loses.
const handMax = 256 << 10

// missing is how many bytes of want got lacks, in one piece or more; -1 where it is other than want without such.
func missing(got, want string) (lost int) {
	const piece = 300 // bytes, which are there once
	for {
		i := 0
		for i < len(got) && i < len(want) && got[i] == want[i] {
			i++
		}
		got, want = got[i:], want[i:]
		if got == "" {
			return lost + len(want)
		}
		at := strings.Index(want, got[:min(piece, len(got))])
		if at < 0 {
			return -1
		}
		lost += at
		want = want[at:]
	}
}

// followAndKill has a berth of its own follow the container, and kills it once it has taken a part of what that writes.
func followAndKill(t *testing.T, f following) {
	t.Helper()
	log := filepath.Join(f.Dir, "sandboxes", f.Sandbox.ID, "steps", f.Step.ID, "logs", "stdout")
	had := int64(0)
	if st, err := os.Stat(log); err == nil {
		had = st.Size()
	}
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe")
	cmd.Env = append(os.Environ(), followEnv+"="+string(text))
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // ends with the process
		_ = cmd.Wait()
		close(ended)
	}()
	const some = 500_000
	until(t, "the berth has taken some", func() bool {
		select {
		case <-ended:
			t.Fatalf("it ended by itself: %s", &said)
		default:
		}
		st, err := os.Stat(log)
		return err == nil && st.Size() > had+some
	})
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
}

// differ says where got is another than want.
func differ(got, want string) string {
	i := 0
	for i < len(got) && i < len(want) && got[i] == want[i] {
		i++
	}
	const around = 120
	return fmt.Sprintf("%d bytes of %d; from byte %d on %.*q, not %.*q", len(got), len(want), i, around, got[i:], around, want[i:])
}

// daemonLog is what the daemon itself has of a stream.
func daemonLog(t *testing.T, host, owner string, f following, stream string) []byte {
	t.Helper()
	api, err := client.New(client.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	res, err := api.ContainerLogs(t.Context(), "berth-"+owner+"-"+f.Sandbox.ID+"-"+f.Step.ID, client.ContainerLogsOptions{ShowStdout: stream == "stdout", ShowStderr: stream == "stderr"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Close() }()
	var text []byte
	for head := make([]byte, 8); ; {
		if _, err := io.ReadFull(res, head); errors.Is(err, io.EOF) {
			return text
		} else if err != nil {
			t.Fatal(err)
		}
		part := make([]byte, int(head[4])<<24|int(head[5])<<16|int(head[6])<<8|int(head[7]))
		if _, err := io.ReadFull(res, part); err != nil {
			t.Fatal(err)
		}
		text = append(text, part...)
	}
}
