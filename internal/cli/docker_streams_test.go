package cli

import (
	"bytes"
	"context"
	"crypto/md5"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/engine/docker/dockertest"
)

// TestDockerStreamFiles: files of the standard streams of a detached task are whole, though all of berth is killed in the
// middle: what it is given to read, or it is not told as a success; and what it writes, where it lies in a volume.
func TestDockerStreamFiles(t *testing.T) { onDaemons(t, dockerStreamFiles) }

func dockerStreamFiles(t *testing.T, b *bench) {
	t.Helper()
	t.Run("in, detached", func(t *testing.T) {
		const size = 8 << 20
		b.write("in", string(bytes.Repeat([]byte("0123456\n"), size/8)))
		b.write("task.json", `{"name": "reads", "inputs": [{"url": "in", "path": "/in/file"}], "executors": [
		  {"image": "bb", "stdin": "/in/file", "command": ["sh", "-c", "echo up; sleep 4; wc -c", "`+b.word()+`"]}]}`)
		if out, code := b.output("run", "--detach", "-f", "task.json"); code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		if out, code := b.output("wait", "reads"); out != "0\n" || code != 0 {
			t.Errorf("wait: %s", out)
		}
		if out, _ := b.output("logs", "reads"); out != fmt.Sprintf("up\n%d\n", size) {
			t.Errorf("logs: %s", out)
		}
	})
	t.Run("out", func(t *testing.T) {
		b.write("task.json", `{"name": "writes", "volumes": ["/v"], "outputs": [{"url": "out", "path": "/v/out"}], "executors": [
		  {"image": "bb", "stdout": "/v/out", "command": ["sh", "-c", "echo up; seq 1000; while [ ! -e /v/go ]; do sleep 0.05; done; seq 1000", "`+b.word()+`"]}]}`)
		if out, code := b.output("run", "--detach", "-f", "task.json"); code != 0 {
			t.Fatalf("exit code %d: %s", code, out)
		}
		b.await("\n1000\n", "logs", "writes")
		b.workersEnd()
		if err := syscall.Kill(b.keeper(), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if out, code := b.output("exec", "writes", "touch", "/v/go"); code != 0 {
			t.Fatalf("exec: exit code %d: %s", code, out)
		}
		if out, _ := b.output("wait", "writes"); out != "0\n" {
			t.Errorf("wait: %s", out)
		}
		want := "up\n"
		for i := range 2000 {
			want += fmt.Sprintln(i%1000 + 1)
		}
		if raw, err := os.ReadFile(filepath.Join(b.dir, "out")); string(raw) != want {
			t.Errorf("%d bytes, want %d, %v", len(raw), len(want), err)
		}
	})
	b.gone(daemonsTime)
}

// write makes a file where berth runs.
func (b *bench) write(name, text string) {
	b.t.Helper()
	if err := os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600); err != nil {
		b.t.Fatal(err)
	}
}

// TestDockerRemoteRestarted: a daemon on another machine that is killed in the middle of an output, and is away for longer
// than a call is tried again for, costs nothing of the task.
func TestDockerRemoteRestarted(t *testing.T) {
	startRemote(t) // or skip
	dir, err := os.MkdirTemp("/var/tmp", "berth-dockerd-")
	if err != nil {
		t.Fatal(err)
	}
	d, err := dockertest.Start(context.Background(), dockertest.Options{Dir: dir, Remote: true})
	if err != nil {
		t.Fatal("needs a Docker daemon:", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	wire, err := dockertest.NewTripwire(d.Remote())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = wire.Close() })
	b := newBench(t, append(wire.Remote.Env(), "BERTH_ENGINE=docker")...)
	const size = 32 << 20
	again := make(chan error, 1)
	wire.Arm(8<<20, func() {
		if err := d.Kill(); err != nil {
			again <- err
			return
		}
		time.AfterFunc(6*time.Second, func() { again <- d.Run(context.Background()) })
	})
	out, code := b.output("run", "--volume", "/v", "--output", "out:/v/out", "bb", "sh", "-c", fmt.Sprintf("head -c %d /dev/urandom >/v/out; md5sum </v/out", size))
	select {
	case err := <-again:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(daemonsTime): // it may serve before who starts it has said so
		t.Fatalf("the daemon was not away: %s", out)
	}
	raw, err := os.ReadFile(filepath.Join(b.dir, "out"))
	if sum := fmt.Sprintf("%x  -\n", md5.Sum(raw)); code != 0 || !strings.HasPrefix(out, sum) || len(raw) != size {
		t.Errorf("exit code %d: %s: %d bytes, which are %s, %v", code, out, len(raw), sum, err)
	}
	b.goneFrom(d)
}

// TestDockerRemoteKilledInTransfer: of a task whose berth is killed in the middle of an input nothing is left on a daemon on
// another machine, and nothing has run.
func TestDockerRemoteKilledInTransfer(t *testing.T) {
	d := startRemote(t)
	wire, err := dockertest.NewTripwire(d.Remote())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = wire.Close() })
	b := newBench(t, append(wire.Remote.Env(), "BERTH_ENGINE=docker")...)
	b.write("in", string(make([]byte, 32<<20)))
	cmd := b.berth("run", "--input", "in:/in/file", "--volume", "/v", "bb", "sh", "-c", "echo ran", b.word())
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	killed := make(chan error, 1)
	wire.Arm(8<<20, func() { killed <- cmd.Process.Kill() })
	_ = cmd.Wait()
	select {
	case err := <-killed:
		if err != nil {
			t.Fatal(err)
		}
	case <-time.After(daemonsTime): // the death may be seen before who kills has said so
		t.Fatalf("nothing was transferred: %s%s", out.String(), said.String())
	}
	b.await(`"state":"SYSTEM_ERROR"`, "ps", "-a", "--format", "json")
	b.gone(daemonsTime)
	b.goneFrom(d)
	if out.Len() > 0 {
		t.Errorf("it has run: %s", out.String())
	}
}
