package docker

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
	"golang.org/x/sys/unix"
)

// Exec runs a further command in the container. Where ctx ends first, the command runs on: the daemon has no
// call that ends it.
func (c *Container) Exec(ctx context.Context, spec berth.ExecSpec, stdio berth.Stdio) (berth.Exit, error) {
	if spec.Privileged {
		return berth.Exit{}, fmt.Errorf("exec in %s: privileged: %w", c.life, berth.ErrUnsupported)
	}
	if len(spec.Command) == 0 {
		return berth.Exit{}, fmt.Errorf("exec in %s: %w: no command", c.life, berth.ErrInvalid)
	}
	if spec.WorkingDir == "." {
		spec.WorkingDir = ""
	}
	if spec.WorkingDir != "" && !path.IsAbs(spec.WorkingDir) {
		return berth.Exit{}, fmt.Errorf("exec in %s: workdir %q: %w: it is an absolute path in the container", c.life, spec.WorkingDir, berth.ErrInvalid)
	}
	defer c.life.holdForExec()()
	api := c.life.e.api()
	host, err := c.life.e.daemon(ctx)
	if err != nil {
		return berth.Exit{}, err
	}
	keys, word := noKeys, refusedWord
	if host.podman {
		keys = "" // it keeps those of an exec in a form that it cannot read again
		if word, err = c.life.e.podmanExecWord(ctx); err != nil {
			return berth.Exit{}, err
		}
	}
	cctx, cancel := c.life.e.call(ctx)
	made, err := api.ExecCreate(cctx, c.life.docker(), client.ExecCreateOptions{
		User: spec.User, TTY: spec.TTY, AttachStdin: stdio.In != nil, AttachStdout: true, AttachStderr: true,
		Env: spec.Env, WorkingDir: spec.WorkingDir, Cmd: spec.Command, DetachKeys: keys,
	})
	cancel()
	if err != nil {
		if c.life.known() {
			return berth.Exit{}, c.hasEnded("exec in")
		}
		return berth.Exit{}, wrap(ctx, "exec in "+c.life.String(), err)
	}
	x := &execution{c: c, id: made.ID, spec: spec, stdio: stdio, word: word, podman: host.podman, first: c.pid(ctx)}
	return x.run(ctx)
}

// execsFile is locked, shared, by whoever runs an exec in the container.
const execsFile = "execs"

// holdForExec keeps the container, once it has ended, until the exec's end is known: only it knows that.
func (l *life) holdForExec() (release func()) {
	f, err := os.OpenFile(filepath.Join(l.dir, execsFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return func() {} // the container is gone
	}
	_ = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	return func() { _ = f.Close() }
}

// execsMax is how long an ended container is kept for execs whose ends are asked for.
const execsMax = 2 * time.Second

// awaitExecs waits until no exec holds the container.
func (l *life) awaitExecs(ctx context.Context) {
	f, err := os.OpenFile(filepath.Join(l.dir, execsFile), os.O_RDWR, 0o600)
	if err != nil {
		return // there was none
	}
	defer func() { _ = f.Close() }()
	for end := time.Now().Add(execsMax); time.Now().Before(end) && ctx.Err() == nil; time.Sleep(lockPoll / 5) {
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			return
		}
	}
}

// noKeys are detach keys that nobody types: without any the daemon takes its own, ctrl-p and ctrl-q, which shells know.
const noKeys = "ctrl-_,ctrl-^,ctrl-_,ctrl-^,ctrl-_,ctrl-^,ctrl-_,ctrl-^"

type execution struct {
	c      *Container
	id     string
	spec   berth.ExecSpec
	stdio  berth.Stdio
	word   string      // how that begins which the daemon writes in the place of a command that it could not start
	late   atomic.Bool // the daemon left the streams open, long after the container's end
	podman bool
	first  int // the container's first process; 0 is not known
}

func (x *execution) run(ctx context.Context) (berth.Exit, error) {
	api := x.c.life.e.api()
	cctx, cancel := x.c.life.e.call(ctx) // of the handshake; the connection is not tied to it
	res, err := api.ExecAttach(cctx, x.id, client.ExecAttachOptions{TTY: x.spec.TTY})
	if err != nil {
		if x.podman && x.spec.User != "" {
			err = cmp.Or(x.userFault(cctx), err)
		}
		err = wrap(cctx, "exec in "+x.c.life.String(), err)
		cancel()
		return berth.Exit{}, err
	}
	cancel()
	defer res.Close()
	stop := context.AfterFunc(ctx, res.Close)
	defer stop()
	if x.stdio.In != nil {
		go func() { // ends with its source, or when the connection is closed and it next writes
			_, _ = io.Copy(onlyWriter{res.Conn}, x.stdio.In)
			_ = res.CloseWrite()
		}()
	}
	done := make(chan struct{})
	defer close(done)
	go x.endWithContainer(done, res.Close)
	if x.spec.TTY && x.stdio.Resize != nil {
		go x.resize(ctx, done)
	}
	refused := &refusal{w: writer(x.stdio.Out), word: x.word}
	out, errs := io.Writer(refused), writer(x.stdio.Err)
	if x.podman && !x.spec.TTY { // which writes it where the command's errors go
		refused.w, out, errs = errs, refused.w, refused
	}
	if x.spec.TTY {
		_, err = io.Copy(onlyWriter{refused}, res.Reader)
	} else {
		err = demux(res.Reader, out, errs)
	}
	if ctx.Err() != nil {
		return berth.Exit{}, context.Cause(ctx)
	}
	if err != nil && x.late.Load() {
		err = x.c.life.streamsLate()
	}
	if brokenOff := x.podman && x.stdio.In != nil && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)); brokenOff {
		if err = x.awaitAlone(ctx); err == nil {
			exit, err := x.exit(ctx, refused)
			exit.Detail = strings.TrimPrefix(exit.Detail+"; Podman broke the connection off, as the command did not take all of its standard input: some of its output may be missing", "; ")
			return exit, err
		}
	}
	if err != nil {
		return berth.Exit{}, fmt.Errorf("exec in %s: %w", x.c.life, err)
	}
	return x.exit(ctx, refused)
}

// awaitAlone waits for the end of a command that nobody is connected to.
func (x *execution) awaitAlone(ctx context.Context) error {
	for pause := 10 * time.Millisecond; ; pause = min(2*pause, reconnect) {
		cctx, cancel := x.c.life.e.call(ctx)
		i, err := x.c.life.e.api().ExecInspect(cctx, x.id, client.ExecInspectOptions{})
		cancel()
		if err != nil || !i.Running {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// userFault is what Podman says of a user that the container does not have, which the client drops where it attaches itself. It is asked with
// a command that cannot run.
func (x *execution) userFault(ctx context.Context) error {
	api := x.c.life.e.api()
	made, err := api.ExecCreate(ctx, x.c.life.docker(), client.ExecCreateOptions{User: x.spec.User, Cmd: []string{directory}})
	if err == nil {
		_, err = api.ExecStart(ctx, made.ID, client.ExecStartOptions{Detach: true})
	}
	if err != nil && noUser.MatchString(err.Error()) {
		return err
	}
	return nil
}

// endWithContainer ends the streams of an exec that a daemon leaves open after the container's end.
func (x *execution) endWithContainer(done <-chan struct{}, end func()) {
	select {
	case <-done:
		return
	case <-x.c.life.ended:
	}
	select {
	case <-done:
	case <-time.After(x.c.life.e.cfg.StreamsMax):
		x.late.Store(true)
		end()
	}
}

func writer(w io.Writer) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// exit asks how the command ended.
func (x *execution) exit(ctx context.Context, refused *refusal) (berth.Exit, error) {
	ctx, cancel := x.c.life.e.call(ctx)
	defer cancel()
	i, err := x.c.life.e.api().ExecInspect(ctx, x.id, client.ExecInspectOptions{})
	if is(err, berth.ErrNotFound) {
		return berth.Exit{Reason: berth.Lost, Code: -1, Detail: "the container has ended, and the daemon has forgotten the exec"}, nil
	}
	if err != nil {
		return berth.Exit{}, wrap(ctx, "exec in "+x.c.life.String(), err)
	}
	if i.Running {
		return berth.Exit{Reason: berth.Lost, Code: -1, Detail: "the daemon closed the stream while the command ran"}, nil
	}
	if msg := firstLine(refused.held.String()); msg != "" {
		code := startCode(msg)
		if who := noUser.FindString(msg); who != "" && (i.ExitCode == cannotRun || x.podman && i.ExitCode == podmanFailed) {
			return berth.Exit{}, fmt.Errorf("exec in %s: %w: %s", x.c.life, berth.ErrInvalid, who)
		}
		if i.ExitCode == cannotRun || i.ExitCode == notThere || x.podman && i.ExitCode == podmanFailed && code != 0 {
			return berth.Exit{Reason: berth.NeverStarted, Code: cmp.Or(code, i.ExitCode), Detail: startWords(x.spec.Command, msg)}, nil
		}
	}
	if err := refused.release(); err != nil {
		return berth.Exit{}, err
	}
	if i.ExitCode == 128+int(unix.SIGKILL) {
		x.awaitEnd(ctx)
	}
	return berth.Exit{Reason: berth.Exited, Code: i.ExitCode}, nil
}

const (
	// dying is how long the first process of a container may take to end after the others that it kills.
	dying = 300 * time.Millisecond
	// tellMax is how long a daemon may take to tell of an end.
	tellMax = 30 * time.Second
)

// awaitEnd waits until the daemon has told of the end of the container with which the command was killed: one that is busy
// does seconds later, and who is told of the command asks next how the container ended.
func (x *execution) awaitEnd(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, tellMax)
	defer cancel()
	if x.first > 0 && !endsWithin(x.first, dying) || x.first == 0 && x.othersRun(ctx) {
		return
	}
	_, _ = x.c.life.wait(ctx) // what is wrong is said to who asks next
}

// directory is a command that no container can run.
const directory = "/"

// othersRun reports whether the container takes further commands, for a daemon on another machine: its runtime alone knows of
// an end before the daemon does. It looks for what it is to run only once it is in the container.
func (x *execution) othersRun(ctx context.Context) bool {
	if x.spec.Command[0] == directory {
		return true // it is what asks
	}
	exit, err := x.c.Exec(ctx, berth.ExecSpec{Command: []string{directory}}, berth.Stdio{})
	return err == nil && exit.Reason == berth.NeverStarted && strings.HasPrefix(exit.Detail, "exec "+directory+": ")
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}

// resize passes on the sizes of the terminal.
func (x *execution) resize(ctx context.Context, done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case s, ok := <-x.stdio.Resize:
			if !ok {
				return
			}
			cctx, cancel := x.c.life.e.call(ctx)
			_, _ = x.c.life.e.api().ExecResize(cctx, x.id, client.ExecResizeOptions{Height: uint(s.Rows), Width: uint(s.Cols)})
			cancel()
		}
	}
}

// refusal holds back what the daemon writes, in the command's place, where it could not start the command. All
// else goes through.
type refusal struct {
	w       io.Writer
	word    string // with which that begins, but for noUser
	held    bytes.Buffer
	through bool
}

// podmanFailed is Podman's exit code of an exec where it has none of its own for what its runtime says.
const podmanFailed = 125

const refusedWord = "OCI runtime exec failed: "

// mayBeNoUser reports whether what is written begins as noUser, or is that. A whole line of a command that has other words is not kept
// waiting for its end.
func mayBeNoUser(p []byte) bool {
	return (mayBegin(p, "unable to find user ") || mayBegin(p, "unable to find group ")) && (!bytes.Contains(p, []byte("\n")) || noUser.MatchString(firstLine(string(p))))
}

// noUser finds what is said of a user or group that the container does not have.
var noUser = regexp.MustCompile(`unable to find (user|group) .*: no matching entries in (passwd|group) file$`)

func (r *refusal) Write(p []byte) (int, error) {
	if r.through {
		return r.w.Write(p)
	}
	r.held.Write(p)
	if held := r.held.Bytes(); (mayBegin(held, r.word) || mayBeNoUser(held)) && len(held) < 16<<10 {
		return len(p), nil
	}
	return len(p), r.release()
}

// release writes what was held.
func (r *refusal) release() error {
	if r.through {
		return nil
	}
	r.through = true
	_, err := r.held.WriteTo(r.w)
	return errors.Join(err)
}
