package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/berth-project/berth"
	"github.com/moby/moby/client"
)

const (
	// slack is by how much the daemon's time of a message and that of its arrival here may differ. It is less than the
	// time in which a container can fill the daemon's log.
	slack = 500 * time.Millisecond
	// tailMax is how much of what was taken last is remembered, in bytes, to be found again in the daemon's log.
	tailMax = 4 << 10
	// overlapMin is the least that tells where ours ends in a log that begins after our tail does.
	overlapMin = 16
	// A loaded daemon may log what it has sent here long since: up to a MB of each stream waits within it, and the time
	// of a message is that of its logging. So ours is looked for in lateBytes bytes and lateFor of what seems to be
	// younger, if nothing like its last distinctMax bytes is in its last lateBytes.
	lateBytes   = 5 << 18
	lateFor     = 20 * time.Second
	distinctMax = 256
)

// backlog is the daemon's log of a container, of which some is in ours already. The log is bounded: where its beginning
// is gone, what is ours is found in it by time and content; where that is not there, what follows has a gap before it.
type backlog struct {
	io.Reader
	out    *resumer
	err    *resumer // nil with a terminal
	stamps bool     // messages have their times; without them the log is taken to be whole
	begun  bool
	now    time.Time                     // when the log was asked for
	ahead  time.Duration                 // by how much the daemon's clock is ahead
	none   bool                          // nothing is ours
	old    int64                         // bytes in the log of messages from before it was asked for, about
	short  bool                          // it may end with its container, though the daemon has more of it
	turn   *rotation                     // nil where the daemon follows its log whatever becomes of its files
	asked  string                        // since when, of such a daemon: it may answer as if what it rotated away last were not there
	follow bool                          // of such a daemon
	most   int64                         // from here on some may be gone
	re     *relook                       // of Podman, whose log is not followed
	looks  [2]*look                      // of it, at standard output and error
	late   func() (io.ReadCloser, error) // reads what was logged after ours, with a terminal; nil where nothing is ours
}

// openLog reads the daemon's log of the container from where ours ends.
func (o *output) openLog(ctx context.Context, follow bool) error {
	if o.ephemeral {
		return o.attachAgain(ctx, follow)
	}
	host, err := o.l.e.daemon(ctx)
	if err != nil {
		return err
	}
	b := &backlog{
		short: host.mend, stamps: !o.tty && !host.podman, now: time.Now(), ahead: host.ahead, most: o.l.e.cfg.LogKeep / logFiles * (logFiles - 1),
		out: newResumer(o.out, host.mend),
	}
	if o.err != nil {
		b.err = newResumer(o.err, host.mend)
	}
	if host.podman {
		b.short = follow
		b.lookAt(o, follow)
		follow = false
	}
	ask := func(since, until string, follow bool) (io.ReadCloser, error) {
		res, err := o.l.e.stream(ctx, "logs of "+o.l.String(), 0, func(ctx context.Context) (io.ReadCloser, error) {
			return o.l.e.api().ContainerLogs(ctx, o.l.docker(), client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: follow, Timestamps: b.stamps, Since: since, Until: until})
		})
		if err != nil {
			return nil, err
		}
		return res, nil
	}
	since, until := o.log.since(), ""
	if b.stamps && host.mend {
		if o.turn == nil {
			o.turn = &rotation{file: o.l.e.cfg.LogKeep / logFiles}
		}
		if b.turn = o.turn; b.turn.near() {
			follow, since = false, o.log.sincePoll(since)
			b.turn.begin()
		}
		b.asked, b.follow = since, follow
	}
	if o.tty && !host.podman && o.out.n > 0 { // its messages have no times, so what is late is asked for by itself
		late := o.out.last.Add(endsFor - host.unsure)
		if late.After(b.now) {
			late = b.now
		}
		until = stamp(late.Add(b.ahead))
		b.late = func() (io.ReadCloser, error) { return ask(stamp(late.Add(b.ahead+1)), "", follow) }
	}
	conn, err := ask(since, until, follow && b.late == nil)
	if err != nil {
		return err
	}
	b.Reader = conn
	is := sight{anew: b.now, born: o.l.e.born()}
	if b.re == nil {
		b.goOnFrom(o.log)
	}
	if b.turn.near() {
		b.together(since)
	}
	for _, r := range []*resumer{b.out, b.err} {
		if r != nil {
			r.is, r.unsure = is, host.unsure
			r.broke = o.l.broke.since(r.s.last.Add(-stopsIn))
			r.gone = o.l.refused.since(r.s.last.Add(-stopsIn))
		}
	}
	o.log = b
	if late := b.late; late != nil {
		b.late = func() (io.ReadCloser, error) { return o.goOn(conn, late) }
	}
	o.set(conn, b)
	return nil
}

// goOn goes on reading from another connection, unless nothing is to be read any more.
func (o *output) goOn(from io.ReadCloser, open func() (io.ReadCloser, error)) (io.ReadCloser, error) {
	conn, err := open()
	if err != nil {
		return nil, err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn != from {
		return nil, errors.Join(net.ErrClosed, conn.Close())
	}
	_ = from.Close()
	o.conn = conn
	return conn, nil
}

// sinceMost is by how much the times of messages may be out of order, at the most.
const sinceMost = time.Minute

// since is what the log is asked for when it is read on; "" is from its beginning.
func (b *backlog) since() string {
	if b == nil || b.err == nil || !b.begun {
		return ""
	}
	at := b.out.mark
	if e := b.err.mark; at.IsZero() || !e.IsZero() && e.Before(at) {
		at = e
	}
	return stamp(at.Add(-sinceMost))
}

// goOnFrom has the log be read on from where it was read to before, if anything was: that is known by its messages, and need
// not be looked for.
func (b *backlog) goOnFrom(before *backlog) {
	if before == nil || !before.begun || b.err == nil {
		return
	}
	b.begun, b.none, b.now, b.old = true, before.none, before.now, before.old
	b.out, b.err = before.out, before.err
	for _, r := range []*resumer{b.out, b.err} {
		r.again = r.nth
		r.passing = r.nth > 0
	}
}

// attachAgain goes on with a container whose log the daemon does not keep. What it wrote meanwhile is gone.
func (o *output) attachAgain(ctx context.Context, follow bool) error {
	if !follow {
		return errors.New("it is ephemeral: the daemon keeps no log to catch up from")
	}
	// Podman makes a container that has ended ready to start anew for who attaches to it, and forgets how it ended.
	podman := o.l.e.isPodman.Load()
	if podman {
		if c, err := o.l.inspect(ctx, o.l.docker()); err != nil {
			return err
		} else if !c.State.Running && !c.State.Paused {
			return errNotRunning
		}
	}
	if err := o.l.attach(ctx, o, false); err != nil {
		return err
	}
	if podman {
		if c, err := o.l.inspect(ctx, o.l.docker()); err == nil && !c.State.Running && !c.State.Paused && !isOver(c.State) {
			if c.State.Status != stateStopped { // else it has ended since
				select {
				case o.l.renewed <- struct{}{}:
				default:
				}
			}
			return errNotRunning
		}
	}
	o.mu.Lock()
	o.attached++
	o.mu.Unlock()
	for _, s := range o.sinks() {
		if !s.broken {
			s.broken, s.brokenAt = true, time.Now()
		}
	}
	return nil
}

// lookAt has the log of Podman be read from its beginning. live: the container runs.
func (b *backlog) lookAt(o *output, live bool) {
	if o.re == nil {
		o.re = &relook{before: map[*sink]int64{}, find: map[*sink]bool{}}
	}
	b.re = o.re
	b.re.began, b.re.came = time.Now(), false
	b.looks[0] = b.re.look(b.out, live)
	if b.err != nil {
		b.looks[1] = b.re.look(b.err, live)
	}
}

// read reads the log to its end.
func (b *backlog) read() error {
	if b.re != nil {
		return b.readPodman()
	}
	if b.err == nil {
		return b.readRaw()
	}
	out, errs := &message{b: b, to: b.out}, &message{b: b, to: b.err}
	return demuxFrames(b.Reader, out, errs, func(w io.Writer) error { return w.(*message).end() })
}

// readPodman is read for a log that is read from its beginning.
func (b *backlog) readPodman() error {
	var err error
	if b.err == nil {
		err = copyAll(b.looks[0], b.Reader)
	} else {
		err = demux(b.Reader, b.looks[0], b.looks[1])
	}
	for _, c := range b.looks {
		if c != nil && err == nil {
			err = c.finish()
		}
	}
	return err
}

// readRaw reads the log of a container with a terminal.
func (b *backlog) readRaw() error {
	last, w := b.out.s.last, writerFunc(b.out.write)
	b.out.at = last
	if err := copyAll(w, b.Reader); err != nil || b.late == nil {
		return err
	}
	conn, err := b.late()
	if err != nil {
		return err
	}
	b.Reader, b.out.at = conn, last.Add(endsFor+beginsIn+b.out.unsure)
	if b.out.is.born.After(b.out.at) { // what is from before that comes with it: it cannot be told apart
		b.out.at = b.out.is.born
	}
	return copyAll(w, conn)
}

// settle ends what was read of an ended container's log.
func (b *backlog) settle() error {
	if b.err == nil {
		return b.out.endDoubt()
	}
	if b.out.waits {
		return errors.Join(b.err.settle(), b.out.settle())
	}
	return errors.Join(b.out.settle(), b.err.settle())
}

// message gathers a frame, which is one message of the log.
type message struct {
	b    *backlog
	to   *resumer
	text bytes.Buffer
}

func (m *message) Write(p []byte) (int, error) { return m.text.Write(p) }

func (m *message) end() error {
	defer m.text.Reset()
	if !m.b.stamps {
		return m.to.take(m.text.Bytes(), time.Time{})
	}
	stamp, text, ok := bytes.Cut(m.text.Bytes(), []byte{' '})
	at, err := time.Parse(time.RFC3339Nano, string(stamp))
	if !ok || err != nil {
		return fmt.Errorf("message of the daemon's log without its time: %.40q", m.text.Bytes())
	}
	if m.b.asked != "" && m.to.passing && at.After(m.to.mark) {
		m.b.turn.whole = true
		return errRotated
	}
	if m.to.pass(at) { // by the daemon's clock
		return nil
	}
	at = at.Add(-m.b.ahead)
	m.b.begin(at, len(text))
	if err := m.to.take(text, at); err != nil {
		return err
	}
	if m.b.turn.add(len(text)+messageCost, at, m.b.follow) {
		return errNear
	}
	return nil
}

// messageCost is about what the driver local adds to a message, in bytes.
const messageCost = 36

// begin decides, by the first message, whether the log has its beginning still.
func (b *backlog) begin(at time.Time, size int) {
	if !b.begun {
		b.begun = true
		b.none = b.out.s.n+b.err.s.n == 0
		first, last := b.out.s.first, b.out.s.last
		if e := b.err.s.first; first.IsZero() || !e.IsZero() && e.Before(first) {
			first = e
		}
		if e := b.err.s.last; e.After(last) {
			last = e
		}
		if !b.none && at.After(first.Add(slack)) {
			b.out.seek(at, last)
			b.err.seek(at, last)
			b.out.other, b.err.other = b.err, b.out
		}
	}
	// Where nothing is ours, nothing can be found in it: only its size says that some may be gone.
	if b.none && !at.After(b.now) {
		if b.old += int64(size) + messageCost; b.old > b.most {
			b.none = false
			b.out.s.gap(0)
			b.err.s.gap(0)
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// gapsIn tells of what may be missing.
func (o *output) gapsIn() error {
	all := o.places(func(s *sink) []int64 { return s.gaps })
	if all == "" {
		return nil
	}
	why := "which had it no more: it keeps " + berth.SizeInWords(o.l.e.cfg.LogKeep)
	if o.ephemeral {
		why = "which keeps none of an ephemeral task"
	}
	return fmt.Errorf("some may be missing of %s, while berth did not read and of the daemon, %s", all, why)
}
