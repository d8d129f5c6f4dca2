package docker

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-project/berth"
	"github.com/berth-project/berth/logfile"
)

// sink is the log of one stream and how much of the stream it was given.
type sink struct {
	pipe *os.File
	w    *logfile.Writer
	n    int64
	done chan error
	init initWord
	// Of what was taken: the end of it, and when its first and last bytes came.
	tail        []byte
	first, last time.Time
	broken      bool // what comes next is from another connection than what came before
	brokenAt    time.Time
	gaps        []int64 // where some may be missing
	rate        rate
	cut         bool      // it was cut off in the middle of what came
	lacks       int64     // how many bytes of ours the daemon's log lacks; see resumer.doubt
	lacksFile   string    // where that is recorded; "" is nowhere
	tear        time.Time // messages of the daemon's log from after it are another daemon's than who was cut off in the middle of some; zero where none was
	tears       []int64   // where some may be missing for that
	marks       []int64   // where some may be missing, as another process has found
	disk        *logDisk  // of the daemon's log that comes; nil where it is not looked at
	turns       int       // of the disk, which were seen to
	timed       bool      // the messages of the log have their times
	unread      bool      // the daemon could not read its log from here on
	holes       []int64   // where some may be missing for either
}

func (s *sink) Write(p []byte) (int, error) {
	if s.broken {
		s.broken, s.tear = false, time.Time{} // which would say the same
		s.gap(s.n)
	}
	s.n += int64(len(p))
	s.note(p)
	out, held := s.init.pass(p)
	if !held {
		if _, err := s.pipe.Write(out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// close ends the log. drop: what the daemon's init said in the command's place is left out.
func (s *sink) close(drop bool) error {
	if s == nil {
		return nil
	}
	var err error
	if held := s.init.release(); !drop && len(held) > 0 {
		_, err = s.pipe.Write(held)
	}
	_ = s.pipe.Close()
	return errors.Join(err, <-s.done)
}

// initWord holds back the first line of a stream where it may be what the daemon's init (tini, catatonit) says of a
// command that it cannot execute. Nothing comes after it then.
type initWord struct {
	held   []byte
	passed bool // it is another
}

const (
	initFatal       = "[FATAL tini ("
	podmanInitFatal = "ERROR (catatonit:"
	initWordMax     = 8 << 10
)

// pass answers what is to be written, or that it is held.
func (w *initWord) pass(p []byte) (out []byte, held bool) {
	if w.passed || len(p) == 0 {
		return p, false
	}
	w.held = append(w.held, p...)
	line := bytes.IndexByte(w.held, '\n')
	if (mayBegin(w.held, initFatal) || mayBegin(w.held, podmanInitFatal)) && len(w.held) < initWordMax && (line < 0 || line == len(w.held)-1) {
		return nil, true
	}
	return w.release(), false
}

// mayBegin reports whether p begins with the words, or is a part of them.
func mayBegin(p []byte, words string) bool {
	n := min(len(p), len(words))
	return string(p[:n]) == words[:n]
}

func (w *initWord) release() []byte {
	w.passed = true
	held := w.held
	w.held = nil
	return held
}

// openSink opens a stream's log, and what else gets its bytes.
func (l *life) openSink(r *record, stream string, extra *os.File) (*sink, error) {
	limit := r.Spec.LogLimit
	switch {
	case limit == 0:
		limit = defaultLogLimit
	case limit < 0:
		limit = 0
	}
	dir := l.logDir(r)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	w, err := logfile.Resume(dir, stream, logfile.Options{Limit: limit, Held: l.held, Copy: extra, Reserve: filepath.Join(l.e.cfg.Dir, runDir, "log-reserve")})
	if err != nil {
		return nil, err
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		w.Abandon()
		return nil, err
	}
	have, _, _ := w.State()
	s := &sink{pipe: pw, w: w, n: have, done: make(chan error, 1), init: initWord{passed: have > 0 || r.Spec.NoInit}, lacksFile: filepath.Join(l.dir, "unlogged-"+stream)}
	if err := s.recall(dir, stream); err != nil {
		w.Abandon()
		return nil, errors.Join(err, pr.Close(), pw.Close())
	}
	l.e.wg.Go(func() { s.done <- w.Pump(pr) })
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.writers == nil {
		l.writers = map[string]*logfile.Writer{}
	}
	l.writers[stream] = w
	return s, nil
}

// note remembers what came last, and when.
func (s *sink) note(p []byte) {
	s.last = time.Now()
	if s.first.IsZero() {
		s.first = s.last
	}
	s.rate.add(s.last, len(p))
	if len(p) >= tailMax {
		s.tail = append(s.tail[:0], p[len(p)-tailMax:]...)
		return
	}
	if over := len(s.tail) + len(p) - tailMax; over > 0 {
		s.tail = append(s.tail[:0], s.tail[over:]...)
	}
	s.tail = append(s.tail, p...)
}

// recall finds out the same of what another process has taken.
func (s *sink) recall(dir, stream string) error {
	if s.n == 0 {
		return nil
	}
	ix, err := logfile.ReadIndex(dir, stream)
	if err != nil {
		return err
	}
	s.first, s.last = ix.Span()
	s.marks = ix.Gaps
	f, err := os.Open(s.w.Path())
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	s.tail = make([]byte, max(0, min(tailMax, s.n-ix.Dropped))) // the log may have been cut from outside
	if _, err = f.ReadAt(s.tail, s.n-int64(len(s.tail))); err != nil {
		return err
	}
	if err := readJSON(s.lacksFile, &s.lacks); !errors.Is(err, berth.ErrNotFound) {
		return err
	}
	return nil
}

// distinct says whether the end of what was taken is unlike what came shortly before, so that it can be told from more of
// the same.
func (s *sink) distinct() bool {
	end := s.tail[max(0, len(s.tail)-distinctMax):]
	if len(end) < distinctMax/4 {
		return false
	}
	f, err := os.Open(s.w.Path())
	if err != nil {
		return false
	}
	defer func() { _ = f.Close() }()
	before := make([]byte, min(lateBytes, s.n)-1) // of the last of these, all but the very last byte; dropped ones read as zeros
	if _, err := f.ReadAt(before, s.n-int64(len(before))-1); err != nil {
		return false
	}
	return !bytes.Contains(before, end)
}

// gap marks that some may be missing here.
func (s *sink) gap(at int64) {
	s.w.Gap(at)
	s.gaps = append(s.gaps, at)
}
