package ociruntime

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/device/devicetest"
	"github.com/berth-project/berth/engine/docker"
	"github.com/berth-project/berth/engine/docker/dockertest"
)

// script makes a program.
func (p *place) script(name, text string) string {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	p.write(path, "#!/bin/sh\n"+text+"\n")
	if err := os.Chmod(path, 0o700); err != nil {
		p.t.Fatal(err)
	}
	return path
}

// berthRuntime is berth as a runtime, as one program without arguments.
func (p *place) berthRuntime() string {
	return p.script("runtime", fmt.Sprintf("exec %s oci-runtime %s %s \"$@\"", p.self, flagConfig, p.config))
}

// engine is a daemon whose containers are of the image bb, which is busybox.
type engine struct {
	*place
	daemon *dockertest.Daemon

	containerd string // the socket of its containerd
}

// newDocker starts a dockerd that has berth as a runtime, under that name, and as NVIDIA's hook.
func newDocker(t *testing.T, gpus devicetest.Options, args ...string) *engine {
	t.Helper()
	t.Setenv("PATH", dockertest.Path())
	p := newPlace(t, gpus, "runc")
	hook := p.script("bin/nvidia-container-runtime-hook", fmt.Sprintf("exec %s oci-hook %s %s \"$@\"", p.self, flagConfig, p.config))
	t.Setenv("PATH", filepath.Dir(hook)+":"+os.Getenv("PATH")) // where dockerd looks for it
	dir, err := os.MkdirTemp("/var/tmp", "berth-oci-")
	if err != nil {
		t.Fatal(err)
	}
	d, err := dockertest.Start(t.Context(), dockertest.Options{Dir: dir, Args: append(args, "--add-runtime", "berth="+p.berthRuntime())})
	if err != nil {
		t.Fatal("needs a Docker daemon:", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	e := &engine{p, d, filepath.Join(dir, "exec/containerd/containerd.sock")}
	pack := exec.CommandContext(t.Context(), "tar", "-C", filepath.Join(p.bundle(""), "rootfs"), "-c", ".")
	archive, err := pack.Output()
	if err != nil {
		t.Fatal(err)
	}
	load := exec.CommandContext(t.Context(), "docker", "--host", d.Host(), "import", "-", "bb")
	load.Stdin = bytes.NewReader(archive)
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return e
}

func (e *engine) docker(args ...string) (string, error) {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", append([]string{"--host", e.daemon.Host()}, args...)...).CombinedOutput()
	return string(out), err
}

func TestDocker(t *testing.T) {
	e := newDocker(t, devicetest.Options{NVIDIA: 2})
	gpu, other := e.host.NVIDIA[0], e.host.NVIDIA[1]
	run := []string{"run", "--rm", "--network", "none"}
	for name, with := range map[string][]string{
		"by the runtime": {"--runtime", "berth", "-e", "NVIDIA_VISIBLE_DEVICES=" + gpu.UUID},
		"by the runtime, of a request that Docker answers with NVIDIA's hook": {"--runtime", "berth", "--gpus", "device=0"},
		"by the hook": {"--gpus", "device=0"},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := e.docker(append(append(run, with...), "bb", "sh", "-c", opens(gpu, other))...)
			if err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			wants := []string{"opened\n", "refused\n", "no library"}
			if with[0] == "--runtime" {
				wants = append(wants, "void "+gpu.UUID+"\n")
			}
			for _, want := range wants {
				if !strings.Contains(out, want) {
					t.Errorf("it says not %q but\n%s", want, out)
				}
			}
			if strings.Contains(out, other.Node.Path) {
				t.Errorf("it has another GPU:\n%s", out)
			}
			if got := e.holder(gpu); got != "" {
				t.Errorf("it has ended, and the GPU is held by %q", got)
			}
		})
	}
	t.Run("nothing asked", func(t *testing.T) {
		if out, err := e.docker(append(run, "--runtime", "berth", "bb", "sh", "-c", "ls /dev/nvidia* 2>&1; echo done")...); err != nil || !strings.Contains(out, "done") || strings.Contains(out, gpu.Node.Path) {
			t.Errorf("%v: %s", err, out)
		}
	})
	t.Run("lent to another", func(t *testing.T) {
		out, err := e.docker("run", "-d", "--network", "none", "--runtime", "berth", "-e", "NVIDIA_VISIBLE_DEVICES=0", "bb", "sleep", "1000")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		first := strings.TrimSpace(out)
		if got := e.holder(gpu); !strings.HasPrefix(got, "oci-"+first[:12]+"-") {
			t.Errorf("the GPU is held by %q", got)
		}
		for name, with := range map[string][]string{"runtime": {"--runtime", "berth", "-e", "NVIDIA_VISIBLE_DEVICES=all"}, "hook": {"--gpus", "all"}} {
			out, err := e.docker(append(append(run, with...), "bb", "true")...)
			if err == nil || !strings.Contains(out, "it is lent to oci-"+first[:12]) {
				t.Errorf("%s: %v: %s", name, err, out)
			}
		}
		if out, err := e.docker("restart", "-t", "0", first); err != nil {
			t.Errorf("restarted: %v: %s", err, out)
		}
		if got := e.holder(gpu); !strings.HasPrefix(got, "oci-"+first[:12]+"-") {
			t.Errorf("restarted: the GPU is held by %q", got)
		}
		if out, err := e.docker("rm", "-f", first); err != nil {
			t.Errorf("%v: %s", err, out)
		}
		if got := e.holder(gpu); got != "" {
			t.Errorf("removed: the GPU is held by %q", got)
		}
	})
}

// holds checks what a container says that runs opens.
func (p *place) holds(out string, err error) {
	p.t.Helper()
	gpu, other := p.host.NVIDIA[0], p.host.NVIDIA[1]
	if err != nil {
		p.t.Fatalf("%v: %s", err, out)
	}
	for _, want := range []string{"opened\n", "refused\n", "no library", "void " + gpu.UUID + "\n"} {
		if !strings.Contains(strings.ReplaceAll(out, "\r", ""), want) {
			p.t.Errorf("it says not %q but\n%s", want, out)
		}
	}
	if strings.Contains(out, other.Node.Path) {
		p.t.Errorf("it has another GPU:\n%s", out)
	}
	if got := p.holder(gpu); got != "" {
		p.t.Errorf("it has ended, and the GPU is held by %q", got)
	}
}

func TestContainerd(t *testing.T) {
	e := newDocker(t, devicetest.Options{NVIDIA: 2}, "--default-runtime", "berth")
	rootfs := filepath.Join(e.bundle(""), "rootfs")
	script := opens(e.host.NVIDIA[0], e.host.NVIDIA[1])
	e.holds(e.output("ctr", "--address", e.containerd, "run", "--rm", "--runc-binary", filepath.Join(e.dir, "runtime"), "--runtime", "io.containerd.runc.v2",
		"--cap-add", "CAP_MKNOD", "--env", "PATH=/bin", "--env", "NVIDIA_VISIBLE_DEVICES=0", "--rootfs", rootfs, "berth-"+e.id(), "/bin/sh", "-c", script))
	t.Run("default runtime", func(t *testing.T) { defaultRuntime(t, e) })
}

// defaultRuntime: where the daemon's default runtime gives containers the GPUs that their images name, a task gets those alone that it was lent:
// without any, none.
func defaultRuntime(t *testing.T, e *engine) {
	const image = "all:1"
	pack := exec.CommandContext(t.Context(), "tar", "-C", filepath.Join(e.bundle(""), "rootfs"), "-c", ".")
	archive, err := pack.Output()
	if err != nil {
		t.Fatal(err)
	}
	load := exec.CommandContext(t.Context(), "docker", "--host", e.daemon.Host(), "import",
		"--change", "ENV PATH=/bin", "--change", "ENV NVIDIA_VISIBLE_DEVICES=all", "-", image)
	load.Stdin = bytes.NewReader(archive)
	if out, err := load.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	node := e.host.NVIDIA[0].Node.Path
	out, err := e.docker("run", "--rm", "--network", "none", image, "ls", "/dev")
	if err != nil || !strings.Contains(out, filepath.Base(node)+"\n") {
		t.Fatalf("a container of others' has no GPU, so that the test sees nothing: %v: %s", err, out)
	}
	tasks, err := docker.New(docker.Config{Host: e.daemon.Host(), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tasks.Close() }()
	img, err := tasks.Image(t.Context(), berth.ImageRequest{Ref: image})
	if err != nil {
		t.Fatal(err)
	}
	sb, err := tasks.Open(t.Context(), berth.SandboxSpec{ID: berth.NewID()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = sb.Close(context.WithoutCancel(t.Context())) }()
	for name, env := range map[string][]string{"image": {"AMD_VISIBLE_DEVICES=void"}, "user": {"NVIDIA_VISIBLE_DEVICES=0", "AMD_VISIBLE_DEVICES=0", "DOCKER_RESOURCE_GPU=0"}} {
		c, err := sb.Start(t.Context(), berth.StepSpec{ID: name, Image: img, Env: env, Command: []string{"sh", "-c", "ls /dev; echo $NVIDIA_VISIBLE_DEVICES $AMD_VISIBLE_DEVICES"}})
		if err != nil {
			t.Fatal(err)
		}
		if exit, err := c.Wait(t.Context()); err != nil || !exit.OK() {
			t.Fatalf("%+v, %v", exit, err)
		}
		r, err := c.(berth.LogReader).Logs(t.Context(), berth.LogOptions{})
		if err != nil {
			t.Fatal(err)
		}
		said, err := io.ReadAll(r)
		_ = r.Close()
		if err != nil || !strings.Contains(string(said), "null\n") || strings.Contains(string(said), "nvidia") || !strings.HasSuffix(string(said), "void void\n") {
			t.Errorf("%s asks for GPUs, and the task has %s, %v", name, said, err)
		}
	}
}

func TestPodman(t *testing.T) {
	p := newPlace(t, devicetest.Options{NVIDIA: 2}, "runc")
	dir := func(name string) string { return filepath.Join(p.dir, "podman", name) }
	podman := []string{
		"--root", dir("root"), "--runroot", dir("run"), "--tmpdir", dir("tmp"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs",
		"--events-backend", "file", "--runtime", p.berthRuntime(),
	}
	script := opens(p.host.NVIDIA[0], p.host.NVIDIA[1])
	// All instances of root's share their locks in /dev/shm, and one that starts in a new place frees those of the others.
	conf := filepath.Join(p.dir, "containers.conf")
	if err := os.WriteFile(conf, []byte("[engine]\nlock_type = \"file\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("CONTAINERS_CONF", conf)
	call := func(args ...string) (string, error) {
		return p.output("podman", append(append([]string{}, podman...), args...)...)
	}
	run := func(more ...string) (string, error) {
		out, err := call(append([]string{"run", "--name", "c", "--network", "none", "--log-driver", "k8s-file", "--cap-add", "MKNOD", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"}, more...)...)
		if err == nil { // what a container writes last may be missing in what it is attached to, but not in the log
			out, err = call("logs", "c")
		}
		if said, failed := call("rm", "-f", "--ignore", "c"); failed != nil {
			t.Errorf("%v: %s", failed, said)
		}
		return out, err
	}
	p.holds(run("--env", "NVIDIA_VISIBLE_DEVICES=0", "--rootfs", filepath.Join(p.bundle(""), "rootfs"), "sh", "-c", script))
	out, err := run("--env", "NVIDIA_VISIBLE_DEVICES=7", "--rootfs", filepath.Join(p.bundle(""), "rootfs"), "true")
	if err == nil || !strings.Contains(out, `GPU "7": not found`) {
		t.Errorf("%v: %s", err, out)
	}
}
