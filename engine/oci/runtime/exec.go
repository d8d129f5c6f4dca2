package runtime

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-project/berth/engine/oci/bundle"
	runc "github.com/containerd/go-runc"
	"golang.org/x/sys/unix"
)

// Exec runs a further process in the container by the runtime's own exec.
func (p *process) Exec(ctx context.Context, e *bundle.Exec) (bundle.ExecProcess, error) {
	dir, err := os.MkdirTemp(p.dir, "exec-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	logPath := filepath.Join(dir, "log")
	opts := &runc.ExecOpts{IO: stdio{e.Stdin, e.Stdout, e.Stderr}, PidFile: filepath.Join(dir, "pid"), Detach: true, LogFile: logPath}
	var sock *runc.Socket
	if e.Process.Terminal {
		if sock, err = runc.NewTempConsoleSocket(); err != nil {
			return nil, err
		}
		defer func() { _ = sock.Close() }()
		opts.ConsoleSocket = sock
	}
	if err := p.call(func() error { return p.client.Exec(ctx, p.id, *e.Process, opts) }); err != nil {
		p.onceFailed.Do(func() { close(p.execFailed) })
		text := lastError(logPath)
		if text == "" {
			text = err.Error()
		}
		if errno, ok := commandFault(text); ok {
			return nil, &bundle.StartError{Command: e.Process.Args[0], Errno: errno}
		}
		return nil, fmt.Errorf("%s exec: %s", p.rt.name, text)
	}
	x := &execProcess{}
	if sock != nil {
		master, err := sock.ReceiveMaster()
		if err != nil {
			return nil, err
		}
		defer func() { _ = master.Close() }()
		if x.console, err = pollable(int(master.Fd()), "console"); err != nil {
			return nil, err
		}
	}
	if x.pid, err = readPid(opts.PidFile); err != nil {
		return nil, err
	}
	x.pidfd, err = openPidfd(x.pid)
	return x, err
}

type execProcess struct {
	pid     int
	pidfd   *os.File
	console *os.File
}

func (x *execProcess) Pid() int          { return x.pid }
func (x *execProcess) Console() *os.File { return x.console }
func (x *execProcess) Kill() error       { return kill(x.pidfd, unix.SIGKILL) }

func (x *execProcess) Wait() (bundle.Status, error) {
	st, err := waitPidfd(x.pidfd)
	_ = x.pidfd.Close()
	return st, err
}
