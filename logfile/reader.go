package logfile

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// From chooses where a Reader begins. The latest of the places that its fields name counts.
type From struct {
	Offset int64     // bytes from the start of the stream, dropped ones counted
	Tail   int       // the last lines; 0 is all, -1 none
	Since  time.Time // what arrived then or later
}

// Reader reads a stream's log, also while it is written.
type Reader struct {
	dir, stream string
	file        *os.File
	pos         int64
	skipped     int64
	index       *Index
	indexSize   int64
}

// Open opens the log of a stream. The error wraps fs.ErrNotExist where there is none.
func Open(dir, stream string, from From) (*Reader, error) {
	f, err := os.Open(filepath.Join(dir, stream))
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", stream, err)
	}
	r := &Reader{dir: dir, stream: stream, file: f, pos: from.Offset}
	if err := r.start(from); err != nil {
		_ = f.Close()
		return nil, err
	}
	return r, nil
}

func (r *Reader) start(from From) error {
	if err := r.refresh(0); err != nil {
		return err
	}
	end, err := r.End()
	if err != nil {
		return err
	}
	if !from.Since.IsZero() {
		r.pos = max(r.pos, r.index.Since(from.Since))
	}
	if from.Tail != 0 {
		tail, err := Tail(r.file, r.index.Dropped, end, from.Tail)
		if err != nil {
			return err
		}
		r.pos = max(r.pos, tail)
	}
	return nil
}

// refresh reads the index anew where it has grown, or does not know of what lies before end: its last mark may have been moved.
func (r *Reader) refresh(end int64) error {
	st, err := os.Stat(filepath.Join(r.dir, r.stream+indexExt))
	if errors.Is(err, fs.ErrNotExist) {
		r.index = &Index{Lost: -1}
		return nil
	} else if err != nil {
		return err
	}
	if r.index != nil && st.Size() == r.indexSize && end <= r.index.last().end {
		return nil
	}
	ix, err := ReadIndex(r.dir, r.stream)
	if err != nil {
		return err
	}
	r.index, r.indexSize = ix, st.Size()
	return nil
}

// End is the offset after the last byte that is there now.
func (r *Reader) End() (int64, error) {
	st, err := r.file.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

// Pos is the offset of the next byte that Read reads.
func (r *Reader) Pos() int64 { return r.pos }

// Skipped is the number of bytes that the reader wanted and that were dropped before it came to them.
func (r *Reader) Skipped() int64 { return r.skipped }

// Index is the log's index, as of the last read.
func (r *Reader) Index() *Index { return r.index }

// Read reads what is there now; io.EOF is the end so far. Dropped bytes are jumped over, and counted in
// Skipped.
func (r *Reader) Read(p []byte) (int, error) {
	n, err := r.file.ReadAt(p, r.pos)
	if rerr := r.refresh(r.pos + int64(n)); rerr != nil { // after the bytes: what was read may have been dropped meanwhile
		return 0, rerr
	}
	if d := r.index.Dropped; d > r.pos {
		r.skipped += d - r.pos
		r.pos = d
		return r.Read(p)
	}
	r.pos += int64(n)
	if n > 0 {
		return n, nil
	}
	return 0, err
}

// WriteTo copies what is there now into w, in the kernel where it can.
func (r *Reader) WriteTo(w io.Writer) (int64, error) {
	total := int64(0)
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if errors.Is(err, io.EOF) {
			return total, nil
		} else if err != nil {
			return total, err
		}
		m, err := w.Write(buf[:n])
		total += int64(m)
		if err != nil {
			return total, err
		}
	}
}

// Close closes the reader.
func (r *Reader) Close() error { return r.file.Close() }

// Follow reads on as the log grows, until wait says that it has ended. wait blocks until there may be bytes
// beyond offset have, and reports whether the log had ended when it looked.
func (r *Reader) Follow(ctx context.Context, wait func(ctx context.Context, have int64) (ended bool, err error)) io.ReadCloser {
	ctx, cancel := context.WithCancel(ctx)
	return &follower{r: r, ctx: ctx, cancel: cancel, wait: wait}
}

type follower struct {
	r      *Reader
	ctx    context.Context //nolint:containedctx // the life of one stream, ended by Close
	cancel context.CancelFunc
	wait   func(context.Context, int64) (bool, error)
	ended  bool
}

func (f *follower) Read(p []byte) (int, error) {
	for {
		n, err := f.r.Read(p)
		if n > 0 || err != nil && !errors.Is(err, io.EOF) {
			return n, err
		}
		if f.ended {
			return 0, io.EOF
		}
		ended, err := f.wait(f.ctx, f.r.Pos())
		if err != nil {
			return 0, err
		}
		f.ended = ended // one more look at what was written before the end
	}
}

func (f *follower) Close() error {
	f.cancel()
	return f.r.Close()
}
