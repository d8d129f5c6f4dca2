// Package companion starts a process of berth's own that stays beside it, and connects to it: one a directory, started by
// whoever needs it first, which outlives who has started it. What it does, and what is said on the connection, is not here.
package companion

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// Listen makes the socket of a companion, to which this user alone can connect.
func Listen(dir, name string) (*net.UnixListener, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	path := inDir(d, name)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen in %s: %w", dir, err)
	}
	l.SetUnlinkOnClose(false) // the descriptor in the name is closed by then; the next companion removes it
	return l, os.Chmod(path, 0o600)
}

// Dial connects to a companion.
func Dial(dir, name string) (*net.UnixConn, error) {
	d, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = d.Close() }()
	return net.DialUnix("unix", nil, &net.UnixAddr{Name: inDir(d, name), Net: "unix"})
}

// inDir names a socket by its directory's descriptor: its path may be no longer than 107 bytes.
func inDir(d *os.File, name string) string { return fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), name) }

// What a companion says to who starts it.
const (
	readyWord   = "ready"
	runningWord = "running"
)

// Starter is who has started this companion, and waits for its word.
type Starter struct{ f *os.File }

// Started is what a companion calls first.
func Started() Starter {
	syscall.CloseOnExec(3) // what it starts must not hold up whoever waits for the end of this
	return Starter{os.NewFile(3, "starter")}
}

// Ready says that the companion can be connected to.
func (s Starter) Ready() { s.say(readyWord) }

// Running says that another one can.
func (s Starter) Running() { s.say(runningWord) }

// Failed says why it cannot.
func (s Starter) Failed(why string) { s.say(why) }

func (s Starter) say(word string) {
	_, _ = io.WriteString(s.f, word)
	_ = s.f.Close()
}

// Errors of Start.
var (
	// ErrEnded is that it ended without a word, and ErrKilled that somebody killed it: another one may live.
	ErrEnded  = errors.New("it ended as it started")
	ErrKilled = errors.New("it was killed as it started")
)

// FailedError is what Failed has said.
type FailedError struct{ Why string }

func (e *FailedError) Error() string { return e.Why }

// logMax bounds a companion's own log, in bytes, at its start.
const logMax = 1 << 20

// Start starts a companion, with a log of its own, and waits until it can be connected to. That another one runs already is no
// error. ErrEnded, ErrKilled, FailedError, the end of ctx, or what kept the command from being executed.
func Start(ctx context.Context, cmd *exec.Cmd, logPath string) error {
	if st, err := os.Stat(logPath); err == nil && st.Size() > logMax {
		_ = os.Rename(logPath, logPath+".old")
	}
	log, err := os.OpenFile(logPath, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = log, log, []*os.File{w}
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { // only reaps: it outlives us
		defer close(ended)
		_ = cmd.Wait()
	}()
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	said, err := io.ReadAll(r)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	switch text := strings.TrimSpace(string(said)); {
	case err != nil:
		return err
	case text == readyWord, text == runningWord:
		return nil
	case text != "":
		return &FailedError{text}
	}
	<-ended // it has closed what it had open, so it ends
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() && ws.Signal() == syscall.SIGKILL {
		return fmt.Errorf("%w; see %s", ErrKilled, logPath)
	}
	return fmt.Errorf("%w; see %s", ErrEnded, logPath)
}
