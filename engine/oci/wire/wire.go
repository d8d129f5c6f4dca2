// Package wire is how the engine talks to its monitor: length-prefixed JSON messages over a unix socket, one
// of them with JSON behind it that is handed on as it is, and with open files beside them. Both ends are the same program; the protocol promises nothing to others,
// and a number in the greeting tells different versions apart.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/berth-project/berth"
	"golang.org/x/sys/unix"
)

// Version is the version of the protocol.
const Version = 6

// maxMessage bounds a message, in bytes: an environment of the largest size that Linux takes, twice.
const maxMessage = 16 << 20

// maxFiles bounds the files beside one message.
const maxFiles = 8

// Conn sends and receives messages. Not for concurrent use, but for one sender beside one receiver.
type Conn struct {
	c    *net.UnixConn
	head [4]byte
	buf  []byte
	oob  [64]byte
}

// NewConn makes a Conn of a connected stream socket.
func NewConn(c *net.UnixConn) *Conn { return &Conn{c: c} }

// Close closes the connection.
func (c *Conn) Close() error { return c.c.Close() }

// Net is the connection below, for deadlines.
func (c *Conn) Net() *net.UnixConn { return c.c }

// Send sends v as JSON, with files beside it. The files stay the caller's.
func (c *Conn) Send(v any, files ...*os.File) error {
	var spec []byte
	if start := startIn(v); start != nil {
		spec, start.Size = start.Spec, len(start.Spec)
	}
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if size := len(body) + len(spec); size > maxMessage || len(files) > maxFiles {
		return fmt.Errorf("message to the monitor: %w: %d bytes and %d files; at most %d and %d", berth.ErrInvalid, size, len(files), maxMessage, maxFiles)
	}
	msg := make([]byte, 4, 4+len(body)+len(spec))
	binary.LittleEndian.PutUint32(msg, uint32(len(body)))
	msg = append(append(msg, body...), spec...)
	var oob []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	n, _, err := c.c.WriteMsgUnix(msg, oob, nil)
	if err != nil {
		return err
	}
	if n < len(msg) {
		_, err = c.c.Write(msg[n:])
	}
	return err
}

// startIn is the start that a message asks for; nil in all others. Its spec, which is JSON already and most of the
// message, goes behind the message: encoding/json would read each byte of it several times.
func startIn(v any) *Start {
	if r, ok := v.(*Request); ok {
		return r.Start
	}
	return nil
}

// Receive reads one message into v and returns the files beside it, which are then the caller's.
func (c *Conn) Receive(v any) ([]*os.File, error) {
	var files []*os.File
	fail := func(err error) ([]*os.File, error) {
		closeAll(files)
		return nil, err
	}
	for got := 0; got < len(c.head); {
		n, oobn, _, _, err := c.c.ReadMsgUnix(c.head[got:], c.oob[:])
		if err != nil {
			return fail(err)
		}
		if n == 0 {
			return fail(io.EOF)
		}
		got += n
		fs, err := parseFiles(c.oob[:oobn])
		files = append(files, fs...)
		if err != nil {
			return fail(err)
		}
	}
	size := int(binary.LittleEndian.Uint32(c.head[:]))
	if size > maxMessage {
		return fail(fmt.Errorf("message of %d bytes: %w", size, berth.ErrInvalid))
	}
	if cap(c.buf) < size || cap(c.buf) > 1<<20 {
		c.buf = make([]byte, size)
	}
	body := c.buf[:size]
	if _, err := io.ReadFull(c.c, body); err != nil {
		return fail(err)
	}
	if size > 64<<10 {
		c.buf = nil
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fail(err)
	}
	if start := startIn(v); start != nil {
		if start.Size < 0 || start.Size > maxMessage {
			return fail(fmt.Errorf("spec of %d bytes: %w", start.Size, berth.ErrInvalid))
		}
		start.Spec = make([]byte, start.Size)
		if _, err := io.ReadFull(c.c, start.Spec); err != nil {
			return fail(err)
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func parseFiles(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range msgs {
		fds, err := unix.ParseUnixRights(&msgs[i])
		if err != nil {
			return files, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// Error carries an error, with its kind, over the wire.
type Error struct {
	Kind string `json:"kind,omitempty"`
	Text string `json:"text"`
}

var kinds = map[string]error{
	"invalid": berth.ErrInvalid, "not found": berth.ErrNotFound, "conflict": berth.ErrConflict, "denied": berth.ErrDenied,
	"exhausted": berth.ErrExhausted, "unavailable": berth.ErrUnavailable, "unsupported": berth.ErrUnsupported,
}

// ErrorOf makes err ready for the wire; nil stays nil.
func ErrorOf(err error) *Error {
	if err == nil {
		return nil
	}
	e := &Error{Text: err.Error()}
	for name, kind := range kinds {
		if errors.Is(err, kind) {
			e.Kind = name
		}
	}
	return e
}

// Err is the error again, with its kind; a nil Error is nil.
func (e *Error) Err() error {
	if e == nil {
		return nil
	}
	return &remote{text: e.Text, kind: kinds[e.Kind]}
}

type remote struct {
	text string
	kind error
}

func (r *remote) Error() string { return r.text }
func (r *remote) Unwrap() error { return r.kind }
