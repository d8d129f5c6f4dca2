package logfile

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

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
		if errors.Is(err, unix.EIO) { // the file's: of a terminal nothing is spliced
			w.lose(err)
			n, err := discard(fd, want)
			if err == nil && n > 0 {
				err = errDropped
			}
			return n, err
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
