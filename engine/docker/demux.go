package docker

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// A frame of Docker's multiplexed streams is a header (the stream, three zero bytes, the length in big-endian)
// and the bytes.
const (
	frameHeader  = 8
	streamStdout = 1
	streamStderr = 2
)

// demux copies a multiplexed stream into its parts until its end. A stream that is cut within a frame, or
// that holds anything but stdout and stderr, is an error.
func demux(r io.Reader, stdout, stderr io.Writer) error {
	var h [frameHeader]byte
	buf := make([]byte, 32<<10)
	for {
		if _, err := io.ReadFull(r, h[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("frame header: %w", err)
		}
		var w io.Writer
		switch h[0] {
		case streamStdout:
			w = stdout
		case streamStderr:
			w = stderr
		default:
			return fmt.Errorf("frame of unknown stream %d", h[0])
		}
		if h[1]|h[2]|h[3] != 0 {
			return fmt.Errorf("frame header % x", h)
		}
		size := int64(binary.BigEndian.Uint32(h[4:]))
		n, err := io.CopyBuffer(onlyWriter{w}, io.LimitReader(r, size), buf)
		if err != nil {
			return err
		}
		if n < size {
			return fmt.Errorf("frame of %d bytes: %w after %d", size, io.ErrUnexpectedEOF, n)
		}
	}
}

// onlyWriter hides ReadFrom, so that one buffer serves all frames.
type onlyWriter struct{ io.Writer }

// skipper drops the first bytes of a stream.
type skipper struct {
	w    io.Writer
	left int64
}

func (s *skipper) Write(p []byte) (int, error) {
	skip := min(s.left, int64(len(p)))
	s.left -= skip
	if int(skip) == len(p) {
		return len(p), nil
	}
	n, err := s.w.Write(p[skip:])
	return int(skip) + n, err
}
