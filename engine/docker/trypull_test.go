package docker

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/berth-project/berth"
)

// TestTryPull: which failures of a pull another try may mend.
func TestTryPull(t *testing.T) {
	said := func(words string) []error { return []error{fmt.Errorf("daemon: %w: %s", berth.ErrUnavailable, words)} }
	busy := said("toomanyrequests: slow down")[0]
	for _, row := range []struct {
		name  string
		errs  []error // of the tries; then the last again
		tries int
	}{
		{"had at once", []error{nil}, 1},
		{"busy twice", []error{busy, busy, nil}, 3},
		{"busy for good", []error{busy}, pullTries},
		{"unknown", []error{fmt.Errorf("daemon: %w: manifest unknown", berth.ErrNotFound)}, 1},
		{"denied after a try", []error{busy, berth.ErrDenied}, 2},
		{"nobody listens", said("dial tcp 127.0.0.1:1: connect: connection refused"), refusedTries},
		{"nobody answers", said("dial tcp 10.0.0.1:443: i/o timeout"), refusedTries},
		{"no way to it", said("dial tcp 10.0.0.1:443: connect: no route to host"), refusedTries},
		{"no such registry", said("dial tcp: lookup nowhere: no such host"), 1},
		{"down", said("received unexpected HTTP status: 503 Service Unavailable"), pullTries},
		{"down, without words", said("received unexpected HTTP status: 520 "), pullTries},
		{"down, as Podman tells it", said("fetching blob: invalid status code from registry 502 (Bad Gateway)"), pullTries},
		{"busy, in no JSON", said("error parsing HTTP 429 response body: invalid character '<'"), pullTries},
		{"cut off", said("unexpected EOF"), pullTries},
		{"reset", said("read tcp 10.0.0.2:1->10.0.0.1:443: read: connection reset by peer"), pullTries},
		{"late", said("net/http: TLS handshake timeout"), pullTries},
		{"late with its headers", said("net/http: request canceled (Client.Timeout exceeded while awaiting headers)"), pullTries},
		{"a layer that does not unpack", said("failed to register layer: Error processing tar file(exit status 1): unexpected EOF"), 1},
		{"of a kind that the daemon does not know", said("unsupported media type application/vnd.oci.empty.v1+json"), 1},
		{"of another operating system", said("image operating system \"windows\" cannot be used on this platform"), 1},
		{"denied, in a word", said("denied"), 1},
		{"a port like a status", said("Get \"https://localhost:5000/v2/\": unsupported protocol"), 1},
		{"stalled", []error{&stalledError{time.Minute}}, 1},
	} {
		n, told := 0, 0
		err := tryPull(t.Context(), time.Microsecond, func(berth.Progress) { told++ }, func() error { n++; return row.errs[min(n, len(row.errs))-1] })
		if last := row.errs[len(row.errs)-1]; n != row.tries || told != n-1 || !errors.Is(err, last) {
			t.Errorf("%s: %d tries, told of %d: %v", row.name, n, told, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	n := 0
	err := tryPull(ctx, time.Hour, func(berth.Progress) { cancel(berth.ErrCanceled) }, func() error { n++; return busy })
	if n != 1 || !errors.Is(err, berth.ErrCanceled) {
		t.Errorf("given up: %d tries, %v", n, err)
	}
}
