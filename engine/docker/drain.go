package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

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
		if _, ok := r.(*backlog); r != nil && !ok && err == nil && o.l.e.isPodman.Load() { // Docker answers who waits
			select {
			case o.l.silent <- struct{}{}:
			default:
			}
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
	onceMore := func() error {
		if oerr := o.openLog(ctx, false); oerr != nil {
			return oerr
		}
		o.mu.Lock()
		r = o.r
		o.mu.Unlock()
		err = o.copy(r)
		return nil
	}
	for try := 1; errors.Is(err, errAnew) && try < anewTries; try++ {
		if oerr := onceMore(); oerr != nil {
			return oerr
		}
	}
	if errors.Is(err, errRotated) {
		if oerr := onceMore(); oerr != nil {
			return oerr
		}
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
