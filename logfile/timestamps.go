package logfile

import (
	"bytes"
	"io"
	"time"
)

// stampLayout is RFC 3339 with nanoseconds of fixed width, so that lines stay aligned and sort.
const stampLayout = "2006-01-02T15:04:05.000000000Z07:00"

// Timestamps writes what it is given to w, each line after the time at which its first byte arrived.
type Timestamps struct {
	W io.Writer
	R *Reader // from which what is written was read, piece by piece

	inLine bool
}

// Write writes p, the bytes that end at R's position.
func (t *Timestamps) Write(p []byte) (int, error) {
	var out bytes.Buffer
	offset := t.R.Pos() - int64(len(p))
	for rest := p; len(rest) > 0; {
		if !t.inLine {
			at := t.R.Index().At(offset)
			if at.IsZero() { // its time is written a little after it
				at = t.R.Index().Last()
			}
			if at.IsZero() {
				at = time.Now()
			}
			out.WriteString(at.UTC().Format(stampLayout) + " ")
		}
		line, tail, ended := bytes.Cut(rest, []byte{'\n'})
		out.Write(line)
		if ended {
			out.WriteByte('\n')
		}
		t.inLine = !ended
		offset += int64(len(rest) - len(tail))
		rest = tail
	}
	if _, err := t.W.Write(out.Bytes()); err != nil {
		return 0, err
	}
	return len(p), nil
}
