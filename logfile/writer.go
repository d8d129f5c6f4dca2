package logfile

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options choose how a Writer writes. The zero value is a log without a bound.
type Options struct {
	// Limit bounds the file, in bytes: beyond it the head is freed. 0 is no bound.
	Limit int64
	// Copy, where not nil, gets every byte too, beyond all bounds. The Writer closes it.
	Copy *os.File
	// Reserve, where not "", is a file of one MiB on the log's disk, which any log may remove for its last bytes
	// once the disk is full. It is made with a log while there is room, and may be shared by many.
	Reserve string
	// Held: a follower that holds the log will come. Until it has, the log is as if held by one that has read nothing.
	Held bool
	// Now is the clock; nil is time.Now.
	Now func() time.Time
}

// Writer fills the log of one stream. Its methods may be called concurrently, Pump once.
type Writer struct {
	opts     Options
	file     *os.File
	index    *os.File
	idxPath  string
	idxPos   int64
	markAt   int64 // time of the record at idxPos; 0 where none is open
	spliceOK bool
	copyLost bool
	copyErr  error // of Copy; under mu
	lost     bool

	mu      sync.Mutex
	changed *sync.Cond
	end     int64
	dropped int64
	done    bool
	cut     bool
	eased   int      // calls of Ease that were not undone
	gaps    []int64  // to be recorded
	from    *os.File // what Pump reads
	err     error
	subs    map[*Follower]struct{}
	awaited bool // see Options.Held
}

// Create makes the log of a stream in dir. A log that is there already is an error: it is somebody's.
func Create(dir, stream string, opts Options) (*Writer, error) {
	opts.setAside()
	f, err := create(filepath.Join(dir, stream))
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", stream, err)
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	w := &Writer{opts: opts, awaited: opts.Held, file: f, idxPath: filepath.Join(dir, stream+indexExt), spliceOK: true}
	w.changed = sync.NewCond(&w.mu)
	return w, nil
}

// create makes a file. It is os.OpenFile with five system calls less: that tries whether the file can be polled.
func create(name string) (*os.File, error) {
	for {
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case !errors.Is(err, unix.EINTR):
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// Resume opens the log of a stream again, to go on after its last byte; one that is not there is made. Two
// writers of one log are the caller's to prevent.
func Resume(dir, stream string, opts Options) (*Writer, error) {
	opts.setAside()
	f, err := os.OpenFile(filepath.Join(dir, stream), os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", stream, err)
	}
	w, err := resume(f, dir, stream)
	if err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("log %s: %w", stream, err)
	}
	w.opts, w.awaited = opts, opts.Held
	if opts.Now == nil {
		w.opts.Now = time.Now
	}
	return w, nil
}

func resume(f *os.File, dir, stream string) (*Writer, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	ix, err := ReadIndex(dir, stream)
	if err != nil {
		return nil, err
	}
	w := &Writer{file: f, idxPath: filepath.Join(dir, stream+indexExt), spliceOK: true, end: st.Size(), dropped: ix.Dropped}
	w.changed = sync.NewCond(&w.mu)
	index, err := os.OpenFile(w.idxPath, os.O_WRONLY|os.O_CREATE, 0o600)
	if err != nil {
		return w, nil //nolint:nilerr // as in stamp: the bytes are kept all the same
	}
	if st, err = index.Stat(); err != nil {
		_ = index.Close()
		return nil, err
	}
	w.index, w.idxPos = index, st.Size()/recordSize*recordSize // a record that was cut is written over
	return w, nil
}

// Pump moves everything that comes out of r into the log until its end, and closes r and the log. r is the
// read end of a pipe, or a terminal's master. On a full disk the log makes do with the room that it has: its
// head is freed for its tail. Where that is not enough either, what comes is read and dropped, so that the
// writer is never held up by a full disk. The error then says which bytes are gone.
func (w *Writer) Pump(r *os.File) error {
	defer w.finish()
	defer func() { _ = r.Close() }()
	w.pumps(r)
	raw, err := r.SyscallConn()
	if err != nil {
		return err
	}
	var tee *teePipe
	if w.opts.Copy != nil {
		defer func() { _ = w.opts.Copy.Close() }()
		if tee, err = newTeePipe(); err != nil {
			return err
		}
		defer tee.close()
	}
	hungUp := false
	for {
		w.waitForReaders()
		var n int64
		var moveErr error
		err := raw.Read(func(fd uintptr) bool {
			n, moveErr = w.move(int(fd), tee)
			return !errors.Is(moveErr, unix.EAGAIN)
		})
		if err == nil {
			err = moveErr
		}
		if errors.Is(err, os.ErrDeadlineExceeded) { // Cut
			return w.pumpRest(raw, tee)
		}
		if errors.Is(err, unix.EIO) { // a terminal whose last holder has gone
			if !hungUp {
				hungUp = true // Linux may say so before what was written last: see engine/oci.terminal
				continue
			}
			return w.failure()
		}
		hungUp = false
		if err != nil {
			return w.setErr(fmt.Errorf("log %s: %w", w.file.Name(), err))
		}
		if n == 0 {
			return w.failure()
		}
	}
}

// pumps remembers what Cut has to end.
func (w *Writer) pumps(r *os.File) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.from = r
	if w.cut {
		_ = r.SetReadDeadline(time.Unix(1, 0))
	}
}

// Cut has Pump end with what lies in its pipe now, although somebody may still hold the other end.
func (w *Writer) Cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut = true
	if w.from != nil {
		_ = w.from.SetReadDeadline(time.Unix(1, 0))
	}
}

// pumpRest moves what lies in the pipe, and as much as may lie in one: whoever holds its other end may go on
// writing.
func (w *Writer) pumpRest(raw syscall.RawConn, tee *teePipe) error {
	for left := int64(restMax); left > 0; {
		w.waitForReaders()
		var n int64
		var moveErr error
		if err := raw.Control(func(fd uintptr) { n, moveErr = w.move(int(fd), tee) }); err != nil || n <= 0 || moveErr != nil {
			break
		}
		left -= n
	}
	return w.failure()
}

const (
	chunk   = 1 << 20  // bytes moved by one call at most
	restMax = 16 << 20 // bytes moved after Cut at most; what a pipe may hold is far less
)

// move moves what lies in fd, at most a chunk, into the log and the copy. 0 is the end.
func (w *Writer) move(fd int, tee *teePipe) (int64, error) {
	want := chunk
	if tee != nil && !tee.broken {
		n, err := tee.fill(fd)
		if errors.Is(err, unix.EINVAL) { // no pipe: take the slow way for both
			tee.broken, w.spliceOK = true, false
			return w.move(fd, tee)
		}
		if n <= 0 || err != nil {
			return 0, err
		}
		if err := tee.drain(w.opts.Copy, n); err != nil {
			tee.broken = true
			w.loseCopy(err)
		}
		want = int(n)
	}
	for left := want; left > 0; {
		n, err := w.moveOnce(fd, left)
		if n <= 0 || err != nil {
			return 0, err
		}
		if tee == nil || tee.broken {
			return n, nil
		}
		left -= int(n) // what was copied must be moved before more is copied
	}
	return int64(want), nil
}

func (w *Writer) moveOnce(fd, want int) (int64, error) {
	if w.lost {
		return discard(fd, want)
	}
	n, err := w.splice(fd, want)
	for isFull(err) && !errors.Is(err, errDropped) && w.makeRoom() {
		n, err = w.splice(fd, want)
	}
	if errors.Is(err, errDropped) {
		return n, nil
	}
	if isFull(err) {
		w.lose(err)
		return discard(fd, want)
	}
	if n > 0 && err == nil {
		w.advance(n)
	}
	return n, err
}

func (w *Writer) splice(fd, want int) (int64, error) {
	for w.spliceOK {
		off := w.end
		n, err := unix.Splice(fd, nil, int(w.file.Fd()), &off, want, unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EINVAL) {
			w.spliceOK = false // not a pipe, or a file system that cannot
			break
		}
		return n, err
	}
	buf := make([]byte, min(want, 32<<10))
	n, err := readFD(fd, buf)
	if n <= 0 || err != nil {
		return 0, err
	}
	if w.opts.Copy != nil && !w.copyLost {
		if _, err := w.opts.Copy.Write(buf[:n]); err != nil {
			w.loseCopy(err)
		}
	}
	_, err = w.file.WriteAt(buf[:n], w.end)
	for isFull(err) && w.makeRoom() {
		_, err = w.file.WriteAt(buf[:n], w.end)
	}
	if err != nil {
		w.lose(err)
		return int64(n), errDropped
	}
	return int64(n), nil
}

// errDropped: bytes were read, and could not be written.
var errDropped = fmt.Errorf("dropped: %w", unix.ENOSPC)

func readFD(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Read(fd, buf)
		if !errors.Is(err, unix.EINTR) {
			return max(n, 0), err
		}
	}
}

// discard reads what the log has no room for.
func discard(fd, want int) (int64, error) {
	n, err := readFD(fd, make([]byte, min(want, 64<<10)))
	return int64(n), err
}

// advance records that n more bytes are in the file.
func (w *Writer) advance(n int64) {
	w.mu.Lock()
	w.end += n
	end := w.end
	gaps := w.takeGaps(end - n)
	drop := int64(0)
	if over := end - w.dropped - w.opts.Limit; w.opts.Limit > 0 && over >= max(w.opts.Limit/8, block) {
		drop = min(w.dropped+over, w.held(end)) &^ (block - 1)
	}
	dropped := w.dropped
	w.mu.Unlock()
	w.markGaps(gaps)
	w.stamp(end)
	if drop > dropped {
		w.dropHead(drop)
	}
	w.mu.Lock()
	w.notify()
	w.mu.Unlock()
}

func (w *Writer) notify() {
	for s := range w.subs {
		select {
		case s.c <- struct{}{}:
		default:
		}
	}
}

// stamp records when the bytes before end arrived: in the open record while it is young, else in a new one.
func (w *Writer) stamp(end int64) {
	now := w.opts.Now().UnixNano()
	if w.index == nil {
		f, err := os.OpenFile(w.idxPath, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return // the bytes are kept all the same; only their times are unknown
		}
		w.index = f
	}
	if w.markAt != 0 && now-w.markAt > int64(indexStep) {
		w.idxPos += recordSize
		w.markAt = 0
	}
	if w.markAt == 0 {
		w.markAt = now
	}
	_ = w.writeRecord(w.markAt, end)
}

func (w *Writer) writeRecord(at, end int64) error {
	var b [recordSize]byte
	putRecord(&b, at, end)
	_, err := w.index.WriteAt(b[:], w.idxPos)
	return err
}

// Gap says that before the byte at offset others, nobody knows how many, may have been written that never came here.
// Offsets do not count them. The offset is not before the log's end.
func (w *Writer) Gap(offset int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gaps = append(w.gaps, offset)
}

// takeGaps takes the gaps up to an offset; mu is held.
func (w *Writer) takeGaps(offset int64) (gaps []int64) {
	for len(w.gaps) > 0 && w.gaps[0] <= offset {
		gaps, w.gaps = append(gaps, w.gaps[0]), w.gaps[1:]
	}
	return gaps
}

func (w *Writer) markGaps(gaps []int64) {
	for _, g := range gaps {
		w.special(gapMark, g)
	}
}

// special writes a record that is no time, after the open one. It reports whether it could.
func (w *Writer) special(kind, value int64) bool {
	if w.index == nil {
		w.stamp(w.end)
	}
	if w.index == nil {
		return false
	}
	if w.markAt != 0 {
		w.idxPos += recordSize
		w.markAt = 0
	}
	if w.writeRecord(kind, value) != nil {
		return false
	}
	w.idxPos += recordSize
	return true
}

// dropHead frees the file's blocks before offset, and reports whether it did. Recorded first: a reader must never
// take a hole for bytes.
func (w *Writer) dropHead(offset int64) bool {
	if !w.special(dropMark, offset) {
		return false
	}
	w.mu.Lock()
	w.dropped = offset
	w.mu.Unlock()
	// A file system without holes keeps the bytes; they are marked as dropped all the same.
	_ = unix.Fallocate(int(w.file.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 0, offset)
	return true
}

func (w *Writer) lose(cause error) {
	w.lost = true
	w.special(lostMark, w.end)
	_ = w.setErr(fmt.Errorf("log %s: output from byte %d on was dropped: %w", filepath.Base(w.file.Name()), w.end, cause))
}

func (w *Writer) setErr(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = err
	}
	return w.err
}

// loseCopy ends the copy where it stands.
func (w *Writer) loseCopy(err error) {
	w.copyLost = true
	if st, serr := w.opts.Copy.Stat(); serr == nil {
		err = fmt.Errorf("it ends after byte %d: %w", st.Size(), err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.copyErr = err
}

// CopyErr says why Options.Copy lacks some of the output, and from where on; nil where it does not.
func (w *Writer) CopyErr() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.copyErr
}

func (w *Writer) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.err
}

func (w *Writer) finish() {
	w.mu.Lock()
	done := w.done
	gaps := w.takeGaps(w.end)
	w.mu.Unlock()
	if done {
		return
	}
	w.markGaps(gaps)
	_ = w.file.Close()
	if w.index != nil {
		_ = w.index.Close()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.done = true
	w.notify()
	w.changed.Broadcast()
}

// Abandon ends a Writer whose Pump is never called.
func (w *Writer) Abandon() { w.finish() }

// Path is the log's file.
func (w *Writer) Path() string { return w.file.Name() }

// State says how far the log has come.
func (w *Writer) State() (end, dropped int64, done bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.end, w.dropped, w.done
}

// Wait blocks until Pump has ended, and says what it answered.
func (w *Writer) Wait() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.done {
		w.changed.Wait()
	}
	return w.err
}

// Follower is told of new bytes.
type Follower struct {
	w    *Writer
	c    chan struct{}
	hold bool
	ack  int64
}

// Follow registers a follower. Where hold is true it has read up to ack, and bytes beyond it are not
// dropped: the container waits in its write once it is Options.Limit ahead.
func (w *Writer) Follow(hold bool, ack int64) *Follower {
	f := &Follower{w: w, c: make(chan struct{}, 1), hold: hold, ack: ack}
	f.c <- struct{}{}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.subs == nil {
		w.subs = map[*Follower]struct{}{}
	}
	w.subs[f] = struct{}{}
	if hold {
		w.awaited = false
	}
	return f
}

// Unhold has the log wait no longer for the follower of Options.Held.
func (w *Writer) Unhold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.awaited = false
	w.changed.Broadcast()
}

// C gets a value when the log has come further or has ended since the last one.
func (f *Follower) C() <-chan struct{} { return f.c }

// Ack says that the follower has read up to offset.
func (f *Follower) Ack(offset int64) {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	f.ack = max(f.ack, offset)
	f.w.changed.Broadcast()
}

// Close ends the following.
func (f *Follower) Close() {
	f.w.mu.Lock()
	defer f.w.mu.Unlock()
	delete(f.w.subs, f)
	f.w.changed.Broadcast()
}

// held is where what a holding follower has not read begins; end where there is none.
func (w *Writer) held(end int64) int64 {
	if w.awaited {
		return 0
	}
	for f := range w.subs {
		if f.hold {
			end = min(end, f.ack)
		}
	}
	return end
}

// Ease has Pump wait for no follower any more: the container has ended, so that what is left to come is bounded.
// Followers that hold the log lose nothing of it; the log may pass its limit by as much. undo, to be called once at
// most, has it wait again.
func (w *Writer) Ease() (undo func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.eased++
	w.changed.Broadcast()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.eased--
	}
}

// waitForReaders blocks while a holding follower is so far behind that going on would drop what it has
// not read.
func (w *Writer) waitForReaders() {
	if w.opts.Limit <= 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.heldUp() {
		w.changed.Wait()
	}
}

func (w *Writer) heldUp() bool { return w.eased == 0 && w.end-w.held(w.end) >= w.opts.Limit }

// teePipe doubles what is in a pipe.
type teePipe struct {
	r, w   int
	broken bool
}

func newTeePipe() (*teePipe, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("pipe: %w", err)
	}
	_, _ = unix.FcntlInt(uintptr(p[1]), unix.F_SETPIPE_SZ, chunk)
	return &teePipe{r: p[0], w: p[1]}, nil
}

func (t *teePipe) close() {
	_ = unix.Close(t.r)
	_ = unix.Close(t.w)
}

// fill copies what lies in fd, and leaves it there.
func (t *teePipe) fill(fd int) (int64, error) {
	if t.broken {
		return chunk, nil
	}
	for {
		n, err := unix.Tee(fd, t.w, chunk, unix.SPLICE_F_NONBLOCK)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		return n, err
	}
}

// drain moves n bytes into the file, at its own offset.
func (t *teePipe) drain(f *os.File, n int64) error {
	if t.broken {
		return nil
	}
	for n > 0 {
		m, err := unix.Splice(t.r, nil, int(f.Fd()), nil, int(n), unix.SPLICE_F_MOVE)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return err
		}
		if m == 0 {
			return io.ErrUnexpectedEOF
		}
		n -= m
	}
	return nil
}
