package cli

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth/ledger"
)

// deaf is a daemon that accepts connections and does not answer calls whose path has this in it; others it answers as one
// does that has nothing.
func deaf(t *testing.T, to string) (host string, called <-chan struct{}) {
	t.Helper()
	sock := filepath.Join(t.TempDir(), "s")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	heard, end := make(chan struct{}), make(chan struct{})
	var once sync.Once
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.Contains(r.URL.Path, to) {
			once.Do(func() { close(heard) })
			select {
			case <-r.Context().Done():
			case <-end:
			}
			return
		}
		w.Header().Set("Api-Version", "1.41")
		w.Header().Set("Content-Type", "application/json")
		asked, _ := io.ReadAll(r.Body)
		switch _, call, _ := strings.Cut(r.URL.Path, "/v1.41/"); {
		case strings.HasSuffix(r.URL.Path, "_ping"):
		case call == "info":
			_, _ = io.WriteString(w, `{"OSType":"linux","Architecture":"x86_64","NCPU":2,"MemTotal":4294967296,"MemoryLimit":true,"CPUCfsQuota":true}`)
		case call == "version":
			_, _ = io.WriteString(w, `{"Version":"20.10.24","ApiVersion":"1.41"}`)
		case call == "images/json":
			_, _ = io.WriteString(w, `[]`)
		case call == "containers/create" && strings.Contains(string(asked), `-not"`):
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"message":"invalid mount config for type \"bind\": bind source path does not exist: x"}`)
		default:
			w.WriteHeader(http.StatusNotFound)
			_, _ = io.WriteString(w, `{"message":"no such thing"}`)
		}
	})}
	go func() { _ = server.Serve(l) }() // ends with the server
	t.Cleanup(func() { close(end); _ = server.Close() })
	return "unix://" + sock, heard
}

// TestDeafDaemon: one interrupt ends a run whose daemon does not answer, at once, and nothing is left of it.
func TestDeafDaemon(t *testing.T) {
	const most = 30 * time.Second // of calls that may take two minutes
	for _, row := range []struct {
		name, deaf string
		args       []string
		says       string
		recorded   bool
	}{
		{"to all", "/", nil, "berth: its end came before it was recorded: canceled\n", false},
		{"to who asks what it is", "/info", nil, "berth: its end came before it was recorded: canceled\n", false},
		{"of which a limit is asked", "/", []string{"--memory", "64MiB"}, "berth: docker info: canceled\n", false},
		{"of which a network is asked", "/networks/", []string{"--network", "net"}, "berth: its end came before it was recorded: canceled\n", false},
		{"of a detached task", "/", []string{"--detach"}, "berth: its end came before it was recorded: canceled\n", false},
		{"to who pulls an image", "/images/create", []string{"--progress", "none", "--memory", "64MiB"}, "berth: Canceled: an end was asked for\n", true},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			host, called := deaf(t, row.deaf)
			b := &bench{t: t, dir: t.TempDir(), program: "/proc/self/exe", env: []string{"DOCKER_HOST=" + host, "BERTH_ENGINE=docker"}}
			b.data = filepath.Join(b.dir, "data")
			var said strings.Builder
			cmd := b.berth(append(append([]string{"run"}, row.args...), "x", "true")...)
			cmd.Stdout, cmd.Stderr = &said, &said
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() { _ = cmd.Wait(); close(ended) }()
			select {
			case <-called:
			case <-ended:
				t.Fatalf("it ended by itself: %s", said.String())
			}
			b.signal(cmd, syscall.SIGINT)
			select {
			case <-ended:
			case <-time.After(most):
				_ = cmd.Process.Kill()
				<-ended
				t.Fatalf("it does not end: %s", said.String())
			}
			// So is this machine.
			busy := strings.NewReplacer("berth: ending the task; interrupt again to kill it at once\n", "", "berth: waiting for the daemon to answer\n", "")
			if code := cmd.ProcessState.ExitCode(); code != exitCanceled || busy.Replace(said.String()) != row.says {
				t.Errorf("exit code %d: %s", code, said.String())
			}
			ids, code := b.output("ps", "--all", "--quiet")
			if code != 0 || len(strings.Fields(ids)) != map[bool]int{true: 1}[row.recorded] {
				t.Errorf("ps: exit code %d: %s", code, ids)
			}
			lends, err := (&app{out: io.Discard, err: io.Discard}).openLedger(b.data)
			if err != nil {
				t.Fatal(err)
			}
			if s, err := lends.Snapshot(t.Context()); err != nil || slices.ContainsFunc(append(s.Leases, s.Waiting...), func(e ledger.Entry) bool {
				return slices.Contains(strings.Fields(ids), e.Task)
			}) {
				t.Errorf("in the ledger: %+v, %v", s, err)
			}
			all := []string{"docker/*/sandboxes/*", "docker/*/run/probe-*"}
			if !row.recorded {
				all = append(all, "tasks/*")
			}
			for _, where := range all {
				if left, _ := filepath.Glob(filepath.Join(b.data, where)); len(left) > 0 {
					t.Errorf("left over: %q", left)
				}
			}
			if _, err := os.Stat(filepath.Join(b.data, "berth.db")); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDeafDaemonIsTold: who waits for a daemon that does not answer is told so.
func TestDeafDaemonIsTold(t *testing.T) {
	t.Parallel()
	host, _ := deaf(t, "/")
	b := &bench{t: t, dir: t.TempDir(), program: "/proc/self/exe", env: []string{"DOCKER_HOST=" + host, "BERTH_ENGINE=docker"}}
	b.data = filepath.Join(b.dir, "data")
	cmd := b.berth("run", "x", "true")
	errs, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(errs).ReadString('\n')
	if err != nil || line != "berth: waiting for the daemon to answer\n" {
		t.Errorf("%q, %v", line, err)
	}
	b.signal(cmd, syscall.SIGINT)
	_, _ = io.Copy(io.Discard, errs)
	_ = cmd.Wait()
}
