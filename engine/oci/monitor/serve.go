package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/engine/oci/bundle"
	"github.com/berth-project/berth/engine/oci/wire"
	"github.com/berth-project/berth/logfile"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The deadlines that end a pending read, and that end none.
var (
	past  = time.Unix(1, 0)
	never = time.Time{}
)

// session is one connection.
type session struct {
	m       *Monitor
	conn    *wire.Conn
	release []func() // what ends with the connection
}

// handle serves one connection until its end, or that of ctx. told ends when the monitor is told to end.
func (m *Monitor) handle(ctx, told context.Context, conn *wire.Conn) {
	s := &session{m: m, conn: conn}
	defer func() {
		_ = conn.Close()
		if ctx.Err() != nil && told.Err() != nil {
			return // the client is there, and finds what is its in the records, by the next monitor
		}
		for _, f := range s.release {
			f()
		}
	}()
	for {
		var req wire.Request
		files, err := conn.Receive(&req)
		if err != nil {
			if !errors.Is(err, io.EOF) && ctx.Err() == nil {
				m.log.Debug("connection", "err", err)
			}
			return
		}
		err = s.serve(ctx, &req, files)
		for _, f := range files {
			_ = f.Close()
		}
		if err != nil {
			return
		}
	}
}

// serve answers one request. An error is of the connection, not of the request.
func (s *session) serve(ctx context.Context, req *wire.Request, files []*os.File) error {
	switch req.Op {
	case wire.OpHello:
		return s.conn.Send(wire.Answer{Version: wire.Version, Pid: os.Getpid()})
	case wire.OpOpen:
		return s.open(ctx, req)
	case wire.OpList:
		return s.conn.Send(wire.Answer{List: s.m.statuses()})
	}
	sb, err := s.m.find(ctx, req.Sandbox)
	if err != nil {
		switch {
		case req.Op == wire.OpClose:
			err = s.m.drop(ctx, req.Sandbox) // gone is closed
		case req.Op == wire.OpAttach && errors.Is(err, berth.ErrUnavailable): // so that it can be closed
			return s.conn.Send(wire.Answer{Sandbox: &wire.Sandbox{Spec: s.m.recorded(req.Sandbox).Spec}})
		}
		return s.conn.Send(wire.Answer{Err: wire.ErrorOf(err)})
	}
	switch req.Op {
	case wire.OpBind:
		s.release = append(s.release, sb.bind())
		return s.sendSandbox(sb)
	case wire.OpAttach:
		return s.sendSandbox(sb)
	case wire.OpVolume:
		f, err := sb.volume(req.Path)
		return s.sendFile(f, err)
	case wire.OpStart:
		c, err := sb.start(context.WithoutCancel(ctx), req.Start)
		if err != nil {
			return s.conn.Send(wire.Answer{Err: wire.ErrorOf(err)})
		}
		w := c.describe()
		w.Step = berth.StepSpec{} // the client has it
		if err := s.conn.Send(wire.Answer{Container: w}); err != nil {
			return err
		}
		return s.tellEnd(ctx, c) // which most clients ask for next
	case wire.OpKeep:
		return s.conn.Send(wire.Answer{Err: wire.ErrorOf(sb.keep())})
	case wire.OpClose:
		sb.close()
		return s.conn.Send(wire.Answer{})
	}
	c, err := sb.container(req.Container)
	if err != nil {
		if req.Op == wire.OpRemove {
			err = nil
		}
		return s.conn.Send(wire.Answer{Err: wire.ErrorOf(err)})
	}
	return s.serveContainer(ctx, c, req, files)
}

func (s *session) serveContainer(ctx context.Context, c *container, req *wire.Request, files []*os.File) error {
	if req.Op == wire.OpStop {
		c.end(berth.Stopped, "", req.Grace) // also while it starts
	}
	<-c.started // until then most of it belongs to the start
	if err := c.startErr; err != nil {
		if req.Op == wire.OpRemove {
			err = nil // there is nothing of it
		}
		return s.conn.Send(wire.Answer{Err: wire.ErrorOf(err)})
	}
	switch req.Op {
	case wire.OpFind:
		w := c.describe()
		if req.Path == "process" {
			w.Process = c.process()
		}
		return s.conn.Send(wire.Answer{Container: w})
	case wire.OpWait:
		return s.tellEnd(ctx, c)
	case wire.OpStop:
		<-c.ended
		return s.conn.Send(wire.Answer{})
	case wire.OpSignal:
		return s.conn.Send(wire.Answer{Err: wire.ErrorOf(c.signal(syscall.Signal(req.Signal)))})
	case wire.OpRemove:
		c.remove()
		return s.conn.Send(wire.Answer{})
	case wire.OpStats:
		if err := c.running(); err != nil {
			return s.conn.Send(wire.Answer{Err: wire.ErrorOf(err)})
		}
		u := c.usage(true)
		return s.conn.Send(wire.Answer{Usage: &u})
	case wire.OpStdin:
		f, err := c.takeStdin()
		return s.sendFile(f, err)
	case wire.OpConsole:
		f, err := c.dupConsole()
		return s.sendFile(f, err)
	case wire.OpRoot:
		f, err := c.openRoot()
		return s.sendFile(f, err)
	case wire.OpExec:
		return s.exec(ctx, c, req.Exec, files)
	case wire.OpFollow:
		return s.follow(c, req)
	default:
		return s.conn.Send(wire.Answer{Err: wire.ErrorOf(fmt.Errorf("operation %q: %w", req.Op, berth.ErrUnsupported))})
	}
}

func (s *session) sendFile(f *os.File, err error) error {
	if err != nil {
		return s.conn.Send(wire.Answer{Err: wire.ErrorOf(err)})
	}
	defer func() { _ = f.Close() }()
	return s.conn.Send(wire.Answer{}, f)
}

func (s *session) open(ctx context.Context, req *wire.Request) error {
	if req.Spec == nil {
		return s.conn.Send(wire.Answer{Err: wire.ErrorOf(fmt.Errorf("open: %w: no spec", berth.ErrInvalid))})
	}
	sb, err := s.m.openSandbox(context.WithoutCancel(ctx), *req.Spec)
	if err != nil {
		return s.conn.Send(wire.Answer{Err: wire.ErrorOf(err)})
	}
	if req.Spec.Bound {
		s.release = append(s.release, sb.bind())
	}
	w, err := sb.describe()
	if err != nil {
		return s.conn.Send(wire.Answer{Err: wire.ErrorOf(err)})
	}
	w.Spec = berth.SandboxSpec{} // the client has it
	return s.conn.Send(wire.Answer{Sandbox: w})
}

func (s *session) sendSandbox(sb *sandbox) error {
	w, err := sb.describe()
	return s.conn.Send(wire.Answer{Sandbox: w, Err: wire.ErrorOf(err)})
}

// tellEnd answers with the container's exit when it has ended.
func (s *session) tellEnd(ctx context.Context, c *container) error {
	if err := s.await(ctx, c); err != nil {
		return err
	}
	exit := c.result()
	return s.conn.Send(wire.Answer{Exit: &exit})
}

// await waits for the container's end, or for the client's: a client that waits sends nothing meanwhile.
func (s *session) await(ctx context.Context, c *container) error {
	select {
	case <-c.ended:
		return nil
	default:
	}
	gone := make(chan error, 1)
	stop := s.watchPeer(gone)
	defer stop()
	select {
	case <-c.ended:
		return nil
	case err := <-gone:
		return c.unless(err)
	case <-ctx.Done():
		return c.unless(ctx.Err())
	}
}

// unless is err, unless the container has ended.
func (c *container) unless(err error) error {
	select {
	case <-c.ended:
		return nil
	default:
		return err
	}
}

// errSpoke: the client has sent something, which is still to be read.
var errSpoke = errors.New("the client has sent a message")

// watchPeer tells of the end of the connection, and of what comes on it; it reads nothing.
func (s *session) watchPeer(gone chan<- error) (stop func()) {
	raw, err := s.conn.Net().SyscallConn()
	if err != nil {
		gone <- err
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		var b [1]byte
		n := 0
		err := raw.Read(func(fd uintptr) (done bool) {
			var err error
			n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
			return n >= 0 && err == nil || err != nil && !errors.Is(err, unix.EAGAIN)
		})
		switch {
		case err == nil && n > 0:
			err = errSpoke
		case err == nil:
			err = io.EOF
		}
		gone <- err
	}()
	return func() {
		_ = s.conn.Net().SetReadDeadline(past)
		<-done
		_ = s.conn.Net().SetReadDeadline(never)
	}
}

func (m *Monitor) statuses() []berth.Status {
	m.mu.Lock()
	all := m.list()
	out := make([]berth.Status, 0, len(all)+len(m.unopened))
	for id := range m.unopened {
		out = append(out, berth.Status{Sandbox: id, State: berth.ContainerCreated})
	}
	m.mu.Unlock()
	for _, sb := range all {
		out = append(out, berth.Status{Sandbox: sb.id, State: berth.ContainerCreated, Labels: sb.rec.Spec.Labels})
		for _, c := range sb.all() {
			st := berth.Status{Sandbox: sb.id, Container: c.id, State: c.state(), Labels: c.step.Labels}
			if st.State == berth.ContainerEnded {
				e := c.result()
				st.Exit = &e
			}
			out = append(out, st)
		}
	}
	return out
}

// running is ErrConflict where the container does not run.
func (c *container) running() error {
	if s := c.state(); s != berth.ContainerRunning {
		return fmt.Errorf("container %s: %w: it is %s", c.id, berth.ErrConflict, s)
	}
	return nil
}

func (c *container) signal(sig syscall.Signal) error {
	if err := c.running(); err != nil {
		return err
	}
	return c.proc.Signal(sig)
}

// takeStdin hands out the only write end: the container sees the end of its input when its holder closes it.
func (c *container) takeStdin() (*os.File, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stdin == nil {
		return nil, fmt.Errorf("stdin of container %s: %w: it has none, it is taken, or the container has ended", c.id, berth.ErrConflict)
	}
	f := c.stdin
	c.stdin = nil
	return f, nil
}

func (c *container) dupConsole() (*os.File, error) {
	if err := c.running(); err != nil {
		return nil, err
	}
	con := c.proc.Console()
	if con == nil {
		return nil, fmt.Errorf("container %s: %w: it has no terminal", c.id, berth.ErrConflict)
	}
	return dup(con)
}

func dup(f *os.File) (*os.File, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if cerr := raw.Control(func(d uintptr) { fd, err = unix.FcntlInt(d, unix.F_DUPFD_CLOEXEC, 3) }); cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// openRoot opens the container's root directory: as it is mounted, or, when it has ended, mounted anew.
func (c *container) openRoot() (*os.File, error) {
	if c.state() == berth.ContainerRunning {
		return dup(c.proc.RootFS())
	}
	<-c.clean
	return c.remount()
}

// process is the OCI process of the container, as it was started.
func (c *container) process() json.RawMessage {
	var rec struct {
		Spec struct {
			Process json.RawMessage `json:"process"`
		} `json:"oci"`
	}
	if err := readJSON(filepath.Join(c.dir, startFile), &rec); err != nil {
		return nil
	}
	return rec.Spec.Process
}

// exec runs a further process and answers twice: when it was started, and when it has ended. A client that
// goes away meanwhile ends it.
func (s *session) exec(ctx context.Context, c *container, req *wire.Exec, files []*os.File) error {
	fail := func(err error) error { return s.conn.Send(wire.Answer{Err: wire.ErrorOf(err)}) }
	if err := c.running(); err != nil {
		return fail(err)
	}
	x := &bundle.Exec{Process: new(specs.Process)}
	if err := json.Unmarshal(req.Process, x.Process); err != nil {
		return fail(fmt.Errorf("OCI process: %w: %w", berth.ErrInvalid, err))
	}
	if err := boundFiles(x.Process); err != nil {
		return fail(err)
	}
	if !req.TTY {
		if len(files) != 3 {
			return fail(fmt.Errorf("exec: %w: it has 3 streams", berth.ErrInvalid))
		}
		x.Stdin, x.Stdout, x.Stderr = files[0], files[1], files[2]
	}
	c.sb.worn.Store(true) // it may bring capabilities, and as a stream a socket of its client's
	p, err := c.proc.Exec(ctx, x)
	if cmdErr, ok := errors.AsType[*bundle.StartError](err); ok {
		code := 126
		if errors.Is(cmdErr.Errno, unix.ENOENT) {
			code = 127
		}
		return s.conn.Send(wire.Answer{Exit: &berth.Exit{Reason: berth.NeverStarted, Code: code, Detail: cmdErr.Error()}})
	}
	if err != nil {
		return fail(err)
	}
	for _, f := range files {
		_ = f.Close() // the process has them: with ours open, its client would not see their end
	}
	var con []*os.File
	if req.TTY {
		con = append(con, p.Console())
	}
	if err := s.conn.Send(wire.Answer{Pid: p.Pid()}, con...); err != nil {
		_ = p.Kill()
	}
	return s.awaitExec(p)
}

func (s *session) awaitExec(p bundle.ExecProcess) error {
	gone := make(chan error, 1)
	stop := s.watchPeer(gone)
	type end struct {
		st  bundle.Status
		err error
	}
	ended := make(chan end, 1)
	go func() {
		st, err := p.Wait()
		ended <- end{st, err}
	}()
	var e end
	select {
	case e = <-ended:
		stop()
	case err := <-gone:
		stop()
		if errors.Is(err, errSpoke) && s.leaves() {
			s.m.wg.Go(func() {
				if con := p.Console(); con != nil {
					_, _ = io.Copy(io.Discard, con) // nobody looks; the command is not to wait for that
				}
				<-ended
				closeConsole(p)
			})
			return s.conn.Send(wire.Answer{})
		}
		_ = p.Kill()
		e = <-ended
	}
	closeConsole(p)
	exit := berth.Exit{Reason: berth.Exited, Code: e.st.Code}
	switch {
	case e.err != nil:
		exit = berth.Exit{Reason: berth.Lost, Code: -1, Detail: e.err.Error()}
	case e.st.Signal != 0:
		exit = berth.Exit{Reason: berth.Signaled, Code: 128 + int(e.st.Signal), Signal: int(e.st.Signal)}
	}
	return s.conn.Send(wire.Answer{Exit: &exit})
}

// leaves reads what an exec's client says, and reports whether it leaves the command running.
func (s *session) leaves() bool {
	var req wire.Request
	files, err := s.conn.Receive(&req)
	for _, f := range files {
		_ = f.Close()
	}
	return err == nil && req.Op == wire.OpLeave
}

func closeConsole(p bundle.ExecProcess) {
	if con := p.Console(); con != nil {
		_ = con.Close()
	}
}

// follow tells of a log's progress until its end. The client sends acknowledgements meanwhile; with the
// first one it becomes a reader that nothing is dropped before.
func (s *session) follow(c *container, req *wire.Request) error {
	w := c.logs[req.Stream]
	if w == nil {
		return s.conn.Send(wire.Answer{Progress: &wire.Progress{Done: true}})
	}
	f := w.Follow(req.Ack >= 0, max(req.Ack, 0))
	defer f.Close()
	gone := make(chan struct{})
	go func() { // ends with the connection, which ends with the following
		defer close(gone)
		for {
			var ack wire.Request
			if _, err := s.conn.Receive(&ack); err != nil {
				return
			}
			f.Ack(ack.Ack)
		}
	}()
	for {
		select {
		case <-f.C():
		case <-gone:
			return io.EOF
		}
		if err := s.progress(w); err != nil {
			return err
		}
		if _, _, done := w.State(); done {
			_ = s.conn.Net().SetReadDeadline(past)
			<-gone
			return io.EOF // the connection has done its work
		}
	}
}

func (s *session) progress(w *logfile.Writer) error {
	end, dropped, done := w.State()
	return s.conn.Send(wire.Answer{Progress: &wire.Progress{End: end, Dropped: dropped, Done: done}})
}
