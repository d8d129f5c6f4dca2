package logfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
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
