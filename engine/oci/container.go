package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/logfile"
	"golang.org/x/sys/unix"
)

// Container is a started step of this engine.
type Container struct {
	sb   *Sandbox
	id   string
	desc *wire.Container

	mu      sync.Mutex
	exit    *berth.Exit
	waiting *wire.Conn // on which the monitor tells the exit, until somebody waits
}

var (
	_ berth.Container   = (*Container)(nil)
	_ berth.LogReader   = (*Container)(nil)
	_ berth.Signaler    = (*Container)(nil)
	_ berth.Execer      = (*Container)(nil)
	_ berth.Statser     = (*Container)(nil)
	_ berth.Addresser   = (*Container)(nil)
	_ berth.StdinWriter = (*Container)(nil)
	_ berth.Terminal    = (*Container)(nil)
	_ berth.Archiver    = (*Container)(nil)
)

func newContainer(s *Sandbox, desc *wire.Container) *Container {
	return &Container{sb: s, id: desc.Step.ID, desc: desc}
}

// ID is the container's id.
func (c *Container) ID() string { return c.id }

// Runtime is what started the container.
func (c *Container) Runtime() string { return c.desc.Runtime }

// Notes are what was clamped or adapted at the start.
func (c *Container) Notes() []string { return c.desc.Notes }

func (c *Container) request(op wire.Op) *wire.Request {
	return &wire.Request{Op: op, Sandbox: c.sb.id, Container: c.id}
}

func (c *Container) call(ctx context.Context, req *wire.Request) (wire.Answer, error) {
	var a wire.Answer
	err := c.sb.e.client.call(ctx, req, &a)
	return a, err
}

// Wait waits for the container's end. When the monitor is killed meanwhile, the answer is Lost.
func (c *Container) Wait(ctx context.Context) (berth.Exit, error) {
	c.mu.Lock()
	if c.exit != nil {
		defer c.mu.Unlock()
		return *c.exit, nil
	}
	c.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return berth.Exit{}, context.Cause(ctx)
	}
	exit := c.told(ctx)
	if exit == nil {
		a, err := c.call(ctx, c.request(wire.OpWait))
		if err != nil {
			return berth.Exit{}, err
		}
		exit = a.Exit
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.exit = exit
	return *exit, nil
}

// told is the exit that the monitor tells whoever started the container; nil where it has to be asked, because another
// waits already or this monitor is gone.
func (c *Container) told(ctx context.Context) *berth.Exit {
	c.mu.Lock()
	conn := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	if conn == nil {
		return nil
	}
	var a wire.Answer
	if err := c.sb.e.client.hear(ctx, conn, &a); err != nil {
		return nil
	}
	return a.Exit
}

// Stop ends the container.
func (c *Container) Stop(ctx context.Context, grace time.Duration) error {
	req := c.request(wire.OpStop)
	req.Grace = grace
	_, err := c.call(ctx, req)
	return goneIsFine(err)
}

// Remove removes the container.
func (c *Container) Remove(ctx context.Context) error {
	_, err := c.call(ctx, c.request(wire.OpRemove))
	if err := goneIsFine(err); err != nil {
		return err
	}
	c.sb.e.client.drop(c.sb.id, c.id)
	return nil
}

func goneIsFine(err error) error {
	if errors.Is(err, berth.ErrNotFound) {
		return nil
	}
	return err
}

// Signal sends a signal to the container's command.
func (c *Container) Signal(ctx context.Context, sig syscall.Signal) error {
	req := c.request(wire.OpSignal)
	req.Signal = int(sig)
	_, err := c.call(ctx, req)
	return err
}

// Stats reads what the container uses.
func (c *Container) Stats(ctx context.Context) (berth.Usage, error) {
	a, err := c.call(ctx, c.request(wire.OpStats))
	if err != nil {
		return berth.Usage{}, err
	}
	return *a.Usage, nil
}

// Address is the IP address of the container's network.
func (c *Container) Address(context.Context) (string, error) {
	if c.sb.desc.Address == "" {
		return "", fmt.Errorf("container %s has no IP address: %w: its network is %s", c.id, berth.ErrNotFound, c.sb.desc.Spec.Network.Mode)
	}
	return c.sb.desc.Address, nil
}

// Stdin is the container's standard input. There is one holder: a second call is ErrConflict.
func (c *Container) Stdin(ctx context.Context) (io.WriteCloser, error) {
	if c.desc.Step.TTY {
		return c.file(ctx, wire.OpConsole)
	}
	return c.file(ctx, wire.OpStdin)
}

func (c *Container) file(ctx context.Context, op wire.Op) (*os.File, error) {
	var a wire.Answer
	files, err := c.sb.e.client.callFiles(ctx, c.request(op), &a)
	if err != nil {
		return nil, err
	}
	if len(files) != 1 {
		return nil, fmt.Errorf("monitor: %w: it sent %d files", berth.ErrUnavailable, len(files))
	}
	return files[0], nil
}

// Resize sets the size of the container's terminal.
func (c *Container) Resize(ctx context.Context, rows, cols uint16) error {
	con, err := c.file(ctx, wire.OpConsole)
	if err != nil {
		return err
	}
	defer func() { _ = con.Close() }()
	return resize(con, berth.Size{Rows: rows, Cols: cols})
}

func resize(con *os.File, s berth.Size) error {
	raw, err := con.SyscallConn() // not Fd: the terminal may be closed meanwhile
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: s.Rows, Col: s.Cols})
	})
	return errors.Join(err, set)
}

// Logs reads what the container wrote.
func (c *Container) Logs(ctx context.Context, opts berth.LogOptions) (io.ReadCloser, error) {
	stream := "stdout"
	if opts.Stderr {
		stream = "stderr"
		if c.desc.Step.TTY {
			return io.NopCloser(eof{}), nil
		}
	}
	r, err := logfile.Open(c.desc.LogDir, c.desc.LogPrefix+stream, logfile.From{Offset: opts.Offset, Tail: opts.Tail, Since: opts.Since})
	if err != nil && opts.Hold { // the log waits for this reader otherwise, which reads nothing
		f := &follow{c: c, stream: stream, hold: true}
		f.leave(0)
		f.drop()
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("logs of %s: %w", c.id, berth.ErrNotFound)
	}
	if err != nil || !opts.Follow {
		return r, err
	}
	return c.follow(ctx, stream, r, opts.Hold)
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

// follow reads on as the log grows.
func (c *Container) follow(ctx context.Context, stream string, r *logfile.Reader, hold bool) (io.ReadCloser, error) {
	f := &follow{c: c, stream: stream, hold: hold}
	rc := r.Follow(ctx, f.wait)
	return &followReader{ReadCloser: rc, ctx: ctx, f: f, log: r}, nil
}

// holdAfter is how many bytes a reader reads before it makes itself known where it has not come to the log's end: a
// container that writes faster than it reads must not get a whole log ahead.
const holdAfter = 256 << 10

// Skipper says how much of a log was dropped before its reader came to it.
type Skipper interface{ Skipped() int64 }

type followReader struct {
	io.ReadCloser
	ctx  context.Context //nolint:containedctx // the life of one stream, ended by Close
	f    *follow
	log  *logfile.Reader
	read int64
}

func (r *followReader) Read(p []byte) (int, error) {
	n, err := r.ReadCloser.Read(p)
	before := r.read
	if r.read += int64(n); r.f.hold && before < holdAfter && r.read >= holdAfter {
		_, _ = r.f.tell(r.ctx, r.log.Pos()) // the next wait for more says what is wrong
	}
	return n, err
}

func (r *followReader) Skipped() int64 { return r.log.Skipped() }

func (r *followReader) Close() error {
	err := r.ReadCloser.Close()
	r.f.leave(r.log.Pos())
	r.f.mu.Lock()
	defer r.f.mu.Unlock()
	if r.f.conn != nil {
		_ = r.f.conn.Close()
	}
	return err
}

type follow struct {
	c      *Container
	stream string
	hold   bool

	mu    sync.Mutex
	conn  *wire.Conn
	known bool // to the monitor
}

// wait blocks until the log may have more than have bytes, or has ended.
func (f *follow) wait(ctx context.Context, have int64) (ended bool, err error) {
	for range dialTries {
		if err := ctx.Err(); err != nil {
			return false, context.Cause(ctx)
		}
		p, err := f.next(ctx, have)
		switch {
		case errors.Is(err, berth.ErrNotFound): // removed: what is in the file is all
			return true, nil
		case err != nil && broken(err):
			f.drop()
			continue
		case err != nil:
			return false, err
		case p.Done || p.End > have:
			return p.Done, nil
		}
	}
	return false, fmt.Errorf("follow %s of %s: %w", f.stream, f.c.id, berth.ErrUnavailable)
}

func (f *follow) drop() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		_ = f.conn.Close()
		f.conn = nil
	}
}

// leaveMax is how long the monitor may take to hear that an announced reader is gone.
const leaveMax = 5 * time.Second

// leave makes a reader known that holds the log and was not yet: the log waits for it otherwise, though it reads no more.
func (f *follow) leave(pos int64) {
	f.mu.Lock()
	known := f.known
	f.mu.Unlock()
	if !f.hold || known {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveMax)
	defer cancel()
	_, _ = f.tell(ctx, pos) // a monitor that is gone waits for nobody
}

// next acknowledges what was read, and waits for news.
func (f *follow) next(ctx context.Context, have int64) (*wire.Progress, error) {
	for {
		p, err := f.tell(ctx, have)
		if err != nil || p.Done || p.End > have {
			return p, err
		}
	}
}

// tell says how far the log was read, and answers how far it has come.
func (f *follow) tell(ctx context.Context, have int64) (*wire.Progress, error) {
	f.mu.Lock()
	conn := f.conn
	f.mu.Unlock()
	req := f.c.request(wire.OpFollow)
	req.Stream, req.Ack = f.stream, -1
	if f.hold {
		req.Ack = have
	}
	if conn == nil {
		var err error
		if conn, err = f.c.sb.e.client.dial(ctx); err != nil {
			return nil, err
		}
		f.mu.Lock()
		f.conn = conn
		f.mu.Unlock()
	}
	var a wire.Answer
	if _, err := ask(ctx, conn, req, &a); err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, err
	}
	f.mu.Lock()
	f.known = true
	f.mu.Unlock()
	if a.Err != nil {
		return nil, a.Err.Err()
	}
	return a.Progress, nil
}

// Archive reads a file or directory out of the container's root.
func (c *Container) Archive(ctx context.Context, p string) (io.ReadCloser, error) {
	root, err := c.file(ctx, wire.OpRoot)
	if err != nil {
		return nil, err
	}
	return archive(root, p)
}

// Exec runs a further command in the container.
func (c *Container) Exec(ctx context.Context, spec berth.ExecSpec, stdio berth.Stdio) (berth.Exit, error) {
	req := c.request(wire.OpFind)
	req.Path = "process"
	a, err := c.call(ctx, req)
	if err != nil {
		return berth.Exit{}, err
	}
	process, err := c.sb.execProcess(a.Container, spec)
	if err != nil {
		return berth.Exit{}, fmt.Errorf("exec in %s: %w", c.id, err)
	}
	raw, err := json.Marshal(process)
	if err != nil {
		return berth.Exit{}, err
	}
	x := &execution{c: c, stdio: stdio, tty: spec.TTY}
	return x.run(ctx, raw)
}
