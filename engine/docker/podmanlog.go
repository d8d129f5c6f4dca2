package docker

import (
	"bytes"
	"errors"
	"time"
)

// Podman that follows a log reads records which conmon is just writing, and loses some of what comes after; and conmon begins a log anew when it
// has its size, with nothing of what was there. So on Podman no log is followed: it is read from its beginning, again and again, and once more when the
// container has ended. What is ours in it is known by count, and seen to be by its end. While the container runs, the end of what there is
// is taken once it has stood still from one look to the next.

const (
	// recordMost is more than what a record of conmon's log has, in bytes.
	recordMost = 16 << 10
	// anewTries bounds the looks at a log that is begun anew each time.
	anewTries = 10
)

// errAnew: what is ours in a log is not where it was. It is to be read once more.
var errAnew = errors.New("the log was begun anew")

// relook is what looks at a log have found out.
type relook struct {
	before map[*sink]int64 // what the log had of each stream
	find   map[*sink]bool  // what is ours is to be found in it
	began  time.Time       // of the last look
	pause  time.Duration
	came   bool // something was taken by the last look
}

// look is one look at one stream of a log.
type look struct {
	re   *relook
	r    *resumer
	ours int64  // bytes that are ours, at the log's beginning
	tail []byte // with which these end
	live bool   // the container runs
	find bool

	pos  int64
	last []byte // of what was passed over, up to the length of tail
	held []byte // the end of what there is
	end  int64  // where ours ends; -1 where it was not found
}

func (re *relook) look(r *resumer, live bool) *look {
	ours := max(0, r.s.n-r.s.lacks)
	tail := r.s.tail[len(r.s.tail)-int(min(int64(len(r.s.tail)), ours)):]
	r.left = 0
	c := &look{re: re, r: r, ours: ours, tail: bytes.Clone(tail), live: live, find: re.find[r.s], end: -1}
	if c.find {
		c.tail = bytes.Clone(r.s.tail)
	}
	return c
}

func (c *look) Write(p []byte) (int, error) {
	n := len(p)
	if c.find {
		c.seek(p)
		return n, nil
	}
	if k := int(min(int64(n), c.ours-c.pos)); k > 0 {
		c.pass(p[:k])
		c.pos += int64(k)
		p = p[k:]
		if c.pos == c.ours && !bytes.Equal(c.last, c.tail) {
			c.re.find[c.r.s] = true
			return 0, errAnew
		}
	}
	from := c.pos
	c.pos += int64(len(p))
	if c.live {
		sure := max(0, min(int64(len(p)), c.re.before[c.r.s]-recordMost-from))
		if rest := c.re.before[c.r.s] - from; rest > 0 { // what comes after that is not known to stand still
			c.held = append(c.held, p[sure:max(sure, min(int64(len(p)), rest))]...)
		}
		p = p[:sure]
	}
	return n, c.take(p)
}

func (c *look) take(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	c.re.came = true
	_, err := c.r.write(p)
	return err
}

func (c *look) pass(p []byte) {
	c.last = append(c.last, p...)
	if over := len(c.last) - len(c.tail); over > 0 {
		c.last = append(c.last[:0], c.last[over:]...)
	}
}

// seek looks for the end of ours.
func (c *look) seek(p []byte) {
	c.last = append(c.last, p...)
	c.pos += int64(len(p))
	if c.end < 0 {
		if i := bytes.Index(c.last, c.tail); i >= 0 {
			c.end = c.pos - int64(len(c.last)) + int64(i+len(c.tail))
		}
	}
	if over := len(c.last) - len(c.tail) + 1; over > 0 {
		c.last = append(c.last[:0], c.last[over:]...)
	}
}

// finish ends the look. errAnew: the log is to be read once more.
func (c *look) finish() error {
	s := c.r.s
	switch {
	case c.find && c.end >= 0:
		delete(c.re.find, s)
		delete(c.re.before, s)
		s.awaitWritten()
		if !s.distinct() {
			s.gap(s.n)
		}
		return errors.Join(errAnew, s.lack(s.n-c.end-s.lacks))
	case c.find:
		delete(c.re.find, s)
		delete(c.re.before, s)
		s.gap(s.n)
		return errors.Join(errAnew, s.lack(s.n-s.lacks))
	case c.pos < c.ours:
		c.re.find[s] = true
		return errAnew
	}
	still := c.pos == c.re.before[s]
	c.re.before[s] = c.pos
	if still {
		return c.take(c.held)
	}
	return nil
}

// next is how long the log is left alone after a look.
func (re *relook) next() time.Duration {
	if len(re.find) > 0 {
		return 0
	}
	if re.pause = min(2*re.pause, pollMost); re.came || re.pause == 0 {
		re.pause = pollLeast
	}
	return max(re.pause, pollShare*time.Since(re.began))
}
