package dockertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// StartPodman starts the API service of Podman, with storage, state and a socket of its own, and waits until it
// answers. It needs root and Debian's podman. Its containers are not the service's children: Close ends what is left.
func StartPodman(ctx context.Context, dir string) (*Daemon, error) {
	d := &Daemon{opts: Options{Dir: dir}}
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return nil, err
	}
	for name, text := range map[string]string{
		"containers.conf": "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\n[containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [" + ulimits() + "]\n",
		"storage.conf":    "[storage]\ndriver = \"overlay\"\ngraphroot = \"" + d.path("root") + "\"\nrunroot = \"" + d.path("run") + "\"\n",
	} {
		if err := os.WriteFile(d.path(name), []byte(text), 0o600); err != nil {
			return nil, err
		}
	}
	log, err := os.OpenFile(d.path("log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	d.log = log
	d.podman = d.podmanArgs()
	d.cmd = exec.Command("podman", append(d.podman, "system", "service", "--time", "0", d.Host())...) //nolint:noctx // it lives until Stop
	d.cmd.Env, d.cmd.Dir = d.podmanEnv(), dir                                                         // conmon leaves a file where it runs
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("podman (Debian's podman): %w", err)
	}
	if err := d.await(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
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

func (d *Daemon) podmanArgs() []string {
	return []string{
		"--root", d.path("root"), "--runroot", d.path("run"), "--tmpdir", d.path("tmp"), "--network-config-dir", d.path("networks"),
		"--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", "runc", "--events-backend", "file",
	}
}

func (d *Daemon) podmanEnv() []string {
	return append(os.Environ(), "CONTAINERS_CONF="+d.path("containers.conf"), "CONTAINERS_STORAGE_CONF="+d.path("storage.conf"))
}

// endPodman ends what Podman's containers are left.
func (d *Daemon) endPodman() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "podman", append(d.podman, "rm", "--all", "--force", "--time", "0")...)
	cmd.Env = d.podmanEnv()
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("podman rm: %w: %s", err, out)
	}
	return d.endConmons()
}

// endConmons ends what watches over execs, which stays for five minutes after their end.
func (d *Daemon) endConmons() error {
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return err
	}
	for _, file := range all {
		raw, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(raw, []byte("conmon\x00")) || !bytes.Contains(raw, []byte(d.opts.Dir+"/")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	return nil
}
