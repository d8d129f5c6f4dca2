package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/logfile"
	"github.com/moby/moby/client"
)

const defaultLogLimit = 64 << 20 // bytes

// output moves what a container writes into its logs.
type output struct {
	l         *life
	tty       bool
	ephemeral bool // the daemon keeps no log
	attached  int  // how often it was connected to again
	left      bool // it was ended here, after the container's end
	out       *sink
	err       *sink // nil with a terminal
	// refused: the command could not be executed, and the daemon's init said so in its place.
	refused bool
	mu      sync.Mutex
	conn    io.ReadCloser // what is read now; nil between
	r       io.Reader
	frames  *frames      // of what is read now, where that is multiplexed
	giving  chan *handed // what is read now is to be given away; nil else
	reading bool         // what may be given away
	closing sync.Once    // of the logs
	closed  error
	log     *backlog   // what was read of the daemon's log last; of who reads
	in      io.Closer  // the connection of the input, where that is another; nil else
	re      *relook    // of Podman
	turn    *rotation  // of that log's files; nil where it is not followed, or need not be known
	disk    *logDisk   // of the daemon's log, once that is followed; nil where it is another machine's
	turns   int        // of the disk, before
	said    daemonWord // of its log, which it could not read on
}

// sinks are the logs of its streams.
func (o *output) sinks() []*sink {
	if o.err == nil {
		return []*sink{o.out}
	}
	return []*sink{o.out, o.err}
}

// places tells of offsets in the logs; "" where there are none.
func (o *output) places(of func(*sink) []int64) string {
	var all []string
	for _, s := range o.sinks() {
		for _, at := range of(s) {
			all = append(all, fmt.Sprintf("%s after byte %d", filepath.Base(s.w.Path()), at))
		}
	}
	return strings.Join(all, " and of ")
}

// openOutput opens the logs of a step. copies are the files in volumes that get the streams too.
func (l *life) openOutput(r *record, copies map[string]*os.File) (*output, error) {
	o := &output{l: l, tty: r.Spec.TTY, ephemeral: r.Spec.Ephemeral}
	var err error
	if o.out, err = l.openSink(r, "stdout", copies["stdout"]); err != nil {
		return nil, fmt.Errorf("logs of %s: %w: %w", l, kindOf(err), err)
	}
	if !o.tty {
		if o.err, err = l.openSink(r, "stderr", copies["stderr"]); err != nil {
			return nil, errors.Join(fmt.Errorf("logs of %s: %w: %w", l, kindOf(err), err), o.out.close(false))
		}
	}
	return o, nil
}

// resumeOutput goes on with the logs of a step that another process has drained so far. unfilled is what a file in a volume
// could not be given of what came before.
func (l *life) resumeOutput(ctx context.Context, r *record) (o *output, unfilled, err error) {
	l.mu.Lock()
	sb := l.sb
	l.mu.Unlock()
	copies := map[string]*os.File{}
	for stream, p := range streamFiles(&r.Spec) {
		f, err := sb.openCopy(ctx, stream, p, &r.Spec, os.O_WRONLY)
		if err == nil {
			copies[stream] = f
			err = evenOut(f, l.logDir(r), stream)
		}
		if err != nil {
			unfilled = errors.Join(unfilled, fmt.Errorf("file %s of %s: %w", p, stream, err))
		}
	}
	o, err = l.openOutput(r, copies)
	return o, unfilled, err
}

// evenOut has the file of a stream end where its log does: a process that was killed may have written more to one of them.
func evenOut(f *os.File, dir, stream string) error {
	ix, err := logfile.ReadIndex(dir, stream)
	if err != nil {
		return err
	}
	log, err := os.Open(filepath.Join(dir, stream))
	if errors.Is(err, fs.ErrNotExist) {
		return f.Truncate(0)
	} else if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	end, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	have, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if have >= end {
		err = f.Truncate(end)
	} else {
		from := max(have, ix.Dropped)
		if _, err = io.Copy(io.NewOffsetWriter(f, from), io.NewSectionReader(log, from, end-from)); err == nil && from > have {
			err = fmt.Errorf("bytes %d to %d are gone from the log, too", have, from)
		}
	}
	_, serr := f.Seek(end, io.SeekStart)
	return errors.Join(err, serr)
}

// set makes conn what is read from. What was read from before is closed.
func (o *output) set(conn io.ReadCloser, r io.Reader) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn != nil {
		_ = o.conn.Close()
	}
	o.conn, o.r = conn, r
}

// ease has who holds a log keep nobody from taking in the rest of an ended container's output.
func (o *output) ease() {
	for _, s := range o.sinks() {
		_ = s.w.Ease()
	}
}

// hangUp ends the reading.
func (o *output) hangUp() { o.set(nil, nil) }

func (o *output) close() error {
	if o.disk != nil {
		o.disk.leave()
		o.disk = nil
	}
	o.hangUp()
	if o.in != nil {
		_ = o.in.Close()
	}
	return o.closeLogs()
}

// closeLogs ends the logs, once.
func (o *output) closeLogs() error {
	o.closing.Do(func() { o.closed = errors.Join(o.out.close(o.refused), o.err.close(o.refused)) })
	return o.closed
}

// unfilled tells of files that lack something of the streams.
func (o *output) unfilled(r *record) error {
	var all []error
	files := streamFiles(&r.Spec)
	for _, s := range o.sinks() {
		stream := filepath.Base(s.w.Path())
		if err := s.w.CopyErr(); err != nil {
			all = append(all, fmt.Errorf("file %s of %s: %w", files[stream], stream, err))
		}
	}
	return errors.Join(all...)
}

// initSays is what may be the word of the daemon's init.
func (o *output) initSays() []byte {
	if o.err == nil {
		return o.out.init.held
	}
	return o.err.init.held
}

// endMax is how long after the end of its streams a container's own end is waited for before its log is looked
// at: they end as well when the daemon does, or when the command closes them.
const endMax = 5 * time.Second

// errNotRunning: a container is not connected to again, as it runs no more.
var errNotRunning = errors.New("the container does not run")

// errUnattached: what an ephemeral container writes meanwhile goes nowhere, unless it stays in its pipes.
var errUnattached = errors.New("what it wrote last may be missing, as it could not be connected to again before it ended")

// again is how soon a stream that has ended is connected to anew where nothing keeps what comes meanwhile.
const again = 50 * time.Millisecond

// drain reads until the stream's end after the container's. Where the stream ends earlier, as it does with the
// daemon, it goes on from the daemon's log.
func (o *output) drain(ctx context.Context, over <-chan struct{}) error {
	stop := context.AfterFunc(ctx, o.hangUp)
	defer stop()
	if o.ephemeral {
		done := make(chan struct{})
		defer close(done)
		go o.endWithContainer(over, done)
	}
	var err error
	var cut time.Time
	for {
		o.mu.Lock()
		r := o.r
		o.mu.Unlock()
		pause := reconnect
		if r != nil {
			o.mayGive(r)
			err = o.copy(r)
			if o.given(err) {
				return errGiven
			}
			cut = time.Now()
			b, _ := r.(*backlog)
			polls := b.polls(err)
			if polls {
				err = nil
				b.turn.end()
			} else {
				o.noteCut(cut)
			}
			o.mu.Lock()
			if o.left && errors.Is(err, net.ErrClosed) {
				err = nil
			}
			o.mu.Unlock()
			if err == nil || unread(err) { // which it says again
				pause = endMax
			}
			switch {
			case polls && b.re != nil:
				pause = b.re.next()
			case polls && b.follow:
				pause = 0
			case polls:
				pause = b.turn.pause()
			}
			if o.ephemeral {
				pause = again
			}
		} else {
			o.watchDisk(ctx)
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-over:
			if time.Since(cut) > notTheEnd {
				o.noteTears()
			}
			return errors.Join(err, ended(r, err))
		case <-time.After(pause):
		}
		select {
		case <-over:
			return errors.Join(err, ended(r, err))
		default:
		}
		if o.turn.near() && o.l.broke.since(o.turn.began) {
			o.cutBetween()
		} else if r != nil && pause > 0 && o.turn.near() && o.same(ctx) {
			continue
		}
		o.noteTears()
		o.watchDisk(ctx)
		lerr := o.openLog(ctx, true)
		if errors.Is(lerr, errNotRunning) { // there is no more to come, and its end is about to be told
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-over:
				return errors.Join(err, ended(r, err))
			}
		}
		if lerr != nil {
			o.hangUp()
			err = lerr
			if o.ephemeral {
				err = fmt.Errorf("%w: %w", errUnattached, lerr)
			}
		}
	}
}

// errUnread: the daemon's log was followed to the end of the container. A daemon before 23 ends that then, though there be
// more in it than it has sent.
var errUnread = errors.New("the end of the daemon's log was not read")

// ended ends what was read from of an ended container. The error says that this may not be all of its output.
func ended(r io.Reader, err error) error {
	b, ok := r.(*backlog)
	switch {
	case r == nil && err == nil:
		return io.ErrUnexpectedEOF
	case ok && b.short:
		return errUnread
	}
	return settle(r)
}

// endWithContainer ends a stream that was connected to again: of a container that had just ended it may never end.
func (o *output) endWithContainer(over, done <-chan struct{}) {
	select {
	case <-done:
		return
	case <-over:
	}
	select {
	case <-done:
		return
	case <-time.After(endMax):
	}
	o.mu.Lock()
	again := o.attached > 0
	o.left = again
	o.mu.Unlock()
	if again {
		o.hangUp()
	}
}

// catchUp reads what the daemon's log has beyond ours.
func (o *output) catchUp(ctx context.Context) error {
	o.watchDisk(ctx)
	if err := o.openLog(ctx, false); err != nil {
		return err
	}
	o.mu.Lock()
	r := o.r
	o.mu.Unlock()
	defer o.hangUp()
	if r == nil {
		return io.ErrUnexpectedEOF
	}
	err := o.copy(r)
	for try := 1; errors.Is(err, errAnew) && try < anewTries; try++ {
		if err := o.openLog(ctx, false); err != nil {
			return err
		}
		o.mu.Lock()
		r = o.r
		o.mu.Unlock()
		err = o.copy(r)
	}
	if errors.Is(err, errRotated) {
		if err := o.openLog(ctx, false); err != nil {
			return err
		}
		o.mu.Lock()
		r = o.r
		o.mu.Unlock()
		err = o.copy(r)
	}
	return errors.Join(err, settle(r))
}

// copy reads a stream to its end.
func (o *output) copy(r io.Reader) error {
	b, ok := r.(*backlog)
	switch {
	case ok:
		err := b.read()
		if errors.As(err, &o.said) { // where it is asked again it may end the log there without a word
			for _, s := range o.sinks() {
				s.unread = true
			}
		}
		return err
	case o.tty:
		return copyAll(o.out, r)
	}
	o.frames = &frames{r: r}
	return o.frames.demux(o.out, o.err, func(io.Writer) error { return nil })
}

func copyAll(w io.Writer, r io.Reader) error {
	_, err := io.CopyBuffer(onlyWriter{w}, r, make([]byte, 32<<10))
	return err
}

// settle ends what was read of an ended container's log.
func settle(r io.Reader) error {
	if b, ok := r.(*backlog); ok {
		return b.settle()
	}
	return nil
}

// attach connects to the container's streams. Before it is started, so that no byte is lost.
func (l *life) attach(ctx context.Context, o *output, in bool) error {
	ctx, cancel := l.e.call(ctx) // of the handshake; the connection is not tied to it
	defer cancel()
	connect := func(opts client.ContainerAttachOptions) (client.ContainerAttachResult, error) {
		opts.Stream, opts.DetachKeys = true, noKeys
		res, err := l.e.api().ContainerAttach(ctx, l.docker(), opts)
		if err != nil {
			err = wrap(ctx, "attach to "+l.String(), err)
		}
		return res, err
	}
	// Podman ends a connection when the command does not take what comes by it, and says so in the command's place.
	apart := in && l.e.isPodman.Load()
	res, err := connect(client.ContainerAttachOptions{Stdin: in && !apart, Stdout: true, Stderr: true})
	if err != nil {
		return err
	}
	o.set(res.Conn, res.Reader)
	if !in {
		return nil
	}
	if apart {
		if res, err = connect(client.ContainerAttachOptions{Stdin: true}); err != nil {
			return err
		}
		o.in = res.Conn
		from := res.Reader
		l.e.wg.Go(func() { _, _ = io.Copy(io.Discard, from) }) // it sends what comes of the command all the same; ends with the connection
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stdin = &stdin{conn: res.Conn}
	return nil
}

// stdin is the write half of an attached stream.
type stdin struct {
	conn   net.Conn
	taken  bool
	once   sync.Once
	failed atomic.Bool // to take something: the command does not want it, or the daemon is away
	ended  atomic.Bool
}

// cut reports whether the input of an ended command was cut off, as the daemon was away. ends: for the command that is its end.
func (s *stdin) cut(ends bool) bool { return s.failed.Load() || ends && !s.ended.Load() }

func (s *stdin) Write(p []byte) (int, error) {
	n, err := s.conn.Write(p)
	if err != nil {
		s.failed.Store(true)
	}
	return n, err
}

// Close is end of file for the container; what it writes is read on.
func (s *stdin) Close() error {
	var err error
	s.once.Do(func() {
		s.ended.Store(true)
		if c, ok := s.conn.(client.CloseWriter); ok {
			err = c.CloseWrite()
		}
	})
	return err
}

// feed fills the container's input from a file.
func (l *life) feed(f io.ReadCloser) {
	over := make(chan struct{})
	l.mu.Lock()
	in := l.stdin
	in.taken = true
	l.feeding = over
	l.mu.Unlock()
	l.e.wg.Go(func() {
		defer close(over)
		defer func() { _ = f.Close() }()
		from := &fedReader{r: f}
		_, err := io.Copy(onlyWriter{in}, from) // a command that does not read to the end closes it
		if err == nil {                         // before the end of file, which comes by our death, too
			err = os.WriteFile(filepath.Join(l.dir, fedFile), nil, 0o600)
		}
		if err != nil {
			l.e.cfg.Logger.Debug("standard input not handed over to its end", "container", l.String(), "error", err)
		}
		l.mu.Lock()
		l.starved, l.unfed = from.err, err != nil
		l.mu.Unlock()
		_ = in.Close()
	})
}

// fedFile says that all of a step's standard input was handed over.
const fedFile = "fed"

// fedReader remembers why it could not be read to its end.
type fedReader struct {
	r   io.Reader
	err error
}

func (f *fedReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

// cutOff says why an ended command may have had less of its standard input than there is, though it wanted more; "" where
// it had all, or would have no more.
func (l *life) cutOff(r *record, away bool) string {
	if exists(filepath.Join(l.dir, fedFile)) {
		return ""
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case r.Spec.Stdin == "" && away && l.stdin != nil && l.stdin.cut(l.e.isPodman.Load() && !r.Spec.TTY):
		return "the daemon was away meanwhile"
	case r.Spec.Stdin == "":
	case l.starved != nil:
		return l.starved.Error()
	case l.feeding == nil:
		return "the berth that handed it over was killed"
	case away && l.unfed:
		return "the daemon was away meanwhile"
	}
	return ""
}

// volumeFile finds the volume in which a container path lies.
func (s *Sandbox) volumeFile(ctx context.Context, p string) (*os.Root, string, error) {
	clean := path.Clean("/" + p)
	best := ""
	for _, v := range s.spec.Volumes {
		if strings.HasPrefix(clean, v.Path+"/") && len(v.Path) > len(best) {
			best = v.Path
		}
	}
	if best == "" {
		return nil, "", fmt.Errorf("%s: %w: it lies in no volume of the sandbox", p, berth.ErrInvalid)
	}
	root, err := s.Volume(ctx, best)
	return root, strings.TrimPrefix(clean, best+"/"), err
}

// streamFiles are the files that get what a step writes, by its streams.
func streamFiles(step *berth.StepSpec) map[string]string {
	files := map[string]string{}
	if step.Stdout != "" {
		files["stdout"] = step.Stdout
	}
	if step.Stderr != "" {
		files["stderr"] = step.Stderr
	}
	return files
}

// openCopies makes the files in volumes that get the step's streams. They are the user's where it is a number.
func (s *Sandbox) openCopies(ctx context.Context, step *berth.StepSpec) (map[string]*os.File, error) {
	copies := map[string]*os.File{}
	for stream, p := range streamFiles(step) {
		f, err := s.openCopy(ctx, stream, p, step, os.O_WRONLY|os.O_TRUNC)
		if err == nil && s.remote {
			err = s.putCopy(ctx, f.Name(), p, step.User) // empty until the end
		}
		if f != nil {
			copies[stream] = f
		}
		if err != nil {
			closeAll(copies)
			return nil, err
		}
	}
	return copies, nil
}

func closeAll(files map[string]*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// openCopy opens the file that gets a stream too, and makes it where it is not there: of a volume of the daemon's, here.
func (s *Sandbox) openCopy(ctx context.Context, stream, p string, step *berth.StepSpec, flag int) (*os.File, error) {
	if !s.remote {
		return s.createInVolume(ctx, p, step.User, flag)
	}
	f, err := os.OpenFile(s.e.life(s.spec.ID, step.ID).copyFile(stream), flag|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", p, kindOf(err), err)
	}
	return f, nil
}

func (s *Sandbox) createInVolume(ctx context.Context, p, user string, flag int) (*os.File, error) {
	root, name, err := s.volumeFile(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { _ = root.Close() }()
	if err := root.MkdirAll(path.Dir(name), 0o755); err != nil {
		return nil, fmt.Errorf("%s: %w: %w", p, kindOf(err), err)
	}
	f, err := openRegular(root, name, flag|os.O_CREATE)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", p, err)
	}
	u, g, _ := strings.Cut(user, ":")
	uid, err := strconv.Atoi(u)
	if err != nil {
		return f, nil // a name, which only the image knows
	}
	gid, _ := strconv.Atoi(g) // 0, as the daemon has it
	if err := f.Chown(uid, gid); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w: %w", p, kindOf(err), err)
	}
	return f, nil
}
