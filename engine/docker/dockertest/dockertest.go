// Package dockertest starts Docker daemons for tests: each with directories, a socket and a bridge of its own,
// apart from whatever daemon the machine has.
package dockertest

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options choose how a daemon is started.
type Options struct {
	// Dir is the directory in which everything of the daemon lies; it must not be on an overlay file system.
	Dir string
	// Bridge gives the daemon a bridge network; without one it has only "none" and "host".
	Bridge bool
	// Remote has the daemon be as on another machine: see Remote. It listens on its socket too.
	Remote bool
	// Args are further arguments of dockerd.
	Args []string
}

// Daemon is a running dockerd.
type Daemon struct {
	opts   Options
	bridge string
	remote Remote
	podman *Podman // where it is Podman's service
	cmd    *exec.Cmd
	log    *os.File
	done   chan struct{}
	state  error // of the process, when done is closed
}

const (
	startMax = 30 * time.Second
	stopMax  = 20 * time.Second
	poll     = 20 * time.Millisecond
)

// binaryEnv names another dockerd than Debian's for the tests; see CONTRIBUTING.md.
const binaryEnv = "BERTH_TEST_DOCKERD"

// Binary is the dockerd that is started.
func Binary() string { return cmp.Or(os.Getenv(binaryEnv), "dockerd") }

// Path is where the daemon looks for programs: beside another dockerd than Debian's first, where its runc is.
func Path() string {
	if b := os.Getenv(binaryEnv); b != "" {
		return filepath.Dir(b) + ":" + os.Getenv("PATH")
	}
	return os.Getenv("PATH")
}

// Start starts a daemon and waits until it answers. It needs root, Debian's docker.io, and iproute2 for a bridge.
func Start(ctx context.Context, opts Options) (*Daemon, error) {
	d := &Daemon{opts: opts}
	if err := os.MkdirAll(opts.Dir, 0o711); err != nil {
		return nil, err
	}
	if err := os.WriteFile(d.path("daemon.json"), []byte("{}\n"), 0o600); err != nil { // not the machine's
		return nil, err
	}
	if opts.Bridge {
		if err := d.makeBridge(ctx); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	if err := d.Run(ctx); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (d *Daemon) path(name string) string { return filepath.Join(d.opts.Dir, name) }

// Host is the daemon's address.
func (d *Daemon) Host() string { return "unix://" + d.path("sock") }

// makeBridge makes a bridge with a subnet of its own. It is named by the subnet, so that the kernel, which has no
// two links of one name, keeps the daemons of several tests apart; and not as the embedded engine names its links,
// for which that has packet filters.
func (d *Daemon) makeBridge(ctx context.Context) error {
	var err error
	for i := range 250 {
		n := (os.Getpid() + i) % 250
		name := fmt.Sprintf("dockertest%d", n)
		// Without an address of its own a bridge takes the lowest of its containers', another with each that comes
		// and goes, while the others go on sending to the one that they know.
		if err = ip(ctx, "link", "add", name, "address", fmt.Sprintf("02:42:0a:d5:%02x:01", n), "type", "bridge"); err != nil {
			continue
		}
		d.bridge = name
		return errors.Join(ip(ctx, "addr", "add", fmt.Sprintf("10.213.%d.1/24", n), "dev", name), ip(ctx, "link", "set", name, "up"))
	}
	return err
}

func ip(ctx context.Context, args ...string) error {
	if out, err := exec.CommandContext(ctx, "ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// awaitReaped waits until the containerd of a dockerd that was killed, which the kernel kills then, is gone: while it dies,
// and until somebody has reaped it, the next dockerd takes it for one that runs, and waits in vain for its answer.
func (d *Daemon) awaitReaped() {
	raw, err := os.ReadFile(d.path("exec/containerd/containerd.pid"))
	if err != nil {
		return
	}
	for began := time.Now(); time.Since(began) < stopMax; time.Sleep(poll) {
		stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(raw)) + "/stat")
		if err != nil || !bytes.Contains(stat, []byte(" (containerd) ")) {
			return
		}
	}
}

// Run starts the process, again after Stop or Kill.
func (d *Daemon) Run(ctx context.Context) error {
	if d.podman != nil {
		return d.runPodman(ctx)
	}
	d.awaitReaped()
	bridge := "none"
	if d.bridge != "" {
		bridge = d.bridge
	}
	args := append([]string{
		"--host", d.Host(), "--data-root", d.path("data"), "--exec-root", d.path("exec"), "--pidfile", d.path("pid"),
		"--config-file", d.path("daemon.json"), "--bridge", bridge, "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false",
	}, d.opts.Args...)
	argv := []string{Binary()}
	if d.opts.Remote {
		more, err := d.startRemote()
		if err != nil {
			return err
		}
		args = append(args, more...)
		argv = []string{"unshare", "--mount", "--propagation", "private", "sh", "-c", `mount -t tmpfs none "$0" && exec "$@"`, os.TempDir(), Binary()}
	}
	log, err := os.OpenFile(d.path("log"), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	d.log = log
	argv = append(argv, args...)
	d.cmd = exec.Command(argv[0], argv[1:]...) //nolint:noctx // it lives until Stop
	d.cmd.Env = append(os.Environ(), "PATH="+Path())
	d.cmd.Stdout, d.cmd.Stderr = log, log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return fmt.Errorf("%s (Debian's docker.io, or $%s): %w", Binary(), binaryEnv, err)
	}
	return d.await(ctx)
}

// await waits until the daemon answers.
func (d *Daemon) await(ctx context.Context) error {
	done := make(chan struct{})
	d.done = done
	go func() { // ends with the process
		d.state = d.cmd.Wait()
		close(done)
	}()
	for end := time.Now().Add(startMax); time.Now().Before(end); time.Sleep(poll) {
		select {
		case <-done:
			return fmt.Errorf("it ended: %w\n%s", d.state, d.Log())
		case <-ctx.Done():
			return context.Cause(ctx)
		default:
		}
		if d.answers(ctx) {
			return nil
		}
	}
	return fmt.Errorf("it did not answer within %v\n%s", startMax, d.Log())
}

// answers asks the daemon whether it is there.
func (d *Daemon) answers(ctx context.Context) bool {
	if d.opts.Remote {
		return d.remote.answers(ctx)
	}
	var dial net.Dialer
	c, err := dial.DialContext(ctx, "unix", d.path("sock"))
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	if _, err := io.WriteString(c, "GET /_ping HTTP/1.0\r\n\r\n"); err != nil {
		return false
	}
	raw, _ := io.ReadAll(c)
	return bytes.Contains(raw, []byte(" 200 "))
}

// Log is the end of what the daemon has logged.
func (d *Daemon) Log() string {
	raw, err := os.ReadFile(d.path("log"))
	if err != nil {
		return err.Error()
	}
	return string(raw[max(0, len(raw)-4000):])
}

// Signal sends the daemon a signal.
func (d *Daemon) Signal(sig syscall.Signal) error {
	if d.podman != nil && d.podman.UID != 0 { // it is two processes, and one that ends leaves the other
		return syscall.Kill(-d.cmd.Process.Pid, sig)
	}
	return d.cmd.Process.Signal(sig)
}

// Stop ends the daemon as its service would.
func (d *Daemon) Stop() error { return d.end(syscall.SIGTERM) }

// Kill ends the daemon at once. Its containerd and its containers run on.
func (d *Daemon) Kill() error { return d.end(syscall.SIGKILL) }

// KillRest ends, after Kill, what that leaves: the daemon's containerd, its shims and its containers, as the end of the host
// does.
func (d *Daemon) KillRest() error {
	for end := time.Now().Add(stopMax); ; time.Sleep(poll) {
		left, err := d.killLeft()
		if err != nil || left == 0 {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%d processes of the daemon's do not end within %v", left, stopMax)
		}
	}
}

// killLeft kills what has the daemon's directory in its command line, with what it started, and answers how many they were.
func (d *Daemon) killLeft() (left int, err error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	parents, mine := map[int]int{}, map[int]bool{}
	for _, file := range files {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		stat, err := os.ReadFile(filepath.Join(filepath.Dir(file), "stat"))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		f := strings.Fields(rest)
		if len(f) < 2 || f[0] == "Z" {
			continue
		}
		parents[pid], _ = strconv.Atoi(f[1])
		raw, err := os.ReadFile(file)
		mine[pid] = err == nil && bytes.Contains(raw, []byte(d.opts.Dir+"/"))
	}
	for pid := range parents {
		for p := pid; p > 1; p = parents[p] {
			if mine[p] && p != os.Getpid() {
				_ = syscall.Kill(pid, syscall.SIGKILL)
				left++
				break
			}
		}
	}
	return left, nil
}

func (d *Daemon) end(sig syscall.Signal) error {
	if d.cmd == nil || d.cmd.Process == nil {
		return nil
	}
	if err := d.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) && !errors.Is(err, syscall.ESRCH) {
		return err
	}
	defer func() { _ = d.log.Close() }()
	select {
	case <-d.done:
		return nil
	case <-time.After(stopMax):
		_ = d.cmd.Process.Kill()
		<-d.done
		return fmt.Errorf("dockerd did not end within %v of signal %d", stopMax, sig)
	}
}

// Close stops the daemon and removes everything of it.
func (d *Daemon) Close() error {
	err := d.Stop()
	if d.bridge != "" {
		err = errors.Join(err, ip(context.Background(), "link", "del", d.bridge))
	}
	if d.podman != nil {
		err = errors.Join(err, d.endPodman())
	}
	return errors.Join(err, d.remove())
}

// remove removes the daemon's directory with what is mounted in it, once more where something was mounted meanwhile: the
// kernel kills a process in its own time.
func (d *Daemon) remove() error {
	for end := time.Now().Add(stopMax); ; time.Sleep(poll) {
		raw, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return err
		}
		lines := strings.Split(string(raw), "\n")
		for _, line := range slices.Backward(lines) {
			if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], d.opts.Dir+"/") {
				_ = unix.Unmount(f[4], unix.MNT_DETACH)
			}
		}
		if err = os.RemoveAll(d.opts.Dir); err == nil || !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) || time.Now().After(end) {
			return err
		}
	}
}
