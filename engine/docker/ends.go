package docker

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"
)

// A container may outlive its daemon (live-restore). What it writes goes two ways in a daemon: to who is attached, and to the
// daemon's log, which is up to a MB behind of what comes fast. A daemon that ends logs no more of that. So ours goes further than the
// log of that daemon, and the next one's goes on where the first has stopped to read, which is mostly where ours ends. What the log
// lacks of ours is told from what it has later by the time of its messages and by what they say.
//
// What a daemon has read from the container and given to neither when it ends is lost, and nobody can say how much that was. Where it
// may be so, the log has a mark.

const (
	// endsFor is how long after the last bytes of a stream come from a daemon that ends its own last message may be logged.
	endsFor = 100 * time.Millisecond
	// beginsIn is less than a daemon takes to log something after another has ended.
	beginsIn = 150 * time.Millisecond
	// halts is for how long a daemon on a busy machine may log nothing of what comes fast, where it is known when the next one began.
	halts = time.Second
	// justNow is how long ago the last bytes of a stream came that was cut off in the middle of them.
	justNow = 100 * time.Millisecond
	// A stream of as much as flood bytes in floodFor or two of them may have been cut off in the middle of more even if none came for
	// so long: the kernel takes its time to end a process, and it has ended to read long before its connections are closed.
	flood    = 4 << 10
	floodFor = time.Second
	// stopsIn is how long a daemon that is being stopped may have a connection when others cannot be made, between two tries to.
	stopsIn = 2 * time.Second
	// notTheEnd is how long before a container's end is known its streams have ended where that was not why.
	notTheEnd = time.Second
)

// lastTime is when something last happened.
type lastTime struct{ at atomic.Int64 }

func (t *lastTime) set() { t.at.Store(time.Now().UnixNano()) }

// since reports whether it happened after a time.
func (t *lastTime) since(at time.Time) bool { return t.at.Load() > at.UnixNano() }

// rate is how much came of late.
type rate struct {
	began        time.Time
	before, came int
}

func (r *rate) add(now time.Time, n int) {
	if since := now.Sub(r.began); since > floodFor {
		r.before = r.came
		if since > 2*floodFor {
			r.before = 0
		}
		r.began, r.came = now, 0
	}
	r.came += n
}

// flows reports whether bytes come just now.
func (s *sink) flows(now time.Time) bool {
	if s.last.IsZero() {
		return false
	}
	ago := now.Sub(s.last)
	return ago < justNow || ago < floodFor && s.rate.before+s.rate.came >= flood
}

// noteCut notes which streams were cut off in the middle of what came. Podman's service is not in their way.
func (o *output) noteCut(now time.Time) {
	if o.l.e.isPodman.Load() {
		return
	}
	for _, s := range o.sinks() {
		if s.flows(now) {
			s.cut = true
		}
	}
}

// noteTears: what was cut off was so by the end of the daemon.
func (o *output) noteTears() {
	for _, s := range o.sinks() {
		if s.cut && o.l.broke.since(s.last.Add(-stopsIn)) {
			s.tear = s.last.Add(endsFor)
		}
		s.cut = false
	}
}

// sew marks where some may be missing: before what comes, if that is the first that another daemon has logged. It is a message of a time
// (zero is unknown), after one of before. One that ends may log for a while when nobody is attached any more, and the next takes its time to
// begin. Where messages come without a break until a daemon was found to be there, at anew, it is the same.
func (s *sink) sew(at, before time.Time, is sight) {
	s.hole(at)
	if s.tear.IsZero() || !at.IsZero() && !at.After(s.tear) {
		return
	}
	if last := s.tear.Add(-endsFor); before.Before(last) {
		before = last
	}
	if goesOn := !at.IsZero() && !is.parts(at, before); goesOn {
		if !at.Before(is.anew) {
			s.tear = time.Time{}
		}
		return
	}
	s.tear = time.Time{}
	if len(s.gaps) > 0 && s.gaps[len(s.gaps)-1] == s.n {
		return // which says so
	}
	s.w.Gap(s.n)
	s.tears = append(s.tears, s.n)
}

// sight is what is known of the daemon whose log is read.
type sight struct {
	anew time.Time // when the log was asked for
	born time.Time // when its process was started; zero where that is not known
}

// parts reports whether another daemon may have begun between two messages, the second of which came after the last of ours. Where the
// last to begin is known, two may have still, one after the other.
func (d sight) parts(at, before time.Time) bool {
	if d.born.After(before) {
		return !at.Before(d.born) || at.Sub(before) >= halts
	}
	return at.Sub(before) >= beginsIn
}

// tornIn tells of what may be missing since the daemon ended. There is nothing more to come.
func (o *output) tornIn() error {
	all := o.places(func(s *sink) []int64 {
		s.sew(time.Time{}, time.Time{}, sight{})
		return s.tears
	})
	if all == "" {
		return nil
	}
	return fmt.Errorf("the daemon ended while the command wrote: what it had in hand then may be missing of %s", all)
}

// marksIn tells of what another process has found missing, or may have.
func (o *output) marksIn() error {
	all := o.places(func(s *sink) []int64 { return s.marks })
	if all == "" {
		return nil
	}
	return fmt.Errorf("some may be missing of %s, where its log has a mark", all)
}

// inDoubt reports whether a message of the log came later than the last of ours, and may not be among them. What a daemon that ends has
// not logged, and what one logs late, is less than lateBytes; where more of ours is still to come, it is the clock that was set.
func (r *resumer) inDoubt() bool {
	return r.left > 0 && r.left <= lateBytes && !r.at.IsZero() && !r.s.last.IsZero() && r.at.Add(r.unsure).After(r.s.last.Add(endsFor))
}

// breaks reports whether so much time lies between two messages, and after the last of ours, that another daemon may have begun in it.
func (r *resumer) breaks(at, before time.Time) bool {
	if last := r.s.last.Add(r.unsure); before.Before(last) {
		before = last
	}
	return r.is.parts(at, before)
}

// doubt takes what by count is ours, and by time is not: a loaded daemon has logged it late, or it is what came after a daemon that
// has ended, which did not log the last of ours. It is ours if it is what ours ends with, all of it, unless that is more of the same and
// another daemon's, or it came much later.
func (r *resumer) doubt(p []byte) error {
	if len(r.held) == 0 {
		r.s.awaitWritten()
		r.same = !r.s.distinct()
		r.heldAt, r.heldAfter = r.at, r.before
	}
	if r.breaks(r.at, r.before) {
		r.commit() // what came before that is the first daemon's
		r.parted, r.gone = true, r.gone || r.broke
	}
	have := int64(len(r.held))
	r.held = append(r.held, p...)
	other := r.parted && r.gone || r.at.After(r.s.last.Add(lateFor))
	if other && r.same || !r.s.has(r.s.n-r.left+have, p[:max(0, min(int64(len(p)), r.left-have))]) {
		return r.notOurs()
	}
	if int64(len(r.held)) < r.left {
		return nil
	}
	rest := r.held[r.left:]
	r.held, r.left = nil, 0
	_, err := r.write(rest)
	return err
}

// commit takes what is in doubt for ours, if it came without a break or is enough to tell.
func (r *resumer) commit() {
	if len(r.held) == 0 || r.breaks(r.heldAt, r.heldAfter) && (r.same || len(r.held) < distinctMax) {
		return
	}
	r.left -= int64(len(r.held))
	r.held, r.heldAt, r.heldAfter = nil, r.at, r.before
}

// notOurs ends the doubt: the daemon's log lacks what is left of ours.
func (r *resumer) notOurs() error {
	rest := r.held
	err := r.s.lack(r.left)
	r.held, r.left = nil, 0
	r.s.sew(r.heldAt, r.heldAfter, r.is)
	_, werr := r.write(rest)
	return errors.Join(werr, err)
}

// endDoubt: no more comes of the log.
func (r *resumer) endDoubt() error {
	if r.commit(); len(r.held) == 0 {
		return nil
	}
	if r.parted && r.gone {
		return r.notOurs()
	}
	r.left -= int64(len(r.held))
	r.held = nil
	return nil
}

// lack records that the daemon's log lacks so many bytes of ours.
func (s *sink) lack(n int64) error {
	s.lacks += n
	if s.lacksFile == "" {
		return nil
	}
	f, err := putJSON(s.lacksFile, s.lacks)
	if err != nil {
		return fmt.Errorf("note what the daemon's log lacks: %w: %w", kindOf(err), err)
	}
	return f.Close()
}

// writtenMax is how long the last of ours takes to come to the log's file at the most, unless who reads it holds it up.
const writtenMax = time.Second

// awaitWritten waits until all that was taken is in the log's file.
func (s *sink) awaitWritten() {
	for end := time.Now().Add(writtenMax); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if have, _, done := s.w.State(); done || have >= s.n {
			return
		}
	}
}

// has reports whether ours has p at an offset, as far as it is kept still.
func (s *sink) has(at int64, p []byte) bool {
	if from := s.n - int64(len(s.tail)); at+int64(len(p)) > from {
		i := max(0, from-at)
		if !bytes.HasPrefix(s.tail[at+i-from:], p[i:]) {
			return false
		}
		p = p[:i]
	}
	end, dropped, _ := s.w.State()
	lo, hi := max(at, dropped), min(at+int64(len(p)), end)
	if hi <= lo {
		return true
	}
	f, err := os.Open(s.w.Path())
	if err != nil {
		return true
	}
	defer func() { _ = f.Close() }()
	ours := make([]byte, hi-lo)
	if _, err := f.ReadAt(ours, lo); err != nil {
		return true
	}
	return bytes.Equal(ours, p[lo-at:hi-at])
}
