package docker

import (
	"bytes"
	"errors"
	"time"
)

// resumer goes on with one stream where ours ends in the daemon's log.
type resumer struct {
	s                 *sink
	m                 mender
	left              int64         // bytes to be passed over: ours
	held              []byte        // what by count is among them, but by time may not be
	heldAt, heldAfter time.Time     // of its first message, and the one before that
	broke             bool          // a connection to the daemon broke when the last of ours came
	unsure            time.Duration // how much the daemon's clock may be off
	gone              bool          // the daemon that sent ours may be another than has the log
	parted            bool          // there was a break in the log since the last of ours
	same              bool          // what ours ends with is more of the same: it cannot be told from what comes
	wrote             bool          // it has come to what was not there
	seeking           bool
	buf               []byte    // while seeking
	whole             bool      // while seeking: buf begins where the log does
	at                time.Time // of the message that is taken
	before            time.Time // of the one before it
	is                sight

	other *resumer // of the other stream, where one of both seeks
	late  []byte   // what is younger than ours by its time, while ours may end in it; see lateBytes
	// The message that was taken last is the nth with its time. In a log that is read on, those up to it are passed over.
	mark       time.Time
	nth, again int
	passing    bool
	// In a log that is asked for again and again: the other stream's, whether the message was found that was taken last, and whether that is
	// from so long ago that it was not asked for.
	peer        *resumer
	seen, quiet bool

	waits bool      // nothing is ours, and whether something is gone is known when other has found its end; late is held
	until time.Time // while it waits: the time of a message that ends it
}

func newResumer(s *sink, mend bool) *resumer {
	r := &resumer{s: s, left: max(0, s.n-s.lacks)}
	r.m = mender{w: writerFunc(r.write), off: !mend}
	return r
}

// seek has the resumer look for what is ours in a log that begins with a message of start. last is when anything came
// last: what was written before, of whatever stream, has come.
func (r *resumer) seek(start, last time.Time) {
	lost := start.After(last.Add(slack))
	r.left = 0
	switch {
	case lost && r.s.n == 0 && start.Before(last.Add(lateFor)):
		r.waits, r.until = true, last.Add(lateFor)
	case lost && r.s.n == 0:
		r.s.gap(0)
	case r.s.n == 0, !lost && start.After(r.s.last.Add(slack)):
	default:
		r.seeking, r.whole = true, true
	}
}

// pass reports whether a message was taken when the log was read before, and counts it if not.
func (r *resumer) pass(at time.Time) bool {
	switch {
	case !r.passing:
	case at.Before(r.mark):
		return true
	case at.Equal(r.mark):
		r.seen = true
		r.again--
		r.passing = r.again > 0
		return true
	default: // the log has lost those up to it since, and perhaps more
		r.passing = false
		if p := r.peer; p != nil && p.mark.After(r.mark) && (p.seen || !at.After(p.mark)) { // it was read beyond, up to what is there
			break
		} else if p != nil && (p.passing || p.quiet) && !p.mark.After(r.mark) {
			p.passing, p.quiet = false, false
			p.s.gap(p.s.n)
		}
		r.s.gap(r.s.n)
	}
	if r.nth++; !at.Equal(r.mark) {
		r.mark, r.nth = at, 1
	}
	return false
}

// take takes one message of the stream.
func (r *resumer) take(p []byte, at time.Time) error {
	r.before, r.at = r.at, at
	_, err := r.m.Write(p)
	return err
}

func (r *resumer) settle() error {
	var err error
	switch {
	case r.seeking && len(r.late) > 0:
		err = r.lost()
	case r.seeking && r.decide(true):
		err = r.through()
	case r.waits: // nothing came of the other
		err = r.release(false)
	default:
		err = r.endDoubt()
	}
	if err != nil {
		return err
	}
	if r.wrote { // else all was there before, with its newline or without
		return r.m.flush()
	}
	return nil
}

func (r *resumer) write(p []byte) (int, error) {
	switch {
	case r.waits:
		if len(r.late)+len(p) <= lateBytes && !r.at.After(r.until) {
			r.late = append(r.late, p...)
			return len(p), nil
		}
		if err := r.release(false); err != nil {
			return 0, err
		}
	case r.seeking:
		return r.find(p)
	case r.inDoubt():
		return len(p), r.doubt(p)
	case len(r.held) > 0: // an older message follows what is in doubt: the clock was set
		if err := r.endDoubt(); err != nil {
			return 0, err
		}
	}
	skip := min(r.left, int64(len(p)))
	r.left -= skip
	if int(skip) < len(p) {
		r.wrote = true
		r.s.sew(r.at, r.before, r.is)
		if _, err := r.s.Write(p[skip:]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// find looks for our end in what was read before and in p.
func (r *resumer) find(p []byte) (int, error) {
	if r.at.After(r.s.last.Add(slack)) {
		if len(r.late) == 0 {
			if r.decide(true) {
				if err := r.through(); err != nil {
					return 0, err
				}
				return r.write(p)
			}
			r.whole = false
		}
		if r.at.After(r.s.last.Add(lateFor)) || len(r.late)+len(p) > lateBytes || len(r.late) == 0 && !r.s.distinct() {
			if err := r.lost(); err != nil {
				return 0, err
			}
			return r.write(p)
		}
		r.late = append(r.late, p...)
	}
	r.buf = append(r.buf, p...)
	if !r.decide(false) {
		return len(p), nil
	}
	return len(p), r.through()
}

// lost ends the seeking: all that is ours is gone from the log.
func (r *resumer) lost() error {
	rest := r.late
	r.s.gap(r.s.n)
	r.seeking, r.buf, r.late = false, nil, nil
	_, err := r.write(rest)
	return errors.Join(err, r.other.release(false))
}

// release ends the waiting.
func (r *resumer) release(found bool) error {
	if r == nil || !r.waits {
		return nil
	}
	rest := r.late
	if r.waits, r.late = false, nil; !found {
		r.s.gap(0)
	}
	_, err := r.write(rest)
	return err
}

// decide looks for our end in what was read. last: nothing more will be added to it. It leaves in buf what comes after.
func (r *resumer) decide(last bool) bool {
	tail := r.s.tail
	if i := bytes.Index(r.buf, tail); i >= 0 {
		r.buf = r.buf[i+len(tail):]
		return true
	}
	if r.whole && (last || len(r.buf) >= len(tail)) {
		for n := min(len(tail), len(r.buf)); n >= overlapMin; n-- {
			if bytes.HasSuffix(tail, r.buf[:n]) {
				r.buf = r.buf[n:]
				return true
			}
		}
	}
	if keep := len(tail) - 1; len(r.buf) > keep && len(r.buf) >= len(tail) {
		r.buf, r.whole = append([]byte(nil), r.buf[len(r.buf)-keep:]...), false
	}
	return false
}

// through ends the seeking with what comes after ours.
func (r *resumer) through() error {
	rest := r.buf
	r.seeking, r.buf, r.late = false, nil, nil
	_, err := r.write(rest)
	return errors.Join(err, r.other.release(true))
}
