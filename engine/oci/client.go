package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/companion"
	"github.com/berth-project/berth/engine/oci/monitor"
	"github.com/berth-project/berth/engine/oci/wire"
	"golang.org/x/sys/unix"
)

// client talks to the monitor, and starts it where none runs.
type client struct {
	dir     string
	command []string // nil is this program
	worker  []string
	stay    time.Duration // of an idle monitor
	log     *slog.Logger

	mu      sync.Mutex
	idle    []*wire.Conn
	waiting []owed // the first came first
	closed  bool
}

// owed is a connection on which the monitor will tell a container's end, and nobody hears yet: see start.
type owed struct {
	conn               *wire.Conn
	sandbox, container string
}

// maxOwed bounds the connections of those who start many containers and wait for none.
const maxOwed = 64

const (
	// dialTries bounds how often a monitor is looked for or started: it may end, being idle, while we call.
	dialTries = 8
	maxIdle   = 4
)

// call asks once and reads one answer. What goes wrong with the monitor itself is tried again: all its
// operations are idempotent.
func (c *client) call(ctx context.Context, req *wire.Request, a *wire.Answer) error {
	_, err := c.callFiles(ctx, req, a)
	return err
}

func (c *client) callFiles(ctx context.Context, req *wire.Request, a *wire.Answer) ([]*os.File, error) {
	conn, files, err := c.callOn(ctx, req, a)
	if conn != nil {
		c.keep(conn)
	}
	return files, err
}

// callOn is callFiles that leaves the connection, if it can still be used, to the caller.
func (c *client) callOn(ctx context.Context, req *wire.Request, a *wire.Answer) (*wire.Conn, []*os.File, error) {
	var err error
	for range dialTries {
		var conn *wire.Conn
		if conn, err = c.conn(ctx); err != nil {
			return nil, nil, err
		}
		if ctx.Err() != nil { // before it is sent: the monitor would do it
			c.keep(conn)
			return nil, nil, context.Cause(ctx)
		}
		var files []*os.File
		files, err = ask(ctx, conn, req, a)
		if err == nil {
			if ctx.Err() != nil { // its deadline may pass at any moment: see ask
				_ = conn.Close()
				conn = nil
			}
			return conn, files, a.Err.Err()
		}
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if !broken(err) {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("monitor: %w: %w", berth.ErrUnavailable, err)
}

// broken reports whether the other end went away.
func broken(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET)
}

// ask sends and receives on a connection that is this call's alone, and gives up when ctx ends.
func ask(ctx context.Context, conn *wire.Conn, req *wire.Request, a *wire.Answer, send ...*os.File) ([]*os.File, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.Net().SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.Send(req, send...); err != nil {
		return nil, err
	}
	*a = wire.Answer{}
	return conn.Receive(a)
}

// start starts a step, and leaves the monitor waiting for its end: what hear is to be called with, if anything.
func (c *client) start(ctx context.Context, req *wire.Request, a *wire.Answer) (*wire.Conn, error) {
	conn, _, err := c.callOn(ctx, req, a)
	if conn == nil {
		return nil, err
	}
	if err != nil { // nothing else comes on it
		c.keep(conn)
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		_ = conn.Close()
		return nil, nil
	}
	if len(c.waiting) >= maxOwed { // whoever waits for that one asks
		_ = c.waiting[0].conn.Close()
		c.waiting = c.waiting[1:]
	}
	c.waiting = append(c.waiting, owed{conn, req.Sandbox, req.Start.Step.ID})
	return conn, nil
}

// drop closes the connections of start on which nobody hears and nobody will: of a container that was removed, or, where
// that is "", of a sandbox that was closed.
func (c *client) drop(sandbox, container string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = slices.DeleteFunc(c.waiting, func(o owed) bool {
		gone := o.sandbox == sandbox && (container == "" || o.container == container)
		if gone {
			_ = o.conn.Close()
		}
		return gone
	})
}

// hear receives the answer that the monitor owes on a connection of start, and gives up when ctx ends.
func (c *client) hear(ctx context.Context, conn *wire.Conn, a *wire.Answer) error {
	c.mu.Lock()
	c.waiting = slices.DeleteFunc(c.waiting, func(o owed) bool { return o.conn == conn })
	c.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { _ = conn.Net().SetDeadline(time.Unix(1, 0)) })
	_, err := conn.Receive(a)
	whole := stop()
	if err == nil && whole {
		c.keep(conn)
	} else {
		_ = conn.Close()
	}
	return err
}

// conn takes an idle connection, or makes one.
func (c *client) conn(ctx context.Context) (*wire.Conn, error) {
	c.mu.Lock()
	if n := len(c.idle); n > 0 {
		conn := c.idle[n-1]
		c.idle = c.idle[:n-1]
		c.mu.Unlock()
		return conn, nil
	}
	c.mu.Unlock()
	return c.dial(ctx)
}

func (c *client) keep(conn *wire.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) >= maxIdle {
		_ = conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

func (c *client) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, conn := range c.idle {
		_ = conn.Close()
	}
	for _, o := range c.waiting {
		_ = o.conn.Close()
	}
	c.idle, c.waiting = nil, nil
	return nil
}

// dial connects to the monitor, and starts one where none answers.
func (c *client) dial(ctx context.Context) (*wire.Conn, error) {
	var err error
	for i := range dialTries {
		var nc *net.UnixConn
		if nc, err = connect(monitor.SocketDir(c.dir)); err == nil {
			conn := wire.NewConn(nc)
			if err = c.greet(ctx, conn); err == nil {
				return conn, nil
			}
			_ = conn.Close()
			if !broken(err) && ctx.Err() == nil {
				return nil, err
			}
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		switch serr := c.spawn(ctx); {
		case errors.Is(serr, companion.ErrKilled): // no fault of its own: the next one may live
			err = serr
		case serr != nil:
			return nil, fmt.Errorf("monitor: %w", serr)
		}
		time.Sleep(time.Duration(i) * 5 * time.Millisecond) // one that ends still holds the lock
	}
	return nil, fmt.Errorf("monitor: %w: it does not answer: %w", berth.ErrUnavailable, err)
}

// greetMax is how long a monitor that is there may take to say so.
const greetMax = 10 * time.Second

func (c *client) greet(ctx context.Context, conn *wire.Conn) error {
	var a wire.Answer
	within, cancel := context.WithTimeout(ctx, greetMax)
	defer cancel()
	_, err := ask(within, conn, &wire.Request{Op: wire.OpHello}, &a)
	switch {
	case ctx.Err() != nil: // the connection's deadline may pass at any moment: see ask
		return context.Cause(ctx)
	case within.Err() != nil:
		return fmt.Errorf("monitor: %w: it has not answered for %s: the machine is too busy, or the process was stopped (SIGCONT lets it go on)", berth.ErrUnavailable, greetMax)
	case err != nil:
		return err
	}
	if a.Version != wire.Version {
		return fmt.Errorf("monitor: %w: process %d is of another version of berth (protocol %d, not %d); it ends when its containers have", berth.ErrUnavailable, a.Pid, a.Version, wire.Version)
	}
	return nil
}

// Watched reports whether a monitor watches over a data directory: then parked tasks need nobody else.
func Watched(dir string) bool { return (&client{dir: dir}).running() }

// running reports whether a monitor answers.
func (c *client) running() bool {
	nc, err := connect(monitor.SocketDir(c.dir))
	if err != nil {
		return false
	}
	_ = nc.Close()
	return true
}

func connect(dir string) (*net.UnixConn, error) { return companion.Dial(dir, monitor.SocketName) }

// spawn starts a monitor and waits until it can be connected to. That another one runs already is no error.
func (c *client) spawn(ctx context.Context) error {
	err := companion.Start(ctx, c.monitorCommand(), filepath.Join(monitor.SocketDir(c.dir), "monitor.log"))
	if failed, ok := errors.AsType[*companion.FailedError](err); ok {
		kind, rest, _ := strings.Cut(failed.Why, "\x00")
		return (&wire.Error{Kind: kind, Text: rest}).Err()
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok && p.Op == "fork/exec" && errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: a mount namespace is not allowed here: run berth as root, or let it make user namespaces: %w", berth.ErrDenied, err)
	}
	if errors.Is(err, companion.ErrEnded) || errors.Is(err, companion.ErrKilled) {
		return fmt.Errorf("%w: %w", berth.ErrUnavailable, err)
	}
	return err
}

func (c *client) monitorCommand() *exec.Cmd {
	argv := c.command
	if len(argv) == 0 {
		argv = []string{"/proc/self/exe"}
	}
	args := append(argv[1:len(argv):len(argv)], "--data-dir", c.dir)
	if c.stay > 0 {
		args = append(args, "--idle", c.stay.String())
	}
	for _, w := range c.worker {
		args = append(args, "--worker", w)
	}
	cmd := exec.Command(argv[0], args...) //nolint:noctx // it outlives us on purpose
	cmd.Args[0] = MonitorName
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS}
	return cmd
}

// lifeline is the connection with which a bound sandbox ends. When the monitor is killed it is made anew.
type lifeline struct {
	c    *client
	id   string
	desc *wire.Sandbox
	stop context.CancelFunc
	done chan struct{}
}

// bind opens a bound sandbox and holds its lifeline.
func (c *client) bind(ctx context.Context, req *wire.Request) (*lifeline, error) {
	conn, a, err := c.bindOnce(ctx, req)
	if err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &lifeline{c: c, id: req.Spec.ID, desc: a.Sandbox, stop: stop, done: make(chan struct{})}
	go l.hold(life, conn)
	return l, nil
}

func (c *client) bindOnce(ctx context.Context, req *wire.Request) (*wire.Conn, *wire.Answer, error) {
	var a wire.Answer
	var err error
	for range dialTries {
		var conn *wire.Conn
		if conn, err = c.dial(ctx); err != nil {
			return nil, nil, err
		}
		_, err = ask(ctx, conn, req, &a)
		if err == nil && a.Err == nil && ctx.Err() == nil {
			return conn, &a, nil
		}
		_ = conn.Close()
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if err == nil {
			return nil, nil, a.Err.Err()
		}
		if !broken(err) {
			return nil, nil, err
		}
	}
	return nil, nil, fmt.Errorf("monitor: %w: %w", berth.ErrUnavailable, err)
}

// hold keeps a lifeline up until the sandbox is closed.
func (l *lifeline) hold(ctx context.Context, conn *wire.Conn) {
	defer close(l.done)
	for {
		stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
		var a wire.Answer
		_, err := conn.Receive(&a) // blocks for the life of the connection: nothing is sent on it
		stop()
		_ = conn.Close()
		if ctx.Err() != nil {
			return
		}
		l.c.log.Warn("the monitor is gone; looking for another", "sandbox", l.id, "err", err)
		if conn, _, err = l.c.bindOnce(ctx, &wire.Request{Op: wire.OpBind, Sandbox: l.id}); err != nil {
			return // the sandbox is gone, which its containers' Wait will say
		}
	}
}

func (l *lifeline) close() {
	if l != nil {
		l.stop()
		<-l.done
	}
}
