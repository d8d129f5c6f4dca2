package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"

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
