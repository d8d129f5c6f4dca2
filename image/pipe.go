package image

import (
	"errors"
	"hash"
	"io"
)

const (
	pipeSize  = 128 << 10 // bytes of one buffer
	pipeDepth = 4         // buffers between two stages
)

// chunk is what flows between the stages of a layer's unpacking: bytes, or the error that ends them.
type chunk struct {
	b   []byte
	err error
}

// pipe carries bytes from one goroutine to another in large pieces, in a fixed number of buffers.
type pipe struct {
	full chan chunk
	free chan []byte
	done chan struct{} // closed when the reader wants no more
}

func newPipe() *pipe {
	p := &pipe{full: make(chan chunk, pipeDepth), free: make(chan []byte, pipeDepth), done: make(chan struct{})}
	for range pipeDepth {
		p.free <- nil // made when first used: small layers need only one
	}
	return p
}

// errPipeClosed tells the writing side that nobody reads any more.
var errPipeClosed = errors.New("the reader has gone")

// fill reads r to its end, or until nobody reads the pipe any more, and hashes what it read.
func (p *pipe) fill(r io.Reader, h hash.Hash) error {
	defer close(p.full)
	for {
		var b []byte
		select {
		case b = <-p.free:
		case <-p.done:
			return errPipeClosed
		}
		if b == nil {
			b = make([]byte, pipeSize)
		}
		n, err := fillBuffer(r, b[:pipeSize])
		if h != nil {
			h.Write(b[:n])
		}
		p.full <- chunk{b[:n], err} // never blocks: there are no more buffers than places
		if err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

// tap hashes what flows through a pipe, and passes it on in the buffers in which it came. The pipe must be read
// through what tap returns alone; done is called when no more is hashed.
func (p *pipe) tap(h hash.Hash, done func()) *pipe {
	out := &pipe{full: make(chan chunk, pipeDepth), free: p.free, done: p.done}
	go func() {
		defer done()
		defer close(out.full)
		for c := range p.full {
			h.Write(c.b)
			out.full <- c
		}
	}()
	return out
}

// fillBuffer reads until b is full or r ends; the error is r's own.
func fillBuffer(r io.Reader, b []byte) (n int, err error) {
	for n < len(b) && err == nil {
		var m int
		m, err = r.Read(b[n:])
		n += m
	}
	return n, err
}

// pipeReader is the reading end.
type pipeReader struct {
	p    *pipe
	own  []byte // to be given back
	rest []byte
	err  error
}

func (r *pipeReader) Read(b []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.own != nil {
			r.p.free <- r.own // never blocks: there are no more buffers than places
			r.own = nil
		}
		if r.err != nil {
			return 0, r.err
		}
		c, ok := <-r.p.full
		if !ok {
			return 0, errPipeClosed
		}
		r.own, r.rest, r.err = c.b, c.b, c.err
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// close tells the writing side to stop. It must be called once.
func (r *pipeReader) close() { close(r.p.done) }

func (p *pipe) reader() *pipeReader { return &pipeReader{p: p} }
