package docker

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"

	"github.com/moby/moby/client"
)

// stdin is the write half of an attached stream.
type stdin struct {
	conn   net.Conn
	taken  bool
	once   sync.Once
	failed atomic.Bool // to take something: the command does not want it, or the daemon is away
	ended  atomic.Bool
}

// cut reports whether the input of an ended command was cut off, as the daemon was away. ends: for the command that is its end.
func (s *stdin) cut(ends bool) bool { return s.failed.Load() || ends && !s.ended.Load() }

func (s *stdin) Write(p []byte) (int, error) {
	n, err := s.conn.Write(p)
	if err != nil {
		s.failed.Store(true)
	}
	return n, err
}

// Close is end of file for the container; what it writes is read on.
func (s *stdin) Close() error {
	var err error
	s.once.Do(func() {
		s.ended.Store(true)
		if c, ok := s.conn.(client.CloseWriter); ok {
			err = c.CloseWrite()
		}
	})
	return err
}

// feed fills the container's input from a file.
func (l *life) feed(f io.ReadCloser) {
	over := make(chan struct{})
	l.mu.Lock()
	in := l.stdin
	in.taken = true
	l.feeding = over
	l.mu.Unlock()
	l.e.wg.Go(func() {
		defer close(over)
		defer func() { _ = f.Close() }()
		from := &fedReader{r: f}
		_, err := io.Copy(onlyWriter{in}, from) // a command that does not read to the end closes it
		if err == nil {                         // before the end of file, which comes by our death, too
			err = os.WriteFile(filepath.Join(l.dir, fedFile), nil, 0o600)
		}
		if err != nil {
			l.e.cfg.Logger.Debug("standard input not handed over to its end", "container", l.String(), "error", err)
		}
		l.mu.Lock()
		l.starved, l.unfed = from.err, err != nil
		l.mu.Unlock()
		_ = in.Close()
	})
}

// fedFile says that all of a step's standard input was handed over.
const fedFile = "fed"

// fedReader remembers why it could not be read to its end.
type fedReader struct {
	r   io.Reader
	err error
}

func (f *fedReader) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}
