// Package runtime starts containers through an OCI runtime binary: runc, crun, and their like. It is the
// oracle of package direct, and what `--runtime` names. The binary is called through containerd/go-runc.
package runtime

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/groups"
	"github.com/berth-project/berth/engine/oci/rootfs"
	runc "github.com/containerd/go-runc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// initPath is where berth's init appears in a container that an OCI runtime starts.
const initPath = "/dev/.berth-init"

// hookWords is the file in a bundle's directory for what hooks write to standard error.
const hookWords = "hooks.stderr"

// Config configures a Runtime.
type Config struct {
	Command string // path of the binary
	Dir     string // for the runtime's own state; 0700
	Init    string // host path of berth's init, as an executable file
	// NoCgroup leaves cgroups alone: rootless on a host that delegates none.
	NoCgroup bool
}

// Runtime starts bundles through an OCI runtime binary. The process that uses it must be a child subreaper
// (PR_SET_CHILD_SUBREAPER): the container's first process becomes its child.
type Runtime struct {
	cfg   Config
	name  string
	cover bool // the v2 hierarchy: see process.call
}

var _ bundle.Starter = (*Runtime)(nil)

// Find finds a runtime's binary. ErrNotFound if it is not there, ErrDenied if it is no program.
func Find(command string) (path string, err error) {
	path, err = exec.LookPath(command)
	switch {
	case err == nil:
		return path, nil
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("OCI runtime %s: %w: it is no program that can be executed", command, berth.ErrDenied)
	}
	return "", fmt.Errorf("OCI runtime %s: %w: install it, or give its path to --runtime", command, berth.ErrNotFound)
}

// New finds the binary and asks its version. ErrNotFound if it is not there.
func New(ctx context.Context, cfg Config) (*Runtime, error) {
	path, err := Find(cfg.Command)
	if err != nil {
		return nil, err
	}
	cfg.Command = path
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return nil, fmt.Errorf("OCI runtime %s --version: %w: %w", path, berth.ErrUnsupported, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	name := strings.Replace(strings.TrimSpace(first), " version ", " ", 1)
	return &Runtime{cfg: cfg, name: name, cover: refusesHybrid(name)}, nil
}

// Name is the runtime's name and version, as it says itself: "runc 1.1.5".
func (r *Runtime) Name() string { return r.name }

// Check accepts every spec: what the runtime cannot do it refuses itself, at the start.
func (r *Runtime) Check(*specs.Spec) error { return nil }

func (r *Runtime) client(dir string) *runc.Runc {
	return &runc.Runc{Command: r.cfg.Command, Root: r.cfg.Dir, Log: filepath.Join(dir, "runtime.log"), LogFormat: runc.JSON}
}

// Start creates and starts the container.
func (r *Runtime) Start(ctx context.Context, b *bundle.Bundle) (_ bundle.Process, err error) {
	p := &process{rt: r, client: r.client(b.Dir), id: containerID(b), dir: b.Dir, init: b.Init, spec: b.Spec, execFailed: make(chan struct{})}
	if b.Cgroup != nil && !r.cfg.NoCgroup {
		p.cgroup = b.Cgroup.Path()
		b.Cgroup.Spread()
	}
	defer func() {
		if err != nil {
			p.destroy()
		}
	}()
	if err := p.mountRoot(b.Root); err != nil {
		return nil, err
	}
	var reportW *os.File
	if b.Init {
		if p.report, reportW, err = reportPipe(); err != nil {
			return nil, err
		}
		defer func() { _ = reportW.Close() }()
	}
	if err := r.writeConfig(b); err != nil {
		return nil, err
	}
	if err := p.create(ctx, b, reportW); err != nil {
		return nil, err
	}
	if err := p.ready(b); err != nil {
		return nil, err
	}
	if reportW != nil {
		_ = reportW.Close() // so that its end is seen when the init ends
	}
	if err := p.call(func() error { return p.client.Start(ctx, p.id) }); err != nil {
		return nil, p.explain("start", err)
	}
	if b.Init {
		return p, p.awaitExec(b)
	}
	return p, nil
}

func containerID(b *bundle.Bundle) string { return "berth-" + b.ID }

// writeConfig writes the spec as the runtime wants it: with paths in place of descriptors.
func (r *Runtime) writeConfig(b *bundle.Bundle) error {
	raw, err := json.Marshal(b.Spec)
	if err != nil {
		return err
	}
	var spec specs.Spec // a deep copy: the caller's stays as it is
	if err := json.Unmarshal(raw, &spec); err != nil {
		return err
	}
	spec.Root = &specs.Root{Path: filepath.Join(b.Dir, "rootfs"), Readonly: spec.Root.Readonly}
	if b.Init {
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: initPath, Type: "bind", Source: r.cfg.Init, Options: []string{"bind", "ro", "nosuid", "nodev"}})
		spec.Process.Args = append([]string{initPath}, spec.Process.Args...)
	}
	if b.ReplaceStdin != "" {
		// No runtime opens a file of the container for it: a shell-free way is to let the init's caller do so.
		return fmt.Errorf("stdin from the file %s of the container: %w with the runtime %s: use --runtime direct", b.ReplaceStdin, berth.ErrUnsupported, r.name)
	}
	if spec.Annotations[groups.Keep] != "" && !strings.HasPrefix(r.name, "crun ") {
		return fmt.Errorf("keep the user's groups, by which lent devices open: %w with the runtime %s: use --runtime direct or crun", berth.ErrUnsupported, r.name)
	}
	for i := range spec.Linux.Namespaces {
		if ns := &spec.Linux.Namespaces[i]; ns.Type == specs.NetworkNamespace && b.NetNS != nil {
			ns.Path = fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.NetNS.Fd())
		}
	}
	if spec.Hooks != nil && strings.HasPrefix(r.name, "crun ") {
		// It keeps no words of a hook that fails, but where it is told to.
		spec.Annotations = maps.Clone(spec.Annotations)
		if spec.Annotations == nil {
			spec.Annotations = map[string]string{}
		}
		spec.Annotations["run.oci.hooks.stderr"] = filepath.Join(b.Dir, hookWords)
	}
	if r.cfg.NoCgroup {
		spec.Linux.CgroupsPath, spec.Linux.Resources = "", nil
	} else if b.Cgroup != nil {
		spec.Linux.CgroupsPath = b.Cgroup.Path()
	}
	if raw, err = json.Marshal(&spec); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.Dir, "config.json"), raw, 0o600)
}

func reportPipe() (r, w *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, fmt.Errorf("pipe: %w", err)
	}
	if err := unix.SetNonblock(p[0], true); err != nil {
		return nil, nil, err
	}
	return os.NewFile(uintptr(p[0]), "report"), os.NewFile(uintptr(p[1]), "report"), nil
}

// The records of the init's report.
const (
	reportExecFailed = 1
	reportExeced     = 2
	reportEnded      = 3
)

func readReport(r io.Reader) (kind, value uint32, err error) {
	var rec [8]byte
	if _, err := io.ReadFull(r, rec[:]); err != nil {
		return 0, 0, err
	}
	return binary.LittleEndian.Uint32(rec[:4]), binary.LittleEndian.Uint32(rec[4:]), nil
}

type process struct {
	rt      *Runtime
	client  *runc.Runc
	id, dir string
	init    bool
	spec    *specs.Spec
	pid     int
	pidfd   *os.File
	report  *os.File
	console *os.File
	root    *os.File
	mounted bool
	cgroup  string // its path below the hierarchies; "" is none

	onceFailed sync.Once
	execFailed chan struct{} // closed when an exec has failed
}

var _ bundle.Process = (*process)(nil)

func (p *process) mountRoot(root bundle.Root) error {
	dir := filepath.Join(p.dir, "rootfs")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	fd, err := rootfs.Overlay(root)
	if err != nil {
		return err
	}
	p.root = fd
	if err := rootfs.Attach(fd, dir); err != nil {
		return err
	}
	p.mounted = true
	return nil
}

// stdio hands the container's streams to the runtime's process.
type stdio struct{ in, out, err *os.File }

func (s stdio) Close() error          { return nil }
func (s stdio) Stdin() io.WriteCloser { return nil }
func (s stdio) Stdout() io.ReadCloser { return nil }
func (s stdio) Stderr() io.ReadCloser { return nil }
func (s stdio) Set(c *exec.Cmd) {
	// A nil *os.File in an interface is not nil: set only what is there. In place of the host's null device, which the
	// runtime itself gets then, it gives the container that of its own /dev.
	if s.in != nil {
		c.Stdin = s.in
	}
	if s.out != nil {
		c.Stdout = s.out
	}
	if s.err != nil {
		c.Stderr = s.err
	}
}

func (p *process) create(ctx context.Context, b *bundle.Bundle, report *os.File) error {
	opts := &runc.CreateOpts{IO: stdio{b.Stdin, b.Stdout, b.Stderr}, PidFile: filepath.Join(p.dir, "pid")}
	if report != nil {
		opts.ExtraFiles = []*os.File{report}
	}
	var sock *runc.Socket
	if b.Spec.Process.Terminal {
		var err error
		if sock, err = runc.NewTempConsoleSocket(); err != nil {
			return err
		}
		defer func() { _ = sock.Close() }()
		opts.ConsoleSocket = sock
	}
	if err := p.call(func() error { return p.client.Create(ctx, p.id, p.dir, opts) }); err != nil {
		return p.explain("create", err)
	}
	if sock != nil {
		master, err := sock.ReceiveMaster()
		if err != nil {
			return fmt.Errorf("terminal of the container: %w", err)
		}
		if p.console, err = pollable(int(master.Fd()), "console"); err != nil {
			return err
		}
		_ = master.Close()
	}
	pid, err := readPid(opts.PidFile)
	if err != nil {
		return err
	}
	p.pid = pid
	if p.pidfd, err = openPidfd(pid); err != nil {
		return err
	}
	return p.denyConsole()
}

// ready shows the created container to who is to see it.
func (p *process) ready(b *bundle.Bundle) error {
	if b.Ready == nil {
		return nil
	}
	root, err := os.OpenFile(fmt.Sprintf("/proc/%d/root", p.pid), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return fmt.Errorf("root of the created container: %w", err)
	}
	defer func() { _ = root.Close() }()
	return b.Ready(bundle.Created{Pid: p.pid, Root: root})
}

func pollable(fd int, name string) (*os.File, error) {
	d, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(d, true); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(d), name), nil
}

func readPid(path string) (int, error) {
	raw, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(raw)))
}

func openPidfd(pid int) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("pidfd of %d: %w", pid, err)
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// explain turns what the runtime logged into one error.
func (p *process) explain(op string, err error) error {
	text := lastError(filepath.Join(p.dir, "runtime.log"))
	if text == "" {
		text = err.Error()
		if msg := errorIn([]byte(text)); msg != "" {
			text = msg
		}
	}
	if raw, err := os.ReadFile(filepath.Join(p.dir, hookWords)); err == nil && len(raw) > 0 {
		text = fmt.Sprintf("%s: it wrote %q", text, strings.TrimSpace(string(raw[max(0, len(raw)-2<<10):])))
	}
	if errno, ok := commandFault(text); ok {
		return &bundle.StartError{Command: p.spec.Process.Args[0], Errno: errno}
	}
	return fmt.Errorf("%s %s: %w: %s", p.rt.name, op, berth.ErrUnavailable, text)
}

// commandFault tells, from a runtime's words, whether the command is to blame.
func commandFault(text string) (syscall.Errno, bool) {
	for _, f := range []struct {
		words string
		errno syscall.Errno
	}{
		{"executable file not found", unix.ENOENT},
		{"executable file `", 0},
		{"exec format error", unix.ENOEXEC},
		{"exec: ", 0},
		{"open executable: ", 0},
	} {
		if !strings.Contains(text, f.words) {
			continue
		}
		switch {
		case f.errno != 0:
			return f.errno, true
		case strings.Contains(text, "permission denied"), strings.Contains(text, "Permission denied"):
			return unix.EACCES, true
		case strings.Contains(text, "no such file"), strings.Contains(text, "No such file"):
			return unix.ENOENT, true
		case strings.Contains(text, "is a directory"):
			return unix.EISDIR, true
		}
	}
	return 0, false
}

func lastError(log string) string {
	raw, err := os.ReadFile(log)
	if err != nil {
		return ""
	}
	text := ""
	for line := range bytes.Lines(raw) {
		if msg := errorIn(line); msg != "" {
			text = msg
		}
	}
	return text
}

// errorIn is the error in a line of a runtime's log; "" if there is none.
func errorIn(line []byte) string {
	var rec struct{ Level, Msg string }
	if json.Unmarshal(line, &rec) == nil && rec.Level == "error" {
		return rec.Msg
	}
	return ""
}

// awaitExec waits until the init says that the command was executed, or could not be.
func (p *process) awaitExec(b *bundle.Bundle) error {
	kind, value, err := readReport(p.report)
	switch {
	case err != nil:
		return fmt.Errorf("start of %s: %w: its init ended before the command was executed", b.ID, berth.ErrUnavailable)
	case kind == reportExecFailed:
		return &bundle.StartError{Command: b.Spec.Process.Args[0], Errno: syscall.Errno(value)}
	}
	return nil
}

func (p *process) Pid() int          { return p.pid }
func (p *process) Console() *os.File { return p.console }
func (p *process) RootFS() *os.File  { return p.root }

func (p *process) Wait() (bundle.Status, error) {
	ended := make(chan struct{})
	var reaper sync.WaitGroup
	reaper.Go(func() {
		select {
		case <-p.execFailed:
			p.rt.reapOrphans(ended)
		case <-ended:
		}
	})
	st, err := waitPidfd(p.pidfd)
	close(ended)
	reaper.Wait()
	if err != nil || !p.init {
		return st, err
	}
	if kind, value, err := readReport(p.report); err == nil && kind == reportEnded {
		st.Code, st.Signal = split(syscall.WaitStatus(value))
	}
	return st, nil
}

func (p *process) Kill() error { return kill(p.pidfd, unix.SIGKILL) }

func (p *process) Signal(sig syscall.Signal) error { return kill(p.pidfd, sig) }

func kill(pidfd *os.File, sig syscall.Signal) error {
	if pidfd == nil {
		return nil
	}
	err := unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// destroy removes what a failed start left.
func (p *process) destroy() {
	if p.pidfd != nil {
		_ = p.Kill()
		_, _ = waitPidfd(p.pidfd)
	}
	_ = p.Close()
}

// Close makes the runtime forget the container, and unmounts its root.
func (p *process) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	err := p.call(func() error { return p.client.Delete(ctx, p.id, &runc.DeleteOpts{Force: true}) })
	if err != nil && strings.Contains(err.Error(), "does not exist") {
		err = nil
	}
	if p.mounted {
		if uerr := unix.Unmount(filepath.Join(p.dir, "rootfs"), unix.MNT_DETACH); uerr != nil && err == nil {
			err = fmt.Errorf("unmount the root of %s: %w", p.id, uerr)
		}
		p.mounted = false
	}
	for _, f := range []*os.File{p.report, p.console, p.root, p.pidfd} {
		if f != nil {
			_ = f.Close()
		}
	}
	return err
}
