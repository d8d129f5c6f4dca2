package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// sshHost is a daemon behind ssh: each connection is an ssh of its own, and at its other end `docker system dial-stdio`,
// which the docker command uses too. What ssh needs (keys, known hosts, jumps) is in the user's ssh configuration.
type sshHost struct {
	user, host, port string
	socket           string // of the daemon there; "" is what docker takes there
}

// parseSSH reads ssh://[user@]host[:port][/path/of/socket].
func parseSSH(s string) (sshHost, error) {
	u, err := url.Parse(s)
	if err != nil {
		return sshHost{}, err
	}
	h := sshHost{user: u.User.Username(), host: u.Hostname(), port: u.Port()}
	if u.Path != "/" {
		h.socket = u.Path
	}
	_, secret := u.User.Password()
	switch {
	case u.Scheme != "ssh" || h.host == "":
		return h, errors.New("it is written ssh://[user@]host[:port][/path/of/socket]")
	case secret:
		return h, errors.New("a password in it would be seen by everybody; use a key")
	case u.RawQuery != "" || u.Fragment != "":
		return h, errors.New("it has more than a host, a port and the path of a socket")
	case strings.HasPrefix(h.host, "-") || strings.HasPrefix(h.user, "-"):
		return h, errors.New("a name does not begin with -")
	}
	return h, nil
}

func (h sshHost) String() string {
	name := h.host
	if h.user != "" {
		name = h.user + "@" + name
	}
	if h.port != "" {
		name += ":" + h.port
	}
	return name
}

func (h sshHost) args() []string {
	args := []string{"-o", "ConnectTimeout=30", "-o", "ServerAliveInterval=15", "-T"} // a network that is gone ends it
	if h.user != "" {
		args = append(args, "-l", h.user)
	}
	if h.port != "" {
		args = append(args, "-p", h.port)
	}
	args = append(args, "--", h.host, "docker")
	if h.socket != "" { // a shell there reads it
		args = append(args, "--host", "'"+strings.ReplaceAll("unix://"+h.socket, "'", `'\''`)+"'")
	}
	return append(args, "system", "dial-stdio")
}

const (
	// sshAtOnce is how many connections are made at once: servers take few that have not said yet who they are.
	sshAtOnce = 4
	// sshTries is how often a connection is tried that the server would not talk on; the pauses double from sshPause.
	sshTries = 6
	sshPause = 100 * time.Millisecond
	// sshEnd is how long an ssh may take to end when its connection is closed.
	sshEnd = 2 * time.Second
)

// sshDialer makes connections to a daemon behind ssh.
type sshDialer struct {
	sshHost
	turn chan struct{}
}

// dial connects to the daemon, which has answered when it returns.
func (d *sshDialer) dial(ctx context.Context) (net.Conn, error) {
	select {
	case d.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-d.turn }()
	pause := sshPause
	for try := 1; ; try++ {
		c, err := d.connect(ctx)
		if err == nil || try == sshTries || !sshBusy(err) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
		pause *= 2
	}
}

// sshBusy reports whether the server took a connection and would not talk on it, as it does when there are many.
func sshBusy(err error) bool {
	text := err.Error()
	return strings.Contains(text, "kex_exchange_identification") || strings.Contains(text, "Connection reset by") || strings.Contains(text, "Connection closed by")
}

// connect starts an ssh and asks the daemon at its other end whether it is there. The process lives as long as the
// connection; like docker's it has a session of its own, so that the terminal's signals are not for it, and asks for nothing
// there.
func (h sshHost) connect(ctx context.Context) (net.Conn, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("ssh: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ssh"), os.NewFile(uintptr(pair[1]), "ssh")
	defer func() { _, _ = ours.Close(), theirs.Close() }()
	raw, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("ssh: %w", err)
	}
	c := &sshConn{UnixConn: raw.(*net.UnixConn), done: make(chan struct{})}
	c.cmd = exec.Command("ssh", h.args()...) //nolint:noctx // it ends with the connection
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = theirs, theirs, &c.said
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.cmd.Start(); err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("ssh: %w", err)
	}
	_ = theirs.Close() // or its end would not be seen
	go func() {        // ends with the process, which Close ends
		_ = c.cmd.Wait()
		close(c.done)
	}()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	err = c.ask()
	if !stop() {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		err = c.fault(h, err)
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// sshConn is a connection through an ssh.
type sshConn struct {
	*net.UnixConn
	cmd  *exec.Cmd
	said lastWords
	once sync.Once
	done chan struct{} // the process has ended
}

// ask asks the daemon whether it is there, and leaves the connection as it was.
func (c *sshConn) ask() error {
	if _, err := io.WriteString(c, "HEAD /_ping HTTP/1.1\r\nHost: docker\r\n\r\n"); err != nil {
		return err
	}
	var got []byte
	for buf := make([]byte, 1<<10); !bytes.Contains(got, []byte("\r\n\r\n")); {
		n, err := c.Read(buf)
		if got = append(got, buf[:n]...); err != nil {
			return err
		}
		if len(got) > lastWordsMax {
			break
		}
	}
	if line, _, _ := bytes.Cut(got, []byte("\r\n")); !bytes.HasPrefix(line, []byte("HTTP/1.1 200 ")) {
		return fmt.Errorf("what answers there is no Docker daemon: %q", line)
	}
	return nil
}

// Close ends the connection, and soon the process.
func (c *sshConn) Close() error {
	err := c.UnixConn.Close()
	c.once.Do(func() {
		go func() { // ends with the process
			select {
			case <-c.done:
			case <-time.After(sshEnd):
				_ = c.cmd.Process.Kill()
			}
		}()
	})
	return err
}

// fault says why the daemon did not answer.
func (c *sshConn) fault(h sshHost, err error) error {
	select {
	case <-c.done:
		return sshFault(h, c.cmd.ProcessState.ExitCode(), c.said.String(), err)
	case <-time.After(sshEnd):
		return sshFault(h, 0, c.said.String(), err)
	}
}

// sshError is an error of ssh, or of what it started, in words of its own.
type sshError struct {
	text string
	kind error
}

func (e *sshError) Error() string { return e.text }
func (e *sshError) Unwrap() error { return e.kind }

// sshFault says what is wrong by what ssh and docker there said.
func sshFault(h sshHost, code int, said string, err error) error {
	if said == "" {
		said = err.Error()
		if errors.Is(err, io.EOF) {
			said = fmt.Sprintf("it ended with code %d", code)
		}
	}
	f := &sshError{kind: berth.ErrUnavailable}
	switch {
	case code == notThere || strings.Contains(said, "docker: command not found") || strings.Contains(said, "docker: not found"):
		// For a while only, where it is being replaced; and not that what was asked for is not found.
		f.text = "there is no docker command on that host, which connections go through; install Docker's command there, in the PATH of `ssh " + h.String() + " docker version`"
	case strings.Contains(said, "dial-stdio"):
		f.kind, f.text = berth.ErrUnsupported, "its docker command is older than 18.09 and has no `docker system dial-stdio`: "+said
	case strings.Contains(said, "Permission denied (") || strings.Contains(said, "Host key verification failed"):
		f.kind, f.text = berth.ErrDenied, said+"; berth asks for no password: have `ssh "+h.String()+" true` work without one first"
	case code == 255:
		f.text = said
	case strings.Contains(said, "permission denied"):
		f.kind, f.text = berth.ErrDenied, "the daemon there: "+said
	default:
		f.text = "the daemon there: " + said
	}
	// The client has other words for what has these in it, and they are of this machine.
	f.text = strings.NewReplacer("dial unix ", "", "connection refused", "Connection refused").Replace("ssh to " + h.String() + ": " + f.text)
	return f
}

// lastWords keeps the end of what a process says.
type lastWords struct {
	mu  sync.Mutex
	raw []byte
}

const lastWordsMax = 4 << 10

func (w *lastWords) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.raw = append(w.raw, p...)
	w.raw = w.raw[max(0, len(w.raw)-lastWordsMax):]
	return len(p), nil
}

// String is what was said, in one line.
func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Join(strings.FieldsFunc(string(bytes.TrimSpace(w.raw)), func(r rune) bool { return r == '\n' || r == '\r' }), "; ")
}
