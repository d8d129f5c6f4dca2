package direct

import (
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// meeting is a point of the program at which the child waits for this process: for something that must be done
// from outside, when the child has come so far and no further. The thread that made the child stands still
// meanwhile.
type meeting struct {
	verb string   // describes the step in errors
	conn *os.File // this process's end of a socket pair
	// before is done while the child is on its way; nil is nothing.
	before func()
	do     func(pid int) error
}

// done is the byte that tells a child that it may go on.
const done = 'm'

// meet adds the steps of a meeting, at which do is done.
func (p *plan) meet(verb string, before func(), do func(pid int) error) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("make socket pair: %w", err)
	}
	p.own(pair[0])
	if err := unix.SetNonblock(pair[1], true); err != nil { // for the poller
		_ = unix.Close(pair[1])
		return err
	}
	p.meetings = append(p.meetings, meeting{verb: verb, conn: os.NewFile(uintptr(pair[1]), verb), before: before, do: do})
	b := p.b
	b.doing(verb, "")
	byt := b.alloc(8)
	b.call(unix.SYS_WRITE, p.inherit(pair[0]), address(byt), 1)
	b.call(unix.SYS_READ, arg(pair[0]), address(byt), 1)
	b.check(modeByte, byt, done, unix.EPERM)
	return nil
}

// attend waits for the child, and does what it waits for.
func (m *meeting) attend(pid *int32) error {
	if m.before != nil {
		m.before()
	}
	buf := make([]byte, 1)
	if n, err := m.conn.Read(buf); n == 0 {
		return fmt.Errorf("the child ended: %w", err)
	}
	if err := m.do(int(atomic.LoadInt32(pid))); err != nil {
		return err
	}
	buf[0] = done
	_, err := m.conn.Write(buf)
	return err
}

// make makes the child of r, while another goroutine attends the meetings of its program.
func (s *Starter) make(p *plan, r *request) error {
	if len(p.meetings) == 0 {
		return s.threadsFor(p).do(r)
	}
	r.args.flags |= unix.CLONE_PARENT_SETTID
	tid := new(int32)
	r.parentTid = tid
	// What is done beside the child must not keep the processor from the thread that makes it: the kernel has it wait
	// for some of that, which is the time to do it in.
	begun := make(chan struct{})
	r.begun = begun
	attended := make(chan error)
	go func() {
		<-begun
		var err error
		for i := range p.meetings {
			if err == nil {
				err = p.meetings[i].attend(tid)
			}
			_ = p.meetings[i].conn.Close() // a child that waits in vain reads its end
		}
		attended <- err
	}()
	err := s.threadsFor(p).do(r)
	if r.begun != nil { // it did not come so far
		close(r.begun)
	}
	p.closeOwned() // the child's ends of the pairs, so that the goroutine ends in any case
	refusal := <-attended
	if err != nil || refusal == nil {
		return err
	}
	if r.errno == 0 && r.prog.failed != 0 && p.isMeeting(p.b.whats[r.prog.failed-1].verb) {
		c := newChild(r.pid, int(r.pidfd))
		_, _ = c.wait()
		_ = c.close()
		return refusal
	}
	return nil // a step before that failed, which is for the caller to name
}

func (p *plan) isMeeting(verb string) bool {
	for _, m := range p.meetings {
		if m.verb == verb {
			return true
		}
	}
	return false
}
