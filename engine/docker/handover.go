package docker

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A process that ends while containers of it run on, as one that starts a detached task does, hands the connections to their streams over to the
// keeper, with the steps' locks. That goes on where the process has stopped, to the byte, and no daemon's log is needed, which may be wrong, or
// gone by the time it is read. Where the connection is no socket, as with TLS and SSH, or the process is killed, the daemon's log is read, as ever.

// handed is a connection to a container's streams that another process has read so far.
type handed struct {
	conn   io.ReadCloser
	unread []byte   // what that process has read of it, and not taken
	lock   *os.File // the step's; nil once it was taken
}

func (h *handed) close() {
	if h == nil {
		return
	}
	_ = h.conn.Close()
	if h.lock != nil {
		_ = h.lock.Close()
	}
}

const (
	// handWord begins a line to the keeper; what follows is a handMessage. One of an earlier berth takes it for the name of no sandbox.
	handWord = "hand "
	// giveMax is how long a process that ends waits for what it has read to be in its logs.
	giveMax = 2 * time.Second
	// takeMax is how long the keeper has what it was handed and does not take, as of a sandbox that is gone. A daemon has a container wait
	// while nobody reads.
	takeMax = 5 * time.Second
	// handMost is the most that such a line has, in bytes.
	handMost = 32 << 10
)

// handMessage goes with the descriptors of the connection and of the lock.
type handMessage struct {
	Sandbox string `json:"sandbox"`
	Step    string `json:"step"`
	Unread  []byte `json:"unread,omitempty"`
}

// errGiven: what is read of a container was given to another process.
var errGiven = errors.New("its output is read by another process")

// mayGive notes that r is about to be read: it can be given away from now on, if it is a container's own streams.
func (o *output) mayGive(r io.Reader) {
	_, log := r.(*backlog)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.frames = nil
	o.reading = !log && o.attached == 0
}

// given reports whether what was read has been given away, of which the reading has ended with an error, or none.
func (o *output) given(err error) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	to := o.giving
	o.reading, o.giving = false, nil
	if to == nil {
		return false
	}
	from, ok := o.r.(*bufio.Reader)
	if !ok || err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		close(to)
		return false
	}
	var unread []byte
	if o.frames != nil {
		unread = o.frames.unfinished()
	}
	buffered, _ := from.Peek(from.Buffered())
	to <- &handed{conn: o.conn, unread: append(unread, buffered...)}
	return true
}

// give stops the reading and answers what goes on with it; nil where it cannot be given away.
func (o *output) give() *handed {
	o.mu.Lock()
	var conn net.Conn
	switch c := o.conn.(type) { // not what embeds one, such as a connection by ssh, whose other end is a child of this process
	case *net.UnixConn:
		conn = c
	case *net.TCPConn:
		conn = c
	}
	if conn == nil || !o.reading || o.giving != nil || conn.SetReadDeadline(time.Unix(1, 0)) != nil {
		o.mu.Unlock()
		return nil
	}
	to := make(chan *handed, 1)
	o.giving = to
	o.mu.Unlock()
	select {
	case h := <-to:
		return h
	case <-time.After(giveMax):
		return nil
	}
}

// giveAway hands what this process reads of containers that run on over to the keeper.
func (e *Engine) giveAway() {
	e.mu.Lock()
	var all []*life
	for _, l := range e.lives {
		all = append(all, l)
	}
	e.mu.Unlock()
	var done sync.WaitGroup
	for _, l := range all {
		l.mu.Lock()
		out, sb, lock := l.out, l.sb, l.locked
		l.mu.Unlock()
		if out == nil || lock == nil || !sb.kept() || sb.spec.Bound || !e.keeper.connected() {
			continue
		}
		done.Go(func() {
			out.ease() // who holds a log would have us wait for ever
			h := out.give()
			if h == nil {
				return
			}
			l.endInput()
			h.lock = lock
			err := out.closeLogs() // the keeper writes to them next
			if err == nil {        // else they lack what was read, and the daemon's log may have it
				err = e.keeper.hand(l, h)
			}
			if err != nil {
				e.cfg.Logger.Warn("a container's output is read on from the daemon's log", "container", l.String(), "error", err)
			}
		})
	}
	done.Wait()
}

// endInput ends a container's standard input, as it ends with this process: the keeper would keep it open with the connection.
func (l *life) endInput() {
	l.mu.Lock()
	in := l.stdin
	l.mu.Unlock()
	if in != nil {
		_ = in.Close()
	}
}

func (kc *keeperClient) connected() bool {
	kc.mu.Lock()
	defer kc.mu.Unlock()
	return kc.c != nil
}

// hand sends a connection to the keeper.
func (kc *keeperClient) hand(l *life, h *handed) error {
	word, err := json.Marshal(handMessage{Sandbox: l.sandbox, Step: l.step, Unread: h.unread})
	if err != nil {
		return err
	}
	line := slices.Concat([]byte(handWord), word, []byte{'\n'})
	if len(line) > handMost {
		return fmt.Errorf("%d bytes of it were not taken yet", len(h.unread))
	}
	raw, err := h.conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return err
	}
	rawLock, err := h.lock.SyscallConn()
	if err != nil {
		return err
	}
	kc.mu.Lock()
	defer kc.mu.Unlock()
	err = errNoKeeper
	for range 2 { // another one may run meanwhile
		if kc.c == nil {
			if _, aerr := kc.ask(""); aerr != nil {
				kc.drop()
				return aerr
			}
		}
		if err = kc.send(line, raw, rawLock); err == nil {
			return nil
		}
		kc.drop()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
	}
	return err
}

// send needs mu.
func (kc *keeperClient) send(line []byte, raw, rawLock syscall.RawConn) error {
	_ = kc.c.SetDeadline(time.Now().Add(giveMax))
	var n int
	var serr error
	err := raw.Control(func(fd uintptr) {
		lerr := rawLock.Control(func(lock uintptr) {
			n, _, serr = kc.c.WriteMsgUnix(line, unix.UnixRights(int(fd), int(lock)), nil)
		})
		serr = errors.Join(lerr, serr)
	})
	if err = errors.Join(err, serr); err == nil && n < len(line) {
		_, err = kc.c.Write(line[n:])
	}
	if err == nil {
		_, err = kc.r.ReadString('\n')
	}
	return err
}

// handReader reads a connection on which descriptors come, too: of one message at a time, since each has its answer before the next.
type handReader struct {
	c   *net.UnixConn
	fds []int // of the last message that had any
}

func (r *handReader) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(2*4))
	n, have, _, _, err := r.c.ReadMsgUnix(p, oob)
	if all, perr := unix.ParseSocketControlMessage(oob[:have]); perr == nil {
		for _, m := range all {
			if fds, err := unix.ParseUnixRights(&m); err == nil {
				r.close()
				r.fds = fds
			}
		}
	}
	if n == 0 && err == nil && len(p) > 0 {
		err = io.EOF
	}
	return n, err
}

// next is the connection and the lock that came; nil where not both did, as the limit of open files was reached.
func (r *handReader) next() *handed {
	if len(r.fds) != 2 {
		r.close()
		return nil
	}
	f, lock := os.NewFile(uintptr(r.fds[0]), "connection"), os.NewFile(uintptr(r.fds[1]), lockFile)
	r.fds = nil
	defer func() { _ = f.Close() }()
	c, err := net.FileConn(f)
	if err != nil {
		_ = lock.Close()
		return nil
	}
	return &handed{conn: c, lock: lock}
}

func (r *handReader) close() {
	for _, fd := range r.fds {
		_ = unix.Close(fd)
	}
	r.fds = nil
}

// take has what was handed over be there for the goroutine that sees the step to its end, for a while.
func (k *keeper) take(ctx context.Context, word string, h *handed) {
	var m handMessage
	if h == nil {
		return
	}
	if err := json.Unmarshal([]byte(word), &m); err != nil {
		h.close()
		return
	}
	h.unread = m.Unread
	name := m.Sandbox + "/" + m.Step
	k.mu.Lock()
	before := k.handed[name]
	k.handed[name] = h
	k.mu.Unlock()
	before.close()
	time.AfterFunc(takeMax, func() {
		k.mu.Lock()
		defer k.mu.Unlock()
		if k.handed[name] == h {
			delete(k.handed, name)
			h.close()
		}
	})
	k.tend(ctx, m.Sandbox)
}

// handedOf is what was handed over of a step; nil where nothing was.
func (k *keeper) handedOf(l *life) *handed {
	k.mu.Lock()
	defer k.mu.Unlock()
	h := k.handed[l.String()]
	delete(k.handed, l.String())
	return h
}

// lock waits for the step's lock, or for it to be handed over.
func (k *keeper) lock(ctx context.Context, l *life) (*os.File, error) {
	for {
		if h := k.handedOf(l); h != nil {
			lock := h.lock
			h.lock = nil
			l.setHanded(h)
			return lock, nil
		}
		f, err := l.tryLock()
		if f != nil || errors.Is(err, fs.ErrNotExist) {
			return f, err
		}
		pause := lockPoll
		if err != nil { // out of descriptors, say: others may free some
			k.e.cfg.Logger.Error("lock of a step", "container", l.String(), "err", err)
			pause = closeAgain
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// setHanded has this process read h first. What was set before and not read is closed.
func (l *life) setHanded(h *handed) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.handed.close()
	l.handed = h
}

// takeHanded has o go on where another process has stopped, if that has handed over what it read.
func (l *life) takeHanded(o *output) {
	l.mu.Lock()
	h := l.handed
	l.handed = nil
	l.mu.Unlock()
	if h != nil {
		o.set(h.conn, bufio.NewReader(io.MultiReader(bytes.NewReader(h.unread), h.conn)))
	}
}

func (l *life) setOutput(o *output) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out = o
}

func (l *life) setLocked(f *os.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.locked = f
}
