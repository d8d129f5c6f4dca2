package dockertest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Podman chooses how Podman's service is started.
type Podman struct {
	// Dir is the directory in which everything of it lies.
	Dir string
	// Program is the file to run; "" is Podman's. Its containers' clean-up commands run the same one.
	Program string
	// Crun has it take crun, and not runc. It must be root's then: crun refuses hosts that have cgroup v1 and, with controllers,
	// v2, unless it sees no mount of that.
	Crun bool
	// UID and GID are whose service it is; 0 is root's. Such a user needs a name, and subordinate ids.
	UID, GID uint32
}

// StartPodman starts the API service of Podman, as root and with runc.
func StartPodman(ctx context.Context, dir string) (*Daemon, error) {
	return StartPodmanAs(ctx, Podman{Dir: dir})
}

// StartPodmanAs starts the API service of Podman, with storage, state and a socket of its own, and waits until it
// answers. It needs root and Debian's podman. Its containers are not the service's children: Close ends what is left.
func StartPodmanAs(ctx context.Context, opts Podman) (*Daemon, error) {
	d := &Daemon{opts: Options{Dir: opts.Dir}, podman: &opts}
	if err := os.MkdirAll(opts.Dir, 0o711); err != nil {
		return nil, err
	}
	if opts.Crun {
		text := fmt.Sprintf("#!/bin/sh\n[ -e %s ] || exec crun \"$@\"\nexec unshare --mount --propagation private sh -c 'umount -l %s && exec crun \"$@\"' crun \"$@\"\n", unified, unified)
		if err := os.WriteFile(d.path("crun"), []byte(text), 0o700); err != nil {
			return nil, err
		}
	}
	for name, text := range map[string]string{
		"containers.conf": "[engine]\nlock_type = \"file\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n[containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [" + ulimits() + "]\n",
		"storage.conf":    "[storage]\ndriver = \"overlay\"\ngraphroot = \"" + d.path("root") + "\"\nrunroot = \"" + d.path("run") + "\"\n",
	} {
		if err := os.WriteFile(d.path(name), []byte(text), 0o644); err != nil {
			return nil, err
		}
	}
	if err := os.Mkdir(d.path("home"), 0o700); err != nil {
		return nil, err
	}
	if opts.UID != 0 {
		if err := errors.Join(os.Chown(opts.Dir, int(opts.UID), int(opts.GID)), os.Chown(d.path("home"), int(opts.UID), int(opts.GID))); err != nil {
			return nil, err
		}
	}
	log, err := os.OpenFile(d.path("log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	d.log = log
	if err := d.runPodman(ctx); err != nil {
		if d.done == nil {
			return nil, err
		}
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

// runPodman starts the service, and waits until it answers.
func (d *Daemon) runPodman(ctx context.Context) error {
	if err := os.Remove(d.path("sock")); err != nil && !errors.Is(err, fs.ErrNotExist) { // of one that was killed
		return err
	}
	d.cmd = d.podmanCommand(context.Background(), "system", "service", "--time", "0", d.Host()) // it lives until Stop
	d.cmd.Stdout, d.cmd.Stderr = d.log, d.log
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("podman (Debian's podman): %w", err)
	}
	return d.await(ctx)
}

// unified is where a host that has both has cgroup v2.
const unified = "/sys/fs/cgroup/unified"

// podmanCommand is a command of Podman's, of its user.
func (d *Daemon) podmanCommand(ctx context.Context, args ...string) *exec.Cmd {
	p := d.podman
	runtime := "runc"
	if p.Crun {
		runtime = d.path("crun")
	}
	argv := []string{
		cmp.Or(p.Program, "podman"), "--root", d.path("root"), "--runroot", d.path("run"), "--tmpdir", d.path("tmp"), "--network-config-dir", d.path("networks"),
		"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", runtime, "--events-backend", "file",
	}
	argv = append(argv, args...)
	if p.UID != 0 {
		// conmon makes files in /tmp, whatever TMPDIR says, and not on all machines may this user.
		argv = append([]string{
			"unshare", "--mount", "--propagation", "private", "sh", "-c", `mount -t tmpfs -o mode=1777 none /tmp && exec "$@"`, "sh",
			"setpriv", "--reuid", fmt.Sprint(p.UID), "--regid", fmt.Sprint(p.GID), "--clear-groups",
		}, argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	// Of an image that it imports Podman leaves its temporary file.
	cmd.Env, cmd.Dir = append(os.Environ(), "TMPDIR="+d.path("home"), "CONTAINERS_CONF="+d.path("containers.conf"), "CONTAINERS_STORAGE_CONF="+d.path("storage.conf")), d.opts.Dir // conmon leaves a file where it runs
	if p.UID != 0 {
		cmd.Env = append(cmd.Env, "HOME="+d.path("home"), "XDG_RUNTIME_DIR="+d.path("home"))
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return cmd
}

// ulimits are those of containers: Podman as root sets higher ones than a machine without CAP_SYS_RESOURCE allows.
func ulimits() string {
	most := map[string]uint64{"nofile": 1 << 20, "nproc": 1 << 15} // which every kernel allows, and Podman sets for itself
	var all []string
	for name, resource := range map[string]int{"nofile": unix.RLIMIT_NOFILE, "nproc": unix.RLIMIT_NPROC} {
		var own unix.Rlimit
		if err := unix.Getrlimit(resource, &own); err == nil {
			all = append(all, fmt.Sprintf("%q", fmt.Sprintf("%s=%[2]d:%[2]d", name, min(own.Max, most[name]))))
		}
	}
	return strings.Join(all, ", ")
}

// endPodman ends what Podman's containers are left, and its processes: what watches over execs, which stays for five
// minutes after their end, and what cleans up after a container, which its end has started and nothing waits for.
func (d *Daemon) endPodman() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		out, err := d.podmanCommand(ctx, "rm", "--all", "--force", "--time", "0").CombinedOutput()
		if err == nil {
			break
		}
		if ctx.Err() != nil || !bytes.Contains(out, []byte("container not running")) { // it ended while it was being killed
			return errors.Join(fmt.Errorf("podman rm: %w: %s", err, out), d.KillRest())
		}
		time.Sleep(poll)
	}
	if d.podman.UID != 0 { // and the process that holds its namespaces
		if out, err := d.podmanCommand(ctx, "system", "migrate").CombinedOutput(); err != nil {
			return errors.Join(fmt.Errorf("podman system migrate: %w: %s", err, out), d.KillRest())
		}
	}
	return d.KillRest()
}
