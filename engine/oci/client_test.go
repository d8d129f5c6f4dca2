package oci

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-project/berth/engine/oci/wire"
)

// TestCallThatIsGivenUp: a call whose context ends as its answer comes leaves nothing behind that meets the next.
func TestCallThatIsGivenUp(t *testing.T) {
	var ends [2]*net.UnixConn
	connect := func() *wire.Conn {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		for i, fd := range fds {
			f := os.NewFile(uintptr(fd), "pair")
			c, err := net.FileConn(f)
			if err = errors.Join(err, f.Close()); err != nil {
				t.Fatal(err)
			}
			ends[i] = c.(*net.UnixConn)
		}
		return wire.NewConn(ends[0])
	}
	ask := func(ctx context.Context, c *client, before func()) error {
		served := make(chan error, 1)
		server := wire.NewConn(ends[1])
		go func() {
			var req wire.Request
			_, err := server.Receive(&req)
			before()
			served <- errors.Join(err, server.Send(wire.Answer{}))
		}()
		var a wire.Answer
		err := c.call(ctx, &wire.Request{Op: wire.OpList}, &a)
		<-served
		return err
	}
	for range 2000 {
		c := &client{idle: []*wire.Conn{connect()}}
		ctx, cancel := context.WithCancel(t.Context())
		_ = ask(ctx, c, cancel)
		if len(c.idle) == 1 { // it was answered in time
			if err := ask(t.Context(), c, func() {}); err != nil {
				t.Fatal(err)
			}
		}
		_, _ = ends[0].Close(), ends[1].Close()
	}
}
