package docker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"
)

// A daemon before 23 that is asked to follow a log of its driver local goes wrong where it begins a new file of it: of what it has not sent
// yet some is gone, and some comes twice, or with bytes between that are not the container's. To read the files as they are never does. So
// a log is followed while its first file has room, and is asked for again and again from then on: what is there is known by its times.
// Where it is asked for what is younger than a time, and packs what it keeps, such a daemon leaves out all but its newest file if its oldest
// has nothing of that. So berth has it pack nothing; where an earlier one has not, it is asked for all.

// rotation tells where a daemon is in the files of a log.
type rotation struct {
	file   int64 // in bytes, of one
	logged int64 // of the container, by what was read
	whole  bool  // all of it is to be asked for
	behind bool  // what comes of it where it is followed comes late: the daemon sends it more slowly than it writes
	// Of the last look at the log: when it began, what was logged by then, how long it took; and when the one before began.
	began  time.Time
	before int64
	took   time.Duration
	last   time.Time
	seen   os.FileInfo // what the file was then; nil where that cannot be seen
}

const (
	pollLeast = 200 * time.Millisecond
	pollMost  = 5 * time.Second
	// A look at the log takes a tenth of the time at most, unless it would be gone by the next.
	pollShare = 10
	// pollOrder is by how much the times of messages of two streams that both write may be out of order: see backlog.sincePoll.
	pollOrder = time.Second
	// lagMost is how old a message may be that comes of a log which is followed.
	lagMost = 2 * time.Second
	// pollQuiet is for how long a stream has written nothing that need not be looked for where the log is read on.
	pollQuiet = 10 * time.Second
)

// near reports whether a file may end before more of it has come than was asked for, or has.
func (t *rotation) near() bool {
	return t != nil && (t.whole || t.behind || t.logged >= t.file-t.file/8)
}

var (
	errNear    = errors.New("a file of the log is about to end")                       // it is not to be followed further
	errRotated = errors.New("what was read of the log last is not in its newest file") // all of it is to be asked for
)

// add counts a message of a time that was read, and reports whether the log is not to be followed further.
func (t *rotation) add(n int, at time.Time, followed bool) bool {
	if t == nil {
		return false
	}
	t.logged += int64(n)
	if followed && !t.near() && time.Since(at) > lagMost {
		t.behind = true
	}
	return followed && t.near()
}

// begin begins a look.
func (t *rotation) begin() { t.last, t.began, t.before, t.took = t.began, time.Now(), t.logged, 0 }

// end ends it.
func (t *rotation) end() {
	if t == nil || t.took != 0 || t.began.IsZero() {
		return
	}
	t.took = max(1, time.Since(t.began))
	if t.logged-t.before < t.file/8 {
		t.behind = false
	}
}

// pause is how long the log is left alone after a look.
func (t *rotation) pause() time.Duration {
	if t.whole { // it is asked for once more
		return 0
	}
	came := t.logged - t.before
	if came > t.file/4 {
		return 0
	}
	pause := min(max(pollShare*t.took, pollLeast), pollMost)
	if came > 0 && !t.last.IsZero() { // it keeps some files
		pause = min(pause, time.Duration(float64(t.began.Sub(t.last))*float64(t.file)/float64(came)))
	}
	return pause
}

// polls reports whether what ended a reading of the log was only that it is not followed.
func (b *backlog) polls(err error) bool {
	if b != nil && b.re != nil {
		return b.short && (err == nil || errors.Is(err, errAnew))
	}
	return b != nil && b.turn.near() && (err == nil || errors.Is(err, errNear) || errors.Is(err, errRotated))
}

// sincePoll is since for a log that is asked for often: the end of what a stream has said long ago is not looked for.
func (b *backlog) sincePoll(since string) string {
	if since == "" || b.out.mark.IsZero() && b.err.mark.IsZero() {
		return ""
	}
	if b.turn != nil && b.turn.whole {
		b.turn.whole = false
		return ""
	}
	least, most := b.out.mark, b.err.mark
	if most.Before(least) {
		least, most = most, least
	}
	if most.Sub(least) < pollQuiet {
		most = least
	}
	return stamp(most.Add(-pollOrder))
}

// together has the streams be looked for in the log together, which was asked for since then.
func (b *backlog) together(since string) {
	b.out.peer, b.err.peer = b.err, b.out
	for _, r := range []*resumer{b.out, b.err} {
		r.seen = false
		if r.quiet = r.passing && stamp(r.mark) < since; r.quiet {
			r.passing = false
		}
	}
}

// same reports whether the log's file is as it was at the last look, where it can be seen.
func (o *output) same(ctx context.Context) bool {
	host, err := o.l.e.daemon(ctx)
	if err != nil || host.remote || host.root == "" {
		return false
	}
	before := o.turn.seen
	o.turn.seen, err = os.Stat(filepath.Join(host.root, "containers", o.l.docker(), "local-logs", "container.log"))
	if err != nil {
		o.turn.seen = nil
		return false
	}
	return before != nil && os.SameFile(before, o.turn.seen) && before.Size() == o.turn.seen.Size()
}

// cutBetween notes that the daemon has gone between two looks at a log, of which more was to come: as in sink.flows, by how much came of
// late.
func (o *output) cutBetween() {
	for _, s := range o.sinks() {
		if !s.last.IsZero() && time.Since(s.last) < 2*pollMost && s.rate.before+s.rate.came >= flood {
			s.cut = true
		}
	}
}
