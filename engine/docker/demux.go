package docker

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// A frame of Docker's multiplexed streams is a header (the stream, three zero bytes, the length in big-endian)
// and the bytes.
const (
	frameHeader  = 8
	streamStdout = 1
	streamStderr = 2
	streamErrors = 3 // what the daemon itself has to say
)

// daemonWord is what the daemon says in a stream as it cannot give all of it.
type daemonWord string

func (w daemonWord) Error() string { return "the daemon says: " + string(w) }

// unread reports whether the daemon has said so.
func unread(err error) bool {
	var w daemonWord
	return errors.As(err, &w)
}

// demux copies a multiplexed stream into its parts until its end. A stream that is cut within a frame, or
// that holds anything but stdout and stderr, is an error; what the daemon says is one, at the end.
func demux(r io.Reader, stdout, stderr io.Writer) error {
	return demuxFrames(r, stdout, stderr, func(io.Writer) error { return nil })
}

// demuxFrames calls end after each frame.
func demuxFrames(r io.Reader, stdout, stderr io.Writer, end func(io.Writer) error) error {
	return (&frames{r: r}).demux(stdout, stderr, end)
}

// frames is a multiplexed stream that is read.
type frames struct {
	r    io.Reader
	h    [frameHeader]byte
	have int          // bytes of h that were read
	left int64        // bytes of that frame that were not
	word bytes.Buffer // of the daemon itself
}

func (f *frames) demux(stdout, stderr io.Writer, end func(io.Writer) error) error {
	buf := make([]byte, 32<<10)
	var said error
	for {
		n, err := io.ReadFull(f.r, f.h[:])
		if f.have = n; errors.Is(err, io.EOF) {
			return said
		} else if err != nil {
			return fmt.Errorf("frame header: %w", err)
		}
		var w io.Writer
		switch f.h[0] {
		case streamStdout:
			w = stdout
		case streamStderr:
			w = stderr
		case streamErrors:
			w = &f.word
		default:
			return fmt.Errorf("frame of unknown stream %d", f.h[0])
		}
		if f.h[1]|f.h[2]|f.h[3] != 0 {
			return fmt.Errorf("frame header % x", f.h)
		}
		size := int64(binary.BigEndian.Uint32(f.h[4:]))
		came, err := io.CopyBuffer(onlyWriter{w}, io.LimitReader(f.r, size), buf)
		if f.left = size - came; err != nil {
			return err
		}
		if came < size {
			return fmt.Errorf("frame of %d bytes: %w after %d", size, io.ErrUnexpectedEOF, came)
		}
		f.have = 0
		if w == &f.word {
			said = daemonWord(cmp.Or(strings.TrimPrefix(strings.TrimSpace(f.word.String()), "Error grabbing logs: "), "an error without a word"))
			f.word.Reset()
			continue
		}
		if err := end(w); err != nil {
			return err
		}
	}
}

// unfinished is what a reader of the rest needs of the frame in which the reading stopped.
func (f *frames) unfinished() []byte {
	if f.have < frameHeader {
		return f.h[:f.have]
	}
	h := f.h
	binary.BigEndian.PutUint32(h[4:], uint32(f.left)+uint32(f.word.Len()))
	return append(h[:], f.word.Bytes()...)
}

// logMessageMax is where daemons cut a line into several messages of their logs.
const logMessageMax = 16 << 10

// mender gives back to a stream what the driver local of daemons before 23.0 leaves out: the newline that ends a
// line of 16 KiB or more. It is written one frame, which is one message of the log, at a time. Whether the last
// message of a stream ended so cannot be known: it is taken to have.
type mender struct {
	w     io.Writer
	off   bool // the daemon leaves nothing out
	cut   bool // the message before was a part of a line, not its last
	owing bool // the message before was the last part of a line, without its newline
}

func (m *mender) Write(p []byte) (int, error) {
	if err := m.flush(); err != nil {
		return 0, err
	}
	ended := len(p) > 0 && p[len(p)-1] == '\n'
	whole := len(p) == logMessageMax && !ended
	m.owing = m.cut && !ended && !whole && !m.off
	m.cut = whole
	return m.w.Write(p)
}

// flush writes a newline that is owed.
func (m *mender) flush() error {
	if !m.owing {
		return nil
	}
	m.owing = false
	_, err := m.w.Write([]byte{'\n'})
	return err
}

// onlyWriter hides ReadFrom, so that one buffer serves all frames.
type onlyWriter struct{ io.Writer }
