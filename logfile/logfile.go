// Package logfile keeps what a container writes: one file a stream, filled from a pipe without a copy
// through memory, bounded by freeing its head, with an index of when what arrived. It knows nothing of
// containers.
//
// The log of stream S in directory D is the file D/S, whose offsets are those of the stream for ever, and
// D/S.idx, 16-byte records of two little-endian int64: time in nanoseconds since 1970 and the offset after
// the bytes that arrived then; or dropMark and the offset before which bytes were dropped; or lostMark and
// the offset from which nothing more could be written; or gapMark and an offset before which bytes, nobody knows
// how many, are missing that offsets do not count.
package logfile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

const (
	recordSize = 16
	dropMark   = -1
	lostMark   = -2
	gapMark    = -3
	indexExt   = ".idx"
	// indexStep is the finest time that the index tells apart: records nearer to each other are one.
	indexStep = 20 * time.Millisecond
)

// Files are the files of a stream's log.
func Files(dir, stream string) []string {
	return []string{filepath.Join(dir, stream), filepath.Join(dir, stream+indexExt)}
}

func putRecord(b *[recordSize]byte, at, end int64) {
	binary.LittleEndian.PutUint64(b[:8], uint64(at))
	binary.LittleEndian.PutUint64(b[8:], uint64(end))
}

func getRecord(b []byte) (at, end int64) {
	return int64(binary.LittleEndian.Uint64(b)), int64(binary.LittleEndian.Uint64(b[8:]))
}

// Index is what is known of a log beside its bytes.
type Index struct {
	Dropped int64 // bytes at the start that are gone; a reader begins there
	Lost    int64 // offset from which nothing more could be written (a full disk); -1 if all was
	// Gaps are the offsets at which bytes may be missing that came to nobody; see Writer.Gap.
	Gaps  []int64
	marks []mark
}

type mark struct{ at, end int64 }

// last is the mark of what came last.
func (ix *Index) last() mark {
	if n := len(ix.marks); n > 0 {
		return ix.marks[n-1]
	}
	return mark{}
}

// Last is when the last of what the index knows of arrived; zero if it knows of nothing.
func (ix *Index) Last() time.Time {
	if m := ix.last(); m.at != 0 {
		return time.Unix(0, m.at)
	}
	return time.Time{}
}

// ReadIndex reads the index of a stream's log. A log without one is a log in which nothing arrived.
func ReadIndex(dir, stream string) (*Index, error) {
	ix := &Index{Lost: -1}
	b, err := os.ReadFile(filepath.Join(dir, stream+indexExt))
	if errors.Is(err, fs.ErrNotExist) {
		return ix, nil
	} else if err != nil {
		return nil, fmt.Errorf("index of log %s: %w", stream, err)
	}
	for ; len(b) >= recordSize; b = b[recordSize:] {
		switch at, end := getRecord(b); at {
		case dropMark:
			ix.Dropped = max(ix.Dropped, end)
		case lostMark:
			ix.Lost = end
		case gapMark:
			ix.Gaps = append(ix.Gaps, end)
		default:
			ix.marks = append(ix.marks, mark{at, end})
		}
	}
	return ix, nil
}

// Span says when the first and the last bytes arrived, as far as records tell times apart; zero where none did.
func (ix *Index) Span() (first, last time.Time) {
	if len(ix.marks) == 0 {
		return first, last
	}
	return time.Unix(0, ix.marks[0].at), time.Unix(0, ix.marks[len(ix.marks)-1].at)
}

// At says when the byte at offset arrived; the zero time if that is unknown.
func (ix *Index) At(offset int64) time.Time {
	lo, hi := 0, len(ix.marks)
	for lo < hi {
		if m := (lo + hi) / 2; ix.marks[m].end <= offset {
			lo = m + 1
		} else {
			hi = m
		}
	}
	if lo == len(ix.marks) {
		return time.Time{}
	}
	return time.Unix(0, ix.marks[lo].at)
}

// Since is the offset of the first byte that arrived at t or later.
func (ix *Index) Since(t time.Time) int64 {
	end := int64(0)
	for _, m := range ix.marks {
		if m.at >= t.UnixNano() {
			return max(end, ix.Dropped)
		}
		end = m.end
	}
	return max(end, ix.Dropped)
}

// Tail is the offset at which the last n lines begin, as tail(1) counts them: a last line without its
// newline is a line.
func Tail(r io.ReaderAt, start, end int64, n int) (int64, error) {
	if n <= 0 || end <= start {
		return end, nil
	}
	buf := make([]byte, 64<<10)
	seen := 0
	for pos := end; pos > start; {
		size := min(int64(len(buf)), pos-start)
		pos -= size
		if _, err := r.ReadAt(buf[:size], pos); err != nil && !errors.Is(err, io.EOF) {
			return 0, err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' || pos+i == end-1 {
				continue
			}
			if seen++; seen == n {
				return pos + i + 1, nil
			}
		}
	}
	return start, nil
}
