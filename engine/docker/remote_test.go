package docker_test

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/berth-project/berth/engine/enginetest"
	"github.com/moby/moby/client"
)

var sharedRemote started

// remoteConfig is for a daemon that is as on another machine, and reached by TLS.
func remoteConfig(t testing.TB) docker.Config {
	t.Helper()
	sharedRemote.once.Do(func() {
		dir, err := os.MkdirTemp("/var/tmp", "berth-dockerd-")
		if err != nil {
			sharedRemote.err = err
			return
		}
		sharedRemote.daemon, sharedRemote.err = dockertest.Start(context.Background(), dockertest.Options{Dir: dir, Bridge: true, Remote: true})
		if sharedRemote.err == nil {
			sharedRemote.err = importImage(context.Background(), sharedRemote.daemon)
		}
	})
	if sharedRemote.err != nil {
		t.Fatal("needs a Docker daemon:", sharedRemote.err)
	}
	at := sharedRemote.daemon.Remote()
	return docker.Config{Host: "tcp://" + at.Addr, Certs: at.Certs, Dir: t.TempDir()}
}

// remoteSkips are the checks of what is otherwise on another machine.
var remoteSkips = map[string]string{
	"bind mounts":               "they would name files of the daemon's machine, and are refused; TestRemote has copies",
	"mounts lie one in another": "it binds a directory of this machine",
	"usage at the end":          "it is what the daemon said when it was last asked, which misses the end of a short run; TestRemoteUsage has the rest",
	"cpu limit":                 "it wants the usage of a run of 2 s, which a busy daemon has not told yet; TestRemoteUsage sees the quota",
	"pids limit":                "only the cgroup counts what the limit refuses; that it holds, TestRemoteUsage sees",
	"mounts of lent devices":    "devices are of this machine",
}

// TestRemoteSuite runs the suite that every engine must pass on a daemon that is as on another machine.
func TestRemoteSuite(t *testing.T) {
	cfg := remoteConfig(t)
	e, img := newEngine(t, cfg)
	also := maps.Clone(skips)
	maps.Copy(also, remoteSkips)
	enginetest.Run(t, &enginetest.Env{
		Engine: e, Image: img, Dir: t.TempDir(),
		Again: func(context.Context) (berth.Engine, error) {
			again, _ := newEngine(t, cfg)
			return again, nil
		},
		Parallel: true,
		Blind:    2 * time.Second, // containerd listens when it has started a container, and on a busy machine begins with that late
		Lacks:    map[enginetest.Ability]string{enginetest.Grants: "GPUs are of this machine, and refused for a daemon on another; TestRemoteRefusals"},
	}, also)
}

// TestElsewhere: a daemon is on another machine by what it sees, whatever its address.
func TestElsewhere(t *testing.T) {
	t.Parallel()
	remote := remoteConfig(t)
	for _, row := range []struct {
		name string
		cfg  docker.Config
		away bool
	}{
		{"a socket of this machine", docker.Config{Host: daemon(t).Host(), Dir: t.TempDir()}, false},
		{"a socket that somebody forwards", docker.Config{Host: newHanger(t, daemon(t).Host()).host, Dir: t.TempDir()}, false},
		{"this machine, by TCP", docker.Config{Host: forwardTCP(t, daemon(t).Host()), Dir: t.TempDir()}, false},
		{"another machine, by TCP", docker.Config{Host: forwardTCP(t, sharedRemote.daemon.Host()), Dir: t.TempDir()}, true},
		{"another machine, by TLS", remote, true},
		{"another machine, by a socket that somebody forwards", docker.Config{Host: newHanger(t, sharedRemote.daemon.Host()).host, Dir: t.TempDir()}, true},
	} {
		e, _ := newEngine(t, row.cfg)
		away, err := e.Elsewhere(t.Context())
		if err != nil || (away != "") != row.away {
			t.Errorf("%s: elsewhere %q, %v", row.name, away, err)
		}
	}
}

// forwardTCP is an address on loopback behind which a daemon's socket is.
func forwardTCP(t *testing.T, host string) string {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				defer func() { _ = c.Close() }()
				to, err := new(net.Dialer).DialContext(context.Background(), "unix", strings.TrimPrefix(host, "unix://"))
				if err != nil {
					return
				}
				defer func() { _ = to.Close() }()
				go func() { _, _ = io.Copy(to, c) }()
				_, _ = io.Copy(c, to)
			}()
		}
	}()
	return "tcp://" + l.Addr().String()
}

// TestRemote: inputs are copied to the daemon and cannot be written, volumes are shared by steps, and outputs are read back.
func TestRemote(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, remoteConfig(t))
	input := filepath.Join(t.TempDir(), "input")
	if err := os.WriteFile(input, []byte("content\n"), 0o640); err != nil {
		t.Fatal(err)
	}
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Volumes: []berth.Volume{{Path: "/out/deep"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}()
	run := func(id, script string) {
		t.Helper()
		c, err := s.Start(t.Context(), berth.StepSpec{
			ID: id, Image: img, Command: []string{"sh", "-c", script},
			Mounts: []berth.Mount{{Source: input, Target: "/in/file", ReadOnly: true, Copy: true}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if exit, err := c.Wait(t.Context()); err != nil || !exit.OK() {
			t.Fatalf("%s: %+v, %v", script, exit, err)
		}
	}
	run("one", `[ "$(stat -c %a /in/file /out/deep | tr '\n' ' ')" = "640 1777 " ] && ! echo x 2>/dev/null >/in/file && cp /in/file /out/deep/copy`)
	run("two", "cat /in/file >>/out/deep/copy")
	if _, err := s.Volume(t.Context(), "/out/deep"); !errors.Is(err, berth.ErrUnsupported) {
		t.Errorf("the volume is here: %v", err)
	}
	r, err := s.(berth.VolumeArchiver).ArchiveVolume(t.Context(), "/out/deep/copy")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	archive := tar.NewReader(r)
	h, err := archive.Next()
	if err != nil {
		t.Fatal(err)
	}
	if raw, err := io.ReadAll(archive); h.Name != "copy" || string(raw) != "content\ncontent\n" || err != nil {
		t.Errorf("%s holds %q, %v", h.Name, raw, err)
	}
}

// TestTLSFaults: what is wrong with TLS is said, in one line, with its kind and what to do.
func TestTLSFaults(t *testing.T) {
	t.Parallel()
	remote := remoteConfig(t)
	certs := func(names ...string) string {
		dir := t.TempDir()
		for _, n := range names {
			raw, err := os.ReadFile(filepath.Join(remote.Certs, n))
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, n), raw, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		return dir
	}
	other := t.TempDir()
	if err := dockertest.MakeCerts(filepath.Join(other, "client"), filepath.Join(other, "server")); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, host, certs string
		says              string
		kind              error
	}{
		{"no files", remote.Host, certs(), "there is neither ca.pem nor cert.pem", berth.ErrNotFound},
		{"half a pair", remote.Host, certs("ca.pem", "cert.pem"), "one of cert.pem and key.pem", berth.ErrInvalid},
		{"nobody asks", remote.Host, certs("ca.pem"), "cert.pem and key.pem in DOCKER_CERT_PATH", berth.ErrDenied},
		{"another authority", remote.Host, filepath.Join(other, "client"), "is ca.pem in DOCKER_CERT_PATH", berth.ErrDenied},
		{"no TLS to a daemon with it", remote.Host, "", "the daemon speaks TLS: set DOCKER_TLS_VERIFY=1", berth.ErrDenied},
		{"no TLS to another machine", "tcp://192.0.2.1:2375", "", "without TLS everybody on the way", berth.ErrDenied},
	} {
		e, err := docker.New(docker.Config{Host: row.host, Certs: row.certs, Dir: t.TempDir()})
		if err == nil {
			_, err = e.Info(t.Context())
			_ = e.Close()
		}
		if !errors.Is(err, row.kind) || err != nil && (!strings.Contains(err.Error(), row.says) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("%s: %v; want %v, and %q", row.name, err, row.kind, row.says)
		}
	}
}

// TestRemoteRefusals: what is of this machine is refused for a daemon on another, before anything is made.
func TestRemoteRefusals(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, remoteConfig(t))
	grants := []berth.Grant{{Vendor: "amd", UUID: "g"}}
	if _, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID(), Grants: grants}); !errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), "is on another machine") {
		t.Errorf("GPUs: %v", err)
	}
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	for name, change := range map[string]func(*berth.StepSpec){
		"a bind":               func(s *berth.StepSpec) { s.Mounts = []berth.Mount{{Source: "/etc", Target: "/m", ReadOnly: true}} },
		"a copy to be written": func(s *berth.StepSpec) { s.Mounts = []berth.Mount{{Source: "/etc", Target: "/m", Copy: true}} },
		"a device":             func(s *berth.StepSpec) { s.Devices = []berth.Device{{Host: "/dev/null", Container: "/dev/n"}} },
	} {
		spec := berth.StepSpec{ID: berth.NewID(), Image: img, Command: []string{"true"}}
		change(&spec)
		if _, err := s.Start(t.Context(), spec); !errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), "is on another machine") {
			t.Errorf("%s: started: %v", name, err)
		}
		if err := e.Check(t.Context(), berth.SandboxSpec{}, []berth.StepSpec{spec}); !errors.Is(err, berth.ErrUnsupported) {
			t.Errorf("%s: checked: %v", name, err)
		}
	}
	all, err := e.List(t.Context())
	if err != nil || len(all) != 1 {
		t.Errorf("left over: %+v, %v", all, err)
	}
}

// TestRemoteUsage: what a container used is known as of when the daemon was last asked, and limits hold.
func TestRemoteUsage(t *testing.T) {
	t.Parallel()
	e, img := newEngine(t, remoteConfig(t))
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close(t.Context()) }()
	run := func(id, script string, limits berth.Limits) berth.Exit {
		t.Helper()
		c, err := s.Start(t.Context(), berth.StepSpec{ID: id, Image: img, Command: []string{"sh", "-c", script}, Limits: limits})
		if err != nil {
			t.Fatal(err)
		}
		return wait(t, c)
	}
	exit := run("work", `while read -r x </proc/$$/stat && set -- $x && [ $((${14}+${15})) -lt 50 ]; do :; done; sleep 5`, berth.Limits{})
	if u := exit.Usage; u.CPUSeconds == nil || *u.CPUSeconds < 0.45 || u.PeakMemory == nil || *u.PeakMemory == 0 || u.PeakPIDs == nil || *u.PeakPIDs < 1 || u.Memory != nil {
		t.Errorf("usage %+v", u)
	}
	if exit := run("many", "i=0; while [ $i -lt 60 ]; do sleep 10 & i=$((i+1)); done; exit 0", berth.Limits{PIDs: 20}); exit.OK() {
		t.Errorf("60 processes of 20 ended with %+v", exit)
	}
	const quota = `cd /sys/fs/cgroup; [ "$(cat cpu.max 2>/dev/null || echo $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us))" = "50000 100000" ]`
	if exit := run("half", quota, berth.Limits{CPU: 0.5}); !exit.OK() {
		t.Errorf("half a processor is no quota: %+v", exit)
	}
}

// TestRemoteOpenFails: of a sandbox that could not be opened, the daemon keeps nothing.
func TestRemoteOpenFails(t *testing.T) {
	t.Parallel()
	cfg := remoteConfig(t)
	cfg.Keeper = []string{"/none"} // which is to be told of it
	e, _ := newEngine(t, cfg)
	id := berth.NewID()
	dir := filepath.Join(cfg.Dir, "sandboxes", id)
	if _, err := e.Open(t.Context(), berth.SandboxSpec{ID: id, Bound: true, Volumes: []berth.Volume{{Path: "/vol"}}}); err == nil {
		t.Fatal("it was opened")
	}
	api, err := client.New(client.WithHost(sharedRemote.daemon.Host()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = api.Close() }()
	vols, err := api.VolumeList(t.Context(), client.VolumeListOptions{Filters: client.Filters{}.Add("label", docker.LabelSandbox+"="+id)})
	if err != nil || len(vols.Items) > 0 {
		t.Errorf("volumes %+v, %v", vols.Items, err)
	}
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its directory: %v", err)
	}
}

// TestRemoteExecKilled: who is told that a command was killed with its container, is told next how that ended, though a daemon on
// another machine tells of it late; a command that was killed alone keeps nobody waiting.
func TestRemoteExecKilled(t *testing.T) {
	t.Parallel()
	remoteConfig(t)
	h := newHanger(t, sharedRemote.daemon.Host())
	h.rewrite = func(r *http.Response) error {
		if strings.HasSuffix(r.Request.URL.Path, "/wait") {
			r.Body = &delayed{r.Body, 3 * time.Second}
		}
		return nil
	}
	e, img := newEngine(t, docker.Config{Host: h.host, Dir: t.TempDir()})
	_, c := begin(t, e, img, "while [ ! -e /go ]; do sleep 0.05; done; exit 4")
	execKilled := func(script string) (took time.Duration) {
		t.Helper()
		began := time.Now()
		exit, err := c.(berth.Execer).Exec(t.Context(), berth.ExecSpec{Command: []string{"sh", "-c", script}}, berth.Stdio{})
		if err != nil || exit.Code != 137 {
			t.Fatalf("exec: %+v, %v", exit, err)
		}
		return time.Since(began)
	}
	if took := execKilled("kill -9 $$"); took > 15*time.Second {
		t.Errorf("a command that was killed alone took %s", took)
	}
	execKilled("touch /go; sleep 100")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if exit, err := c.Wait(ctx); err != nil || exit.Reason != berth.Exited || exit.Code != 4 {
		t.Errorf("the container: %+v, %v", exit, err)
	}
}

// delayed is an answer whose every part comes late.
type delayed struct {
	io.ReadCloser
	by time.Duration
}

func (d *delayed) Read(p []byte) (int, error) {
	n, err := d.ReadCloser.Read(p)
	time.Sleep(d.by)
	return n, err
}
