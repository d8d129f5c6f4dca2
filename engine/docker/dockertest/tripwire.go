package dockertest

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
)

// Tripwire passes connections on to a daemon that was started with Options.Remote, and does something once one of them has
// carried enough.
type Tripwire struct {
	// Remote is how to reach the daemon through it.
	Remote Remote

	l     net.Listener
	wire  atomic.Pointer[wire]
	mu    sync.Mutex
	conns map[net.Conn]struct{}
}

type wire struct {
	after int64 // bytes
	do    func()
	once  sync.Once
}

// NewTripwire listens on loopback.
func NewTripwire(to Remote) (*Tripwire, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	t := &Tripwire{Remote: Remote{Addr: l.Addr().String(), Certs: to.Certs}, l: l, conns: map[net.Conn]struct{}{}}
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			d, err := new(net.Dialer).DialContext(context.Background(), "tcp", to.Addr)
			if err != nil {
				_ = c.Close()
				continue
			}
			t.mu.Lock()
			t.conns[c], t.conns[d] = struct{}{}, struct{}{}
			t.mu.Unlock()
			var n atomic.Int64
			go t.pass(c, d, &n) // these end with the connections
			go t.pass(d, c, &n)
		}
	}()
	return t, nil
}

// Arm has do called, once, when a connection has carried so many bytes both ways together, before it carries more.
func (t *Tripwire) Arm(after int64, do func()) { t.wire.Store(&wire{after: after, do: do}) }

func (t *Tripwire) pass(to, from net.Conn, n *atomic.Int64) {
	defer func() {
		_, _ = to.Close(), from.Close()
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.conns, from)
	}()
	buf := make([]byte, 32<<10)
	for {
		got, err := from.Read(buf)
		carried := n.Add(int64(got))
		if w := t.wire.Load(); w != nil && carried >= w.after {
			w.once.Do(w.do)
		}
		if _, werr := to.Write(buf[:got]); err != nil || werr != nil {
			return
		}
	}
}

// Close ends the listening and all connections.
func (t *Tripwire) Close() error {
	err := t.l.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	for c := range t.conns {
		if cerr := c.Close(); err == nil && cerr != nil && !strings.Contains(cerr.Error(), "use of closed") {
			err = cerr
		}
	}
	return err
}
