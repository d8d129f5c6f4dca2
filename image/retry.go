package image

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"github.com/berth-project/berth"
)

// try does something until it succeeds, fails for good or has been tried often enough. Each try is ended
// when it takes as long as a transfer may stall. tell is told of those that failed before another.
func (s *Store) try(ctx context.Context, tell func(berth.Progress), do func(context.Context) error) error {
	for n := 1; ; n++ {
		watch := newWatchdog(ctx, s.opts.Stall)
		err := do(watch.ctx)
		if err != nil {
			err = watch.cause(err)
		}
		watch.stop()
		if err == nil {
			return nil
		}
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		wait, retry := s.retry(n, err)
		if !retry {
			return err
		}
		s.log.Debug("trying again", "error", err, "wait", wait)
		s.tellRetry(tell, n, err)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// tellRetry reports that the n-th try in a row has failed, and another is made.
func (s *Store) tellRetry(tell func(berth.Progress), n int, err error) {
	why := err.Error()
	if errors.Is(err, errStalled) {
		why = fmt.Sprintf("%v for %s", errStalled, s.opts.Stall)
	}
	tell(berth.Progress{Phase: "retry", Why: fmt.Sprintf("try %d of %d: %s", n, s.opts.Retries+1, why)})
}

// retryAfter is an error with the time that the registry asks to wait.
type retryAfter struct {
	error
	wait time.Duration
}

func (r *retryAfter) Unwrap() error { return r.error }

func withRetryAfter(err error, resp *http.Response) error {
	s := resp.Header.Get("Retry-After")
	if s == "" {
		return err
	}
	if sec, perr := strconv.Atoi(s); perr == nil && sec >= 0 {
		return &retryAfter{err, min(time.Duration(sec)*time.Second, retryAfterMax)}
	}
	if at, perr := http.ParseTime(s); perr == nil {
		return &retryAfter{err, min(max(time.Until(at), 0), retryAfterMax)}
	}
	return err
}

// retry says whether an error may pass by itself after the n-th failure in a row, and how long to wait.
func (s *Store) retry(n int, err error) (wait time.Duration, again bool) {
	if n > s.opts.Retries || !temporary(err) {
		return 0, false
	}
	if isRefused(err) && n > 2 {
		return 0, false // nobody listens: that rarely changes within seconds
	}
	wait = min(s.opts.Backoff<<min(n-1, 16), backoffMax)
	if after, ok := errors.AsType[*retryAfter](err); ok {
		wait = max(after.wait, wait)
	}
	return wait, true
}

func isRefused(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// temporary reports whether trying again can help.
func temporary(err error) bool {
	var status *transport.Error
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var u *url.Error
	switch {
	case errors.As(err, &status):
		return status.StatusCode == http.StatusRequestTimeout || status.StatusCode == http.StatusTooManyRequests || status.StatusCode >= 500
	case errors.Is(err, berth.ErrDenied), errors.Is(err, berth.ErrInvalid):
		return false
	case errors.As(err, &dns):
		return dns.IsTemporary || dns.IsTimeout
	case errors.As(err, &cert), errors.As(err, &record), isPlainHTTP(err):
		return false
	case errors.Is(err, errStalled), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return true
	}
	return errors.As(err, &u) || isNet(err)
}

func isNet(err error) bool {
	var n net.Error
	return errors.As(err, &n)
}

// isPlainHTTP reports whether a server answered https with http.
func isPlainHTTP(err error) bool {
	return strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}
