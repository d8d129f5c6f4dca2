package docker

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"
)

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// TestInsist: a connection that is not to be had is tried five times; one that this user may not make, once.
func TestInsist(t *testing.T) {
	for _, row := range []struct {
		errno syscall.Errno
		tries int
	}{{syscall.ECONNREFUSED, removeTries}, {syscall.ECONNRESET, removeTries}, {syscall.EACCES, 1}} {
		tries := 0
		api, err := client.New(client.WithHost("unix:///nowhere"), client.WithHTTPClient(&http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) {
			tries++
			return nil, &net.OpError{Op: "dial", Net: "unix", Err: os.NewSyscallError("connect", row.errno)}
		})}), client.WithAPIVersion("1.41"))
		if err != nil {
			t.Fatal(err)
		}
		e := &Engine{cfg: Config{CallMax: time.Minute}}
		e.client.Store(api)
		_, err = e.removeContainer(t.Context(), "x")
		if err == nil || tries != row.tries {
			t.Errorf("%v: %d tries, %v; want %d", row.errno, tries, err, row.tries)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("nobody waits")
	if err := persist(ctx, func(error) bool { cancel(gone); return true }, func() error { return errors.New("again") }); !errors.Is(err, gone) {
		t.Errorf("a call that nobody waits for: %v", err)
	}
}
