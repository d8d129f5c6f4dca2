package docker_test

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
	"github.com/berth-project/berth/engine/enginetest"
	"github.com/berth-project/berth/engine/enginetest/nested"
)

// podmanAs is a Podman service of a test's own.
func podmanAs(t *testing.T, opts dockertest.Podman) *dockertest.Daemon {
	t.Helper()
	var err error
	if opts.Dir, err = os.MkdirTemp("/var/tmp", "berth-podman-"); err != nil {
		t.Fatal(err)
	}
	d, err := dockertest.StartPodmanAs(context.Background(), opts)
	if err != nil {
		t.Fatal("needs Podman:", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := importImage(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	return d
}

// TestPodmanClosed: what Podman runs after a container's end may mount the storage anew while the service's directory is
// being removed.
func TestPodmanClosed(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("/var/tmp", "berth-podman-")
	if err != nil {
		t.Fatal(err)
	}
	d, err := dockertest.StartPodman(context.Background(), dir)
	if err != nil {
		t.Fatal("needs Podman:", err)
	}
	if err := importImage(t.Context(), d); err != nil {
		t.Fatal(errors.Join(err, d.Close()))
	}
	mounter := exec.Command("sh", "-c", "for i in $(seq 1000); do mount --bind $STORE $STORE; done 2>&-; exit 0")
	mounter.Env = append(os.Environ(), "STORE="+dir+"/root/overlay")
	if err := mounter.Start(); err != nil {
		t.Fatal(errors.Join(err, d.Close()))
	}
	if err := errors.Join(d.Close(), mounter.Wait()); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", dir, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || bytes.Contains(mounts, []byte(dir+"/")) {
		t.Errorf("mounts are left in %s; error %v", dir, err)
	}
}

// TestPodmanUncleaned: a container has ended although what Podman runs after its end fails, and so leaves it "stopped".
func TestPodmanUncleaned(t *testing.T) {
	t.Parallel()
	found, err := exec.LookPath("podman")
	if err != nil {
		t.Fatal("needs Podman:", err)
	}
	raw, err := os.ReadFile(found)
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "podman")
	if err := os.WriteFile(program, raw, 0o700); err != nil {
		t.Fatal(err)
	}
	d := podmanAs(t, dockertest.Podman{Program: program})
	e, img := newEngine(t, docker.Config{Host: d.Host()})
	s, err := e.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	c := step(t, s, img, "sleep 1; echo end; exit 3")
	if err := os.Rename(program, program+"-away"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if exit := wait(t, c); exit.Reason != berth.Exited || exit.Code != 3 {
		t.Errorf("%+v", exit)
	}
	if took := time.Since(began); took > 20*time.Second { // the watchdog's is two minutes
		t.Errorf("told after %v", took)
	}
	if got := logs(t, c, false); got != "end\n" {
		t.Errorf("%q", got)
	}
	if err := s.Close(t.Context()); err != nil {
		t.Error(err)
	}
	if err := os.Rename(program+"-away", program); err != nil {
		t.Fatal(err)
	}
}

// crunSkips are the checks of what Podman does otherwise with crun than with runc.
var crunSkips = map[string]string{
	"devices": "crun's device rules let every container open /dev/console (5:1), as Docker's do",
	"user":    "crun sets no HOME for a user without a name; runc, and Docker, have it be /",
}

// TestPodmanCrunSuite runs the suite on Podman's service with crun, Podman's own choice of a runtime.
func TestPodmanCrunSuite(t *testing.T) {
	also := maps.Clone(podmanSkips)
	maps.Copy(also, crunSkips)
	d := podmanAs(t, dockertest.Podman{Crun: true})
	runSuite(t, d, also)
	execEnds(t, d.Host(), "Error: crun: executable file")
}

// rootlessVar has a test process be that of the user whose Podman it names.
const rootlessVar = "BERTH_TEST_ROOTLESS_PODMAN"

// rootlessSkips are the checks of what the Podman of a user who is not root does otherwise.
var rootlessSkips = map[string]string{
	"volume of another user":     "what another user of a container leaves in a directory of its own is a subordinate user's, and not this one's to remove",
	"too little memory to start": "there is no memory limit for an ordinary user on cgroup v1",
	"no swap":                    "there is no memory limit for an ordinary user on cgroup v1",
}

// TestPodmanRootlessSuite runs the suite as an ordinary user on that user's own Podman service.
func TestPodmanRootlessSuite(t *testing.T) {
	if host := os.Getenv(rootlessVar); host != "" {
		rootlessSuite(t, host)
		return
	}
	const name, id = "berth-podman", 64132
	remove := func() { _, _ = exec.Command("userdel", name).Run(), exec.Command("groupdel", name).Run() }
	remove() // what a run that was killed has left
	t.Cleanup(remove)
	for _, argv := range [][]string{
		{"groupadd", "--gid", "64132", name},
		{"useradd", "--uid", "64132", "--gid", "64132", "--no-create-home", name},
		{"usermod", "--add-subuids", "5200000-5265535", "--add-subgids", "5200000-5265535", name},
	} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	d := podmanAs(t, dockertest.Podman{UID: id, GID: id})
	tmp, err := os.MkdirTemp("/var/tmp", "berth-podman-user-")
	if err == nil {
		err = os.Chown(tmp, id, id)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(tmp) })
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^TestPodmanRootlessSuite$", "-test.v")
	cmd.Env, cmd.Dir = append(os.Environ(), rootlessVar+"="+d.Host(), "TMPDIR="+tmp, "HOME="+tmp), tmp
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: id, Gid: id}}
	out, err := cmd.CombinedOutput()
	nested.Report(t, out)
	if !bytes.Contains(out, []byte("--- PASS: TestPodmanRootlessSuite/")) {
		t.Error("nothing has passed")
	}
	if err != nil && !t.Failed() {
		t.Errorf("%v:\n%s", err, out)
	}
}

func rootlessSuite(t *testing.T, host string) {
	cfg := docker.Config{Host: host, Dir: t.TempDir()}
	e, img := newEngine(t, cfg)
	for name, l := range map[string]berth.Limits{"CPU": {CPU: 1}, "memory": {Memory: 64 << 20}, "processes": {PIDs: 20}} {
		err := e.Check(t.Context(), berth.SandboxSpec{Limits: l}, []berth.StepSpec{{Image: img, Command: []string{"true"}}})
		if !errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), "boot with cgroup v2") {
			t.Errorf("a limit of %s, which would not hold: %v", name, err)
		}
	}
	also := maps.Clone(podmanSkips)
	maps.Copy(also, rootlessSkips)
	enginetest.Run(t, &enginetest.Env{
		Engine: e, Image: img, Dir: t.TempDir(),
		Again: func(context.Context) (berth.Engine, error) {
			again, _ := newEngine(t, cfg)
			return again, nil
		},
		Parallel: true,
		Lacks: map[enginetest.Ability]string{
			enginetest.Grants:      "an ordinary user makes no device nodes that could stand for GPUs",
			enginetest.CPULimit:    "there is none for an ordinary user on cgroup v1; it is refused",
			enginetest.MemoryLimit: "there is none for an ordinary user on cgroup v1; it is refused",
			enginetest.PIDsLimit:   "there is none for an ordinary user on cgroup v1; it is refused",
			enginetest.UsageOf:     "there is none for an ordinary user on cgroup v1",
			enginetest.Bridge:      "the user would need /dev/net/tun, which is root's alone on some machines",
		},
	}, also)
}
